"""A network without values, and batches for it: what a step costs can be found out before anything is there.

Tensors on the meta device have shapes alone: no weights, no data, no memory and no time to speak of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from reconx_pl.diffusion.autoencoder import PosteriorAutoencoder
from reconx_pl.diffusion.conditioning.dropout import Dropped
from reconx_pl.diffusion.conditioning.frozen import FrozenModule
from reconx_pl.diffusion.conditioning.image_tokens import ClipImageTokens
from reconx_pl.diffusion.model import ReconXDiffusion, RecordedDraws
from reconx_pl.diffusion.weights.building import build_network, network_config
from reconx_pl.errors import ConfigurationError
from reconx_pl.training.stages import Stage, apply_stage
from reconx_pl.types import ClipBatch, ClipRenders, Tensors

NO_WEIGHTS = "0" * 64  # stands for the fingerprint of weights that are not there


@dataclass(frozen=True)
class BatchShape:
    """Shape of a batch on one rank.

    Args:
        clips: B.
        frames: T.
        height, width: H, W in pixels.
        points: N of each cloud.
        cached: caches stand in for frames.
    """

    clips: int
    frames: int
    height: int
    width: int
    points: int
    cached: bool = False

    def __post_init__(self) -> None:
        if min(self.clips, self.height, self.width) < 1 or self.frames < 2 or self.points < 0:
            raise ConfigurationError(
                "a batch has clips of two frames or more with pixels in them, got "
                f"{self.clips} clips of {self.frames} x {self.height} x {self.width} with {self.points} points"
            )


class AnyValue(TorchDispatchMode):
    """Within it a question about a value ("are all points finite?") is answered with yes: there are no values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return True
        return func(*args, **(kwargs or {}))


def build_meta_model(network: ReconXDiffusion, stage: Stage) -> ReconXDiffusion:
    """The same network on the meta device, uncompiled, unsharded, and without recomputation, for a stage.

    Raises:
        ConfigurationError, BadWeightsError: a part of the network cannot say how it was built.
    """
    config = network_config(network)
    config["init_args"]["unet"] |= {"activation_checkpointing": False, "compile": False}
    with torch.random.fork_rng(devices=[]):
        meta_model = build_network(config, "the network").to("meta")
    apply_stage(meta_model, stage)
    own = dict(network.named_modules())
    for name, part in meta_model.named_modules():
        original = own.get(name)
        if isinstance(part, FrozenModule) and isinstance(original, FrozenModule) and original.knows_fingerprint:
            part.stand_in(original.fingerprint())  # caches are named after it
    return meta_model.train()


def blank_batch(network: ReconXDiffusion, shape: BatchShape) -> ClipBatch:
    """A batch of a shape on the meta device.

    Raises:
        ConfigurationError: caches are asked for and the network has no frozen encoders.
    """
    b, t, h, w = shape.clips, shape.frames, shape.height, shape.width
    batch = ClipBatch(
        key=[str(number) for number in range(b)],
        caption=[""] * b,
        world_to_camera=torch.empty(b, t, 4, 4, device="meta"),
        intrinsics=torch.empty(b, t, 3, 3, device="meta"),
        fps=torch.empty(b, device="meta"),
        points=torch.empty(b, shape.points, 3, device="meta"),
    )
    if network.structure_encoder is not None and network.structure_encoder.config.color:
        batch["colors"] = torch.empty(b, shape.points, 3, device="meta")
    seen = t
    if shape.cached:
        wanted = network.cached_inputs()
        seen = len(wanted.frames(t))
        batch["caches"] = caches = {}
        if wanted.moments is not None:
            sides = h // network.autoencoder.factor, w // network.autoencoder.factor
            channels = 2 * network.autoencoder.latent_channels
            caches[wanted.moments] = torch.empty(b, t, channels, *sides, dtype=torch.float16, device="meta")
        if wanted.clip is not None:
            vision = network.image_tokens.encoder.config
            caches[wanted.clip] = torch.empty(b, vision.tokens, vision.width, dtype=torch.float16, device="meta")
    if network.render is not None:
        pooled = 1 if network.render.views == "pooled" else 0  # of two views
        count = len(network.render.sources) + pooled
        color = torch.empty(b, count, t, 3, h, w, device="meta")
        batch["renders"] = ClipRenders(color, torch.empty(b, count, t, h, w, device="meta"))
        batch["views"] = torch.empty(b, 2, 3, h, w, dtype=torch.uint8, device="meta")
    if seen:
        batch["frames"] = torch.empty(b, seen, 3, h, w, dtype=torch.uint8, device="meta")
    return batch


def blank_draws(network: ReconXDiffusion, batch: ClipBatch) -> RecordedDraws:
    """Stand-ins for the random numbers of a step, on the device of the batch."""
    device = batch["fps"].device
    clips, channels, frames, *sides = _latent_shape(network, batch)
    masks = [torch.empty(clips, dtype=torch.bool, device=device) for _ in range(3)]
    posterior = None  # an autoencoder without a posterior draws nothing for it
    if isinstance(network.autoencoder, PosteriorAutoencoder):
        posterior = torch.empty(clips * frames, channels, *sides, device=device)
    steps = torch.empty(clips, dtype=torch.int64, device=device)
    return RecordedDraws(Dropped(*masks), posterior, steps, torch.empty(clips, channels, frames, *sides, device=device))


def _latent_shape(network: ReconXDiffusion, batch: ClipBatch) -> tuple[int, ...]:
    channels: int = network.autoencoder.latent_channels
    moments = network.cached_inputs().moments if "caches" in batch else None
    if moments is not None:
        clips, frames, _, *sides = batch["caches"][moments].shape
    else:
        clips, frames, _, *sides = batch["frames"].shape
        sides = [side // network.autoencoder.factor for side in sides]
    return clips, channels, frames, *sides


def hollow(values: Any, device: str) -> Any:
    """Tensors of the same shapes and types without their values, in nested containers."""

    def emptied(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

    def of(value: Any) -> Any:
        if isinstance(value, Tensors):
            return value.mapped(emptied)
        return emptied(value) if isinstance(value, Tensor) else value

    return tree_map(of, values)


@torch.no_grad()
def remember_constants(network: ReconXDiffusion, batch: ClipBatch) -> None:
    """Let the frozen encoders see what they see once in a run: captions, and the image of no image."""
    with AnyValue():
        text: Any = network.text_tokens
        if isinstance(text, FrozenModule):
            text([network.caption, *(caption or network.caption for caption in batch["caption"])])
            network.text_tokens.null()
        if isinstance(network.image_tokens, ClipImageTokens):
            network.image_tokens.encoder.null()
