"""One whole training step against the original: conditions with drops, noising, the U-Net, the loss, every gradient.

The kit has the original's frozen encoders replaced by stubs, which are built here as its description says. The rest is
our own ``ReconXDiffusion.loss`` from frames to loss, with the kit's random numbers in the place of drawn ones.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from golden_kits import (
    Described,
    Held,
    KitTensors,
    described,
    golden_folder,
    golden_kits,
    not_held,
    read_kit,
    weights_file,
)
from golden_networks import autoencoder_config, stub_vision, unet_config
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from reconx_pl.diffusion.autoencoder import KLAutoencoder
from reconx_pl.diffusion.conditioning.conditions import Conditions
from reconx_pl.diffusion.conditioning.dropout import DropoutConfig, Dropped, dropped_at
from reconx_pl.diffusion.conditioning.image_tokens import ClipImageTokens
from reconx_pl.diffusion.conditioning.resampler import ResamplerConfig
from reconx_pl.diffusion.conditioning.structure import StructureEncoderConfig
from reconx_pl.diffusion.model import ReconXDiffusion, RecordedDraws
from reconx_pl.diffusion.sampling.objective import DiffusionLoss
from reconx_pl.diffusion.sampling.schedule import ScheduleConfig
from reconx_pl.diffusion.weights import from_official_name, load_official_unet, load_unet_weights
from reconx_pl.types import ClipBatch

logger = logging.getLogger(__name__)  # figures: pytest --log-cli-level=INFO

KITS = golden_kits("train_step_*.json")
RESAMPLER = "image_proj_model."
pytestmark = pytest.mark.skipif(not KITS, reason="needs the golden kits train_step_*.json")
each_kit = pytest.mark.parametrize("path", KITS, ids=lambda path: path.stem)


class StubText(nn.Module):
    """The kit's embeddings, looked up by caption."""

    def __init__(self, captions: Sequence[str], tokens: Tensor, empty: Tensor) -> None:
        super().__init__()
        self.table, self.empty = dict(zip(captions, tokens, strict=True)), empty

    def forward(self, captions: Sequence[str]) -> Tensor:
        return torch.stack([self.table[caption] for caption in captions])

    def null(self) -> Tensor:
        return self.empty[None]


class StubEncoder(nn.Module):
    """Adaptive average pooling of a frame in [-1, 1] to cells, each times a matrix [3, E]."""

    def __init__(self, weight: Tensor, cells: tuple[int, int]) -> None:
        super().__init__()
        self.weight, self.cells = weight, cells

    def forward(self, images: Tensor) -> Tensor:
        cells = functional.adaptive_avg_pool2d(images * 2 - 1, self.cells)
        return cells.flatten(2).transpose(1, 2) @ self.weight


@dataclass
class Step:
    """A training step of ours on the kit's batch, and what was seen on the way."""

    info: Described
    kit: KitTensors
    network: ReconXDiffusion
    batch: ClipBatch
    dropped: Dropped
    conditions: Conditions
    noisy: Tensor  # [B, C, T, h, w]
    prediction: Tensor
    result: DiffusionLoss


def own_file(info: Described, part: str) -> Path:
    """The kit that has the weights of a part."""
    folder = golden_folder()
    assert folder is not None
    path = folder / info["weights"][part].split(",")[0]
    if not path.is_file():
        not_held(f"{path.name}, the weights of its {part},", info.kit)
    return path


def cells_of(info: Described) -> tuple[int, int]:
    """Of the stub of the image encoder, which the kit describes in words; the first has 2 x 5."""
    found = re.search(r"(\d+)\s*x\s*(\d+)", info.get("stubs", {}).get("image", "2x5"))
    if not found:
        not_held("the cells of its image encoder", info.kit)
    return int(found[1]), int(found[2])


def build(info: Described, kit: KitTensors, structure: bool = False) -> ReconXDiffusion:
    """The tiny network of the kit; with ``structure`` also our structure branch, gates closed as at birth."""
    config = unet_config(info["unet_config"], structure=structure)
    autoencoder = KLAutoencoder(
        autoencoder_config(info["vae_ddconfig"], info.get("scale_factor")), weights=weights_file(own_file(info, "vae"))
    )
    resampler = ResamplerConfig(**info["resampler_config"])
    image_tokens = ClipImageTokens(stub_vision(resampler.embedding_dim), resampler, random_init=True)
    image_tokens.encoder = StubEncoder(kit["image_stub_weight"], cells_of(info))
    image_tokens.resampler.load_state_dict(kit.under(RESAMPLER), strict=True)
    width = config.context_dim
    network = ReconXDiffusion(
        config,
        autoencoder,
        image_tokens,
        StubText(info["captions"], kit["text_emb"], kit["text_null"]),
        structure=StructureEncoderConfig(points=32, tokens=4, octaves=2, width=width) if structure else None,
        schedule=ScheduleConfig(),
        dropout=DropoutConfig(probability=info["uncond_prob"]),
    )
    unet = load_official_unet(load_file(own_file(info, "unet")), "the kit")
    unet = {key: value.float() for key, value in unet.items() if config.image_gate or not key.endswith(".attn2.alpha")}
    load_unet_weights(network.unet, unet, "the kit")
    return network.eval()


def take_step(path: Path, structure: bool = False, structure_r: float = 1.0) -> Step:
    info, kit = read_kit(path)
    network = build(info, kit, structure)
    count = len(info["captions"])
    frames = kit["video"].transpose(1, 2)  # [B, T, 3, H, W] in [-1, 1]
    batch = ClipBatch(
        key=[str(number) for number in range(count)],
        caption=info["captions"],
        frames=(frames + 1) / 2 * 255,
        world_to_camera=torch.eye(4).expand(*frames.shape[:2], 4, 4),
        intrinsics=torch.eye(3).expand(*frames.shape[:2], 3, 3),
        fps=kit["fps"].float(),
        points=torch.randn(count, 32, 3, generator=torch.Generator().manual_seed(0)),
    )
    r = kit["random_num"]
    dropped = dropped_at(r, torch.full_like(r, structure_r), network.dropout)
    seen: dict[str, Tensor] = {}
    network.unet.register_forward_hook(lambda module, args, out: seen.update(input=args[0], out=out))
    made: list[Conditions] = []
    make = network.conditions
    network.conditions = lambda *args: made.append(make(*args)) or made[-1]
    draws = RecordedDraws(dropped, posterior=kit["posterior_noise"], t=kit["t"], noise=kit["noise"])
    result = network.loss(batch, None, structure=structure, recorded=draws)
    result.loss.backward()
    channels = kit["noise"].shape[1]
    return Step(info, kit, network, batch, dropped, made[0], seen["input"][:, :channels], seen["out"], result)


plain_step = cache(take_step)


def context(conditions: Conditions) -> Tensor:
    """Text and image tokens in one row, as the original hands them on."""
    return torch.cat([conditions.text_tokens, conditions.image_tokens.flatten(1, 2)], dim=1)


def worst(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual.detach() - expected).abs().max())


def trained(step: Step) -> dict[str, Tensor]:
    """Gradients by official name, without the structure branch."""
    unet = {f"unet.{name}": name for name, _ in step.network.unet.named_parameters()}
    found = {}
    for name, parameter in step.network.named_parameters():
        if parameter.grad is not None and "structure" not in name:
            found[name] = parameter.grad
    assert set(unet) - set(found) <= {name for name in unet if "structure" in name}
    return found


def own_name(official: str) -> str:
    if official.startswith(RESAMPLER):
        return f"image_tokens.resampler.{official[len(RESAMPLER) :]}"
    return f"unet.{from_official_name(official)}"


@each_kit
def test_conditions(path: Path) -> None:
    step = plain_step(path)
    kit, conditions = step.kit, step.conditions
    for rows, name, word in ((step.dropped.text, "text", "null"), (step.dropped.image, "image", "zero image")):
        assert rows.tolist() == [row[name] == word for row in step.info["dropped"]]
    found = {
        "interp.c_concat": conditions.concat_latents,
        "interp.c_crossattn": context(conditions),
        "fs": conditions.fps,
    }
    with torch.no_grad():
        z = step.network.encode(step.batch["frames"] / 255, noise=kit["posterior_noise"])
        whole = step.network.conditions(
            step.batch["frames"][:, 0] / 255, z[:, :, 0], z[:, :, -1], step.batch["fps"], z.shape[2], None,
            step.batch["caption"], None,
        )  # fmt: skip
    found |= {"z": z, "nodrop.c_crossattn": context(whole)}
    with Held(kit) as held:
        for name, expected in held.of(found):
            # Of the context's largest entry (3.8): absolutely, the kit's own resampler is 2.6e-6 away from float64.
            allowed = 2e-6 * (float(expected.abs().max()) if "crossattn" in name else 1)
            error = worst(found[name], expected.float())
            logger.info(f"{path.stem}: {name} {error:.1e} of {allowed:.1e} allowed")
            assert error <= allowed, (name, error, allowed)


@each_kit
def test_noising_prediction_and_loss(path: Path) -> None:
    step = plain_step(path)
    loss = step.result.loss.item()
    if "val/loss" in step.info.get("loss_dict", {}):
        assert loss == pytest.approx(step.info["loss_dict"]["val/loss"], rel=1e-5)
    with Held(step.kit) as held:
        for name, ours, allowed in (("step.x_noisy", step.noisy, 5e-6), ("step.unet_out", step.prediction, 1e-4)):
            for _, expected in held.of([name]):
                error = worst(ours, expected)
                logger.info(f"{path.stem}: {name} {error:.1e} of {allowed:.1e} allowed")
                assert error <= allowed, (name, error)
        for _, expected in held.of(["step.loss"]):
            assert loss == pytest.approx(expected.item(), rel=1e-5)


@each_kit
def test_gradients(path: Path) -> None:
    step = plain_step(path)
    found = trained(step)
    with Held(step.kit) as held:
        names = [f"step.grad.{name}" for name in step.kit.cases(r"step\.grad\.(.+)")] or ["step.grad.*"]
        errors = {
            name: worst(found[own_name(name.removeprefix("step.grad."))], value) / float(value.abs().max())
            for name, value in held.of(names)
        }
        largest = max(errors.values(), default=0.0)
        logger.info(f"{path.stem}: {len(errors)} gradients, largest error {largest:.2e} of the largest entry")
        assert largest <= 1e-3, errors
        if "grad_norms" not in step.info:
            held.missing.append("grad_norms")
            return
        norms = {own_name(name): norm for name, norm in step.info["grad_norms"].items()}
        assert norms.keys() == found.keys()  # the frozen encoders get none, everything else gets one
        unet_kit = described(own_file(step.info, "unet").with_suffix(".json"))
        # parameters that a GroupNorm with one channel a group cancels have gradients of rounding errors
        cancelled = {own_name(name) for name in unet_kit["insensitive_parameters"]}
        ratios = {
            name: abs(float(found[name].norm()) - norm) / norm for name, norm in norms.items() if name not in cancelled
        }
        assert len(ratios) > 0.5 * len(norms)
        logger.info(f"{path.stem}: {len(ratios)} of {len(norms)} norms, largest error {max(ratios.values()):.2e}")
        assert max(ratios.values()) <= 1e-3, max(ratios, key=lambda name: ratios[name])
        assert all(float(found[name].norm()) <= 1e-5 * max(norms.values()) for name in cancelled & found.keys())


@each_kit
def test_the_structure_branch_is_born_closed(path: Path) -> None:
    """With the structure condition of a new branch the step is the original's, kept or dropped."""
    if "step.unet_out" not in read_kit(path)[1]:
        not_held("step.unet_out", path.stem)
    for structure_r in (0.0, 1.0):
        step = take_step(path, structure=True, structure_r=structure_r)
        assert step.conditions.structure_tokens is not None and step.conditions.structure_keep is not None
        assert step.conditions.structure_keep.all() == (structure_r == 1.0)
        assert worst(step.prediction, step.kit["step.unet_out"]) <= 1e-4
        if "step.loss" in step.kit:
            assert step.result.loss.item() == pytest.approx(step.kit["step.loss"].item(), rel=1e-5)
        gates = [p.grad for name, p in step.network.named_parameters() if name.endswith("structure_gate")]
        # closed, but not deaf: the gates learn where the condition is kept
        assert gates and all(bool(gate.any()) == (structure_r == 1.0) for gate in gates)
