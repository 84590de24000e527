"""What a run would be, before it starts: ``python train.py plan -c configs/stage2.yaml``; needs no data and no weights.

Everything follows from the configuration, on a network without values. Where the shards are there, their size of clips
and their number are read; else the size is assumed, and the plan says so.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from reconx_pl.data.shards.manifest import MANIFEST, Manifest
from reconx_pl.data.shards.reader import read_shard, training_members
from reconx_pl.data.shards.schema import decode_header
from reconx_pl.data.shards.stream import ClipStream
from reconx_pl.diffusion.conditioning.frozen import FrozenModule
from reconx_pl.diffusion.config import BLOCK_KINDS, UNetConfig
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.weights.building import build_network
from reconx_pl.errors import BadWeightsError, ConfigurationError
from reconx_pl.training.optimizer import OptimizerConfig
from reconx_pl.training.plan.meta_model import NO_WEIGHTS, BatchShape, blank_batch
from reconx_pl.training.plan.peaks import PEAKS, peak_flops
from reconx_pl.training.plan.step_flops import StepFlops, count_step
from reconx_pl.training.plan.step_memory import Held, Kept, held, kept_for_backward
from reconx_pl.training.stages import Stage, apply_stage, group_of

ASSUMED_SIDES = (512, 512)  # of the paper's frames, where neither shards nor options say another size
AUTOCAST = {"32-true": None, "32": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Rate(NamedTuple):
    """What a device is assumed to compute in a second, and where the number comes from."""

    flops: float
    origin: str


@dataclass(frozen=True)
class PlanOptions:
    """What a configuration does not say.

    Args:
        frames: of a clip; None reads it from the shards, or from the image encoder, which has queries for so many.
        height, width: of the frames in pixels; None reads them from the shards, or takes 512 x 512.
        gpu: whose data sheet gives the peak of bfloat16 products (part of a name, such as "A100"); None means H100.
        utilisation: share of that peak that training is assumed to reach; None means 0.4.
        flops_per_second: what a GPU is assumed to compute in a second, instead of the two above.

    Raises:
        ConfigurationError: options that contradict each other.
    """

    frames: int | None = None
    height: int | None = None
    width: int | None = None
    gpu: str | None = None
    utilisation: float | None = None
    flops_per_second: float | None = None

    def __post_init__(self) -> None:
        if (self.height is None) != (self.width is None):
            raise ConfigurationError("give height and width, or neither")
        if self.flops_per_second is not None:
            if self.gpu is not None or self.utilisation is not None:
                raise ConfigurationError("give flops_per_second, or gpu and utilisation, but not both")
            if self.flops_per_second <= 0:
                raise ConfigurationError(f"flops_per_second must be positive, got {self.flops_per_second}")
        elif peak_flops(self.gpu or "H100") is None:
            raise ConfigurationError(
                f"no peak of {self.gpu!r} is known; known are {', '.join(PEAKS)}. Give flops_per_second instead"
            )
        if self.utilisation is not None and not 0 < self.utilisation <= 1:
            raise ConfigurationError(f"utilisation lies in (0, 1], got {self.utilisation}")

    def rate(self, accelerator: str) -> Rate | None:
        """What a device is assumed to do; None for a processor of which nothing is said."""
        if self.flops_per_second is not None:
            return Rate(self.flops_per_second, "as given")
        if accelerator == "cpu" and self.gpu is None and self.utilisation is None:
            return None
        gpu, share = self.gpu or "H100", 0.4 if self.utilisation is None else self.utilisation
        words = f"{100 * share:g} % of the data sheet's dense bfloat16 peak of {gpu}"
        return Rate(share * (peak_flops(gpu) or 0), words)


@dataclass(frozen=True)
class Plan:
    """A run in numbers.

    Attributes:
        stage: which is trained.
        shape: of a batch on one rank.
        accumulate: batches of an optimizer step.
        ranks: processes, one for each GPU.
        sharded: weights are divided among them.
        precision: Lightning's name of it.
        trained, frozen: parameters by group.
        rates: learning rate by group of ``trained``.
        flops: of a batch on one rank.
        held: bytes of a rank throughout.
        stored, recomputing: bytes kept for the backward pass with all activations stored, and with blocks recomputed.
        recomputes: kinds of blocks that this run recomputes.
        steps: optimizer steps, None without an end.
        rate: of a device, None where nothing is assumed.
        clips, shards: of the training data, None where they are not there.
        assumptions: in words.
    """

    stage: Stage
    shape: BatchShape
    accumulate: int
    ranks: int
    sharded: bool
    precision: str
    trained: Mapping[str, int]
    frozen: Mapping[str, int]
    rates: Mapping[str, float]
    flops: StepFlops
    held: Held
    stored: Kept
    recomputing: Kept
    recomputes: frozenset[str]
    steps: int | None
    rate: Rate | None
    clips: int | None = None
    shards: int | None = None
    assumptions: tuple[str, ...] = field(default=())

    @property
    def effective_batch(self) -> int:
        """Clips of an optimizer step."""
        return self.shape.clips * self.accumulate * self.ranks

    @property
    def kept(self) -> Kept:
        return self.recomputing if self.recomputes else self.stored

    @property
    def bytes(self) -> int:
        """Of one GPU at its fullest, as far as it is reckoned."""
        return self.held.total + self.kept_bytes(self.kept)

    def kept_bytes(self, kept: Kept) -> int:
        """Of one GPU, from forward to backward; sharded weights come in their type, without copies."""
        return kept.activations + kept.block + (0 if self.sharded else kept.copies)

    @property
    def step_flops(self) -> int:
        """FLOPs of one GPU in an optimizer step, what is recomputed included."""
        again = self.flops.recomputed if self.recomputes else 0
        return self.accumulate * (self.flops.total + again)

    @property
    def step_seconds(self) -> float | None:
        """Of an optimizer step at the assumed rate."""
        return None if self.rate is None else self.step_flops / self.rate.flops


def make_plan(config: Mapping[str, Any], options: PlanOptions) -> Plan:
    """Plan what ``train.py fit`` would do with a configuration.

    Args:
        config: ``model``, ``data`` and ``trainer`` as in the YAML files, nothing built.
        options: what it does not say.

    Raises:
        ConfigurationError: what contradicts itself, or what no plan can be made of.
        BadDataError: shards that are there and cannot be read.
    """
    model, data, trainer = config["model"], config["data"], config["trainer"]
    said: list[str] = []
    precision = str(trainer.get("precision") or "32-true")
    if precision not in AUTOCAST:
        raise ConfigurationError(f"a plan knows the precisions {', '.join(AUTOCAST)}, got {precision}")
    accumulate = int(trainer.get("accumulate_grad_batches") or 1)
    if accumulate < 1 or int(data["batch_size"]) < 1:
        raise ConfigurationError("batch_size and accumulate_grad_batches are at least 1")
    ranks = _ranks(trainer, said)
    sharded, buckets = _strategy(trainer.get("strategy") or "auto")
    if sharded and (precision == "16-mixed" or trainer.get("inference_mode", True)):
        raise ConfigurationError(
            "sharded training takes precision 32-true or bf16-mixed, and trainer.inference_mode false, as "
            "configs/trainer/fsdp.yaml has it"
        )
    network = _network(model["network"])
    kinds = UNetConfig.checkpointed_kinds(network.unet.config.activation_checkpointing)
    network.unet.set_activation_checkpointing(False)
    stage = Stage(model["stage"])
    trained = apply_stage(network, stage)
    frozen: Counter[str] = Counter()
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            frozen[group_of(name)] += parameter.numel()
    optimizer = OptimizerConfig(**(model.get("optimizer") or {}))
    born = optimizer.structure_multiplier
    shape, manifest = _shape(network, data, options, ranks, said)
    batch, structure = blank_batch(network, shape), stage in (Stage.structure, Stage.everything)
    flops = count_step(network, batch, structure, kinds)
    stored, recomputing = kept_for_backward(
        network, batch, structure, AUTOCAST[precision], kinds or frozenset(BLOCK_KINDS)
    )
    steps = int(trainer.get("max_steps", -1))
    return Plan(
        stage=stage,
        shape=shape,
        accumulate=accumulate,
        ranks=ranks,
        sharded=sharded and ranks > 1,
        precision=precision,
        trained=trained,
        frozen=frozen,
        rates={group: optimizer.lr * (born if group == "structure" else 1) for group in trained},
        flops=flops,
        held=held(
            network,
            average=model.get("ema") is not None,
            half_encoders=model.get("frozen_encoder_precision") == "bf16",
            ranks=ranks,
            sharded=sharded,
            mixed=AUTOCAST[precision] is not None,
            buckets=buckets,
        ),
        stored=stored,
        recomputing=recomputing,
        recomputes=kinds,
        steps=steps if steps >= 0 else None,
        rate=options.rate(str(trainer.get("accelerator"))),
        clips=None if manifest is None else manifest.clips,
        shards=None if manifest is None else len(manifest.shards),
        assumptions=tuple(said),
    )


def _network(config: Mapping[str, Any]) -> ReconXDiffusion:
    """The network on the meta device; where its parts have weights files, without these."""
    described: dict[str, Any] = copy.deepcopy(dict(config))
    parts = described.setdefault("init_args", {})
    for part in parts.values():
        arguments = part.get("init_args") if isinstance(part, dict) else None
        if arguments and arguments.get("weights") is not None:
            arguments |= {"weights": None, "random_init": True}
    if isinstance(parts.get("unet"), dict):
        parts["unet"]["compile"] = False
    try:
        network = build_network(described, "model.network").to("meta")
    except BadWeightsError as error:  # about a configuration here
        raise ConfigurationError(f"no plan can be made of {error}") from error
    for module in network.modules():
        if isinstance(module, FrozenModule):
            module.stand_in(NO_WEIGHTS)
    return network.train()


def _ranks(trainer: Mapping[str, Any], said: list[str]) -> int:
    """Processes of the run."""
    devices, nodes = trainer.get("devices", "auto"), int(trainer.get("num_nodes") or 1)
    if isinstance(devices, list):
        return nodes * len(devices)
    if str(devices) in ("auto", "-1"):
        found = 1 if trainer.get("accelerator") == "cpu" else torch.cuda.device_count()
        said.append(
            f"trainer.devices is {devices}: reckoned with "
            + (f"the {found} of this machine" if found else "1, for this machine has no GPU")
        )
        return nodes * max(found, 1)
    if isinstance(devices, str) and "," in devices:
        return nodes * len([part for part in devices.split(",") if part.strip()])
    return nodes * int(devices)


def _strategy(strategy: Any) -> tuple[bool, bool]:
    """Whether the strategy shards weights, and whether it copies gradients into buckets."""
    name = str(strategy if isinstance(strategy, str) else strategy["class_path"]).rpartition(".")[2]
    arguments = {} if isinstance(strategy, str) else strategy.get("init_args") or {}
    if name == "ShardedStrategy":
        return True, False
    if name in ("auto", "SingleDeviceStrategy", "DDPStrategy") or name.startswith("ddp"):
        return False, not arguments.get("gradient_as_bucket_view", False)
    raise ConfigurationError(f"a plan knows one device, ddp and ShardedStrategy, not trainer.strategy {name}")


def _shape(
    network: nn.Module, data: Mapping[str, Any], options: PlanOptions, ranks: int, said: list[str]
) -> tuple[BatchShape, Manifest | None]:
    """The batch of a rank, and the list of shards where there is one."""
    frames, sides, manifest = options.frames, (options.height, options.width), None
    if (Path(data["train"]) / MANIFEST).is_file():
        stream = ClipStream(data["train"], batch_size=data["batch_size"], world=ranks, points=data["points"])
        stream.require_lanes(data["num_workers"])
        manifest = stream.manifest
        shard = manifest.shards[0]
        raw = next(read_shard(manifest.folder / shard.name, shard, training_members(None)))
        header = decode_header(raw.members, raw.source)
        there = (header.frames, header.cameras.height, header.cameras.width)
        if frames not in (None, there[0]) or sides not in ((None, None), there[1:]):
            raise ConfigurationError(
                f"{data['train']}: its first clip has {there[0]} frames of {there[1]} x {there[2]}, the options say "
                f"{frames or there[0]} of {sides[0] or there[1]} x {sides[1] or there[2]}; leave the options out"
            )
        frames, sides = there[0], there[1:]
    if frames is None or None in sides:
        said.append(f"{data['train']} is not there: the size of its clips is assumed (--frames, --height, --width)")
    height, width = ASSUMED_SIDES if sides == (None, None) else sides
    shape = BatchShape(
        clips=int(data["batch_size"]),
        frames=frames or _queries(network),
        height=int(height or 0),
        width=int(width or 0),
        points=int(data["points"]),
        cached=bool(data.get("cached")),
    )
    return shape, manifest


def _queries(network: Any) -> int:
    """Frames for which the image encoder has queries."""
    frames: int | None = network.image_tokens.resampler.config.video_length
    if frames is None:
        raise ConfigurationError("neither the shards nor the image encoder say how many frames a clip has: give frames")
    return frames
