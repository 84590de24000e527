"""One training step: a batch of clips to the diffusion objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reconx_pl.data.shards.caches import wrong_caches
from reconx_pl.diffusion.conditioning.dropout import Dropped, draw_dropout
from reconx_pl.diffusion.conditioning.render_latents import RenderLatents
from reconx_pl.diffusion.conditioning.structure import structure_points
from reconx_pl.diffusion.sampling.extrapolation import seen_in_batch
from reconx_pl.diffusion.sampling.objective import DiffusionLoss, diffusion_loss
from reconx_pl.errors import ConfigurationError
from reconx_pl.types import ClipBatch

if TYPE_CHECKING:
    from reconx_pl.diffusion.model import ReconXDiffusion


@dataclass(frozen=True)
class RecordedDraws:
    """Random numbers of a training step that are given instead of drawn; None draws.

    Args:
        dropped: which samples lose which condition.
        posterior: [B T, C, h, w] standard normal noise of the latents' posterior, clip by clip.
        t: [B] int64 diffusion steps.
        noise: [B, C, T, h, w] standard normal diffusion noise.
    """

    dropped: Dropped | None = None
    posterior: Tensor | None = None
    t: Tensor | None = None
    noise: Tensor | None = None


def batch_loss(
    network: ReconXDiffusion,
    batch: ClipBatch,
    generator: torch.Generator | None,
    *,
    structure: bool = True,
    drop: bool = True,
    recorded: RecordedDraws | None = None,
    end_condition_frame: Tensor | None = None,
) -> DiffusionLoss:
    """The diffusion objective on a batch of clips (ReconX, IV-D, eq. 12).

    Args:
        batch: clips on the model's device; frames may still be uint8. Where it has caches, these are used and
            no frozen encoder runs; the same numbers are drawn.
        generator: draws condition drops, posterior noise, timesteps and noise, in this order; None where all of
            them are recorded.
        structure: False trains without the structure condition (stage 1).
        drop: False keeps every condition (validation).
        recorded: numbers that are given instead of drawn.
        end_condition_frame: [B] int64 frames of the second condition (``ExtrapolationConfig.draw``); None is the
            last frame of every clip. With structure a clip is then told of the points that its two conditions see,
            and keeps its last frame where these are fewer than structure tokens.

    Raises:
        ConfigurationError: the batch's caches were made by other weights; guidance by rendering and no renders.
    """
    recorded = recorded or RecordedDraws()
    moments, features = _cached(network, batch)
    frames = batch["frames"].float() / 255.0 if "frames" in batch else None  # [B, T, 3, H, W]
    dropped = recorded.dropped
    if dropped is None and drop:
        if generator is None:
            raise ConfigurationError("condition drops need a torch.Generator, or recorded ones")
        dropped = draw_dropout(len(batch["key"]), generator, network.dropout, batch["fps"].device)
    latents = _latents(network, frames, moments, generator, recorded.posterior)  # [B, C, T, h, w]
    points = None
    if structure and network.structure_encoder is not None:
        points = batch["points"]  # [B, N, 3]
        if end_condition_frame is not None:
            factor, tokens = network.autoencoder.factor, network.structure_encoder.config.tokens
            size = latents.shape[-2] * factor, latents.shape[-1] * factor
            points, end_condition_frame = seen_in_batch(batch, end_condition_frame, size, tokens)
        points = structure_points(points, batch["world_to_camera"], network.structure_encoder.config)
    at = latents.shape[2] - 1 if end_condition_frame is None else end_condition_frame.to(latents.device)
    rendered = None
    if network.render is not None:
        rendered = _batch_renders(network, batch, frames, generator, end_condition_frame)
    conditions = network.conditions(
        None if frames is None else frames[:, 0],
        latents[:, :, 0],
        latents[torch.arange(len(latents), device=latents.device), :, at],
        batch["fps"],
        latents.shape[2],
        points,
        batch["caption"],
        dropped,
        features,
        end_condition_frame,
        rendered,
        batch.get("colors"),
    )
    return diffusion_loss(
        lambda x, t: network(x, t, conditions),
        network.schedule,
        latents,
        generator,
        t=recorded.t,
        noise=recorded.noise,
    )


def _batch_renders(
    network: ReconXDiffusion,
    batch: ClipBatch,
    frames: Tensor | None,
    generator: torch.Generator | None,
    end: Tensor | None,
) -> RenderLatents:
    if "renders" not in batch or (frames is None and "views" not in batch):
        raise ConfigurationError(
            f"guidance {network.guidance!r} needs renders of clips {', '.join(batch['key'])} in the batch: "
            "``ReconXModule`` makes them of depth; see diffusion/render_sources.py"
        )
    if frames is None or frames.shape[1] < batch["world_to_camera"].shape[1]:
        photographs = batch["views"].float() / 255.0
    else:
        photographs = frames[:, [0, -1]]
    return network.render_latents(batch["renders"], photographs, generator, end)


def _cached(network: ReconXDiffusion, batch: ClipBatch) -> tuple[Tensor | None, Tensor | None]:
    """Moments [B, T, 2 C, h, w] and features of the first frame [B, M, D] of a batch of caches."""
    if "caches" not in batch:
        return None, None
    caches, wanted = batch["caches"], network.cached_inputs()
    if missing := [name for name in wanted.names if name not in caches]:
        raise wrong_caches(batch.get("folder", "the batch"), missing, caches)
    moments = None if wanted.moments is None else caches[wanted.moments]
    return moments, None if wanted.clip is None else caches[wanted.clip]


def _latents(
    network: ReconXDiffusion,
    frames: Tensor | None,
    moments: Tensor | None,
    generator: torch.Generator | None,
    noise: Tensor | None,
) -> Tensor:
    """[B, C, T, h, w] from the posterior's moments where there are any, else from the frames."""
    if moments is None:
        if frames is None:
            raise ConfigurationError("a batch needs frames, or caches that stand in for them")
        return network.encode(frames, generator, noise)
    latents = network.autoencoder.sample(moments.flatten(0, 1), generator, noise)  # [B T, C, h, w]
    return latents.unflatten(0, moments.shape[:2]).transpose(1, 2).contiguous()
