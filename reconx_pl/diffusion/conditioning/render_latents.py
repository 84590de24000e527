"""Renders of clips to what the U-Net is told of them: condition latents, further channels, the start of a residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from reconx_pl.diffusion.conditioning.render_config import RenderConfig
from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.rendering.fill import fill_holes
from reconx_pl.types import ClipRenders

COVERED = 0.5  # of a pixel, from which it counts as covered (ours)


class RenderLatents(NamedTuple):
    """What the renders of B clips put into the U-Net.

    Attributes:
        concat: [B, C, T, h, w] the condition latents; None where they are those of the photographs alone.
        more: [B, E, T, h, w] further input channels, latents and coverage of each source; None without.
        base: [B, C, T, h, w] what the prediction is added to; None without a residual.
    """

    concat: Tensor | None
    more: Tensor | None
    base: Tensor | None


def render_latents(
    renders: ClipRenders,
    photographs: Tensor,
    places: Tensor,
    config: RenderConfig,
    encode: Callable[[Tensor], Tensor],
    factor: int,
) -> RenderLatents:
    """Encode renders, with the photographs in their places.

    Args:
        renders: of B clips of T frames.
        photographs: [B, 2, 3, H, W] in [0, 1], first frame and second known one.
        places: [B] int64 frame of the second one; the first is frame 0.
        config: how they reach the network.
        encode: frames [B, T, 3, H, W] to latents [B, C, T, h, w].
        factor: image rows per latent row.

    Raises:
        ConfigurationError: renders that do not go with the configuration or the photographs.
    """
    sources = _by_source(renders, config)
    color, coverage = _with_photographs(renders, photographs, places)
    mean: list[Tensor] = []
    parts: list[Tensor] = []
    for name, source in zip(config.sources, sources, strict=True):
        pooled = config.views == "pooled" and name == "depth"
        seen = [(color[:, one], coverage[:, one]) for one in source]  # [B, T, 3, H, W], [B, T, H, W]
        whole = _shared(color, coverage, source[0]) if config.holes == "shared" else None
        latents = [_latents(*each, config, encode, factor) for each in ([whole] if whole is not None else seen)]
        together = _pooled(latents, [_min_pooled(c, factor) for _, c in seen]) if pooled else latents[0]
        covered = torch.stack([c for _, c in seen]).amax(0)
        parts.append(together)
        if config.channels == "append":
            shares = functional.pixel_unshuffle(covered[:, :, None] * 2 - 1, factor)  # [B, T, factor^2, h, w]
            parts.append(shares.transpose(1, 2).to(together))
        if config.residual:
            same = config.holes in ("filled", "shared") and not pooled
            mean.append(together if same else encode(_filled(seen)))
    base = torch.stack(mean).mean(0) if mean else None
    if config.channels == "append":
        return RenderLatents(None, torch.cat(parts, dim=1), base)
    return RenderLatents(parts[0], None, base)


def _by_source(renders: ClipRenders, config: RenderConfig) -> list[range]:
    """Numbers of the renders of each source; the views of a pooled one are several."""
    count, others = renders.color.shape[1], len(config.sources) - 1
    pooled = count - others if config.views == "pooled" else 1
    sizes = [pooled if source == "depth" else 1 for source in config.sources]
    if sum(sizes) != count or pooled < 1:
        raise ConfigurationError(
            f"{count} renders do not go with render.sources {list(config.sources)} and views {config.views!r}"
        )
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def _with_photographs(renders: ClipRenders, photographs: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    if photographs.shape[-2:] != renders.color.shape[-2:] or len(photographs) != len(renders.color):
        raise ConfigurationError(
            f"renders {tuple(renders.color.shape)} do not go with photographs {tuple(photographs.shape)}"
        )
    color, coverage = renders.color.clone(), renders.coverage.clone()
    clips = torch.arange(len(color), device=color.device)
    for view, frame in ((0, torch.zeros_like(places)), (1, places)):
        # an index of two tensors around a slice: [B, R, 3, H, W]
        color[clips, :, frame] = photographs[:, None, view].to(color)
        coverage[clips, :, frame] = 1.0
    return color, coverage


def _latents(
    color: Tensor, coverage: Tensor, config: RenderConfig, encode: Callable[[Tensor], Tensor], factor: int
) -> Tensor:
    if config.holes in ("filled", "shared"):
        return encode(_fill(color, coverage))
    latents = encode(color * coverage[:, :, None])
    if config.holes == "masked":
        latents = latents * _min_pooled(coverage, factor)[:, None].to(latents)
    return latents


def _shared(color: Tensor, coverage: Tensor, own: int) -> tuple[Tensor, Tensor]:
    """One of renders [B, R, T, ...] with its holes as the others have them, in their order."""
    order = [own, *(other for other in range(color.shape[1]) if other != own)]
    mixed, known = torch.zeros_like(color[:, own]), torch.zeros_like(coverage[:, own])
    for source in order:
        share = (1 - known) * _known(coverage[:, source])
        mixed += share[:, :, None] * color[:, source]
        known += share
    return mixed / known.clamp(min=1e-6)[:, :, None], COVERED * known


def _known(coverage: Tensor) -> Tensor:
    return (coverage / COVERED).clamp(max=1)


def _filled(seen: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The renders of one source in one picture, holes filled."""
    if len(seen) == 1:
        return _fill(*seen[0])
    total = torch.stack([coverage for _, coverage in seen]).sum(0)
    mixed = torch.stack([color * coverage[:, :, None] for color, coverage in seen]).sum(0)
    return _fill(mixed / total.clamp(min=1e-6)[:, :, None], total)


def _fill(color: Tensor, coverage: Tensor) -> Tensor:
    """Holes filled from around. From half coverage on a pixel is left to its render, since its colour is known there.

    (Gaussians cover a wall by 0.97; filling up the rest from around would blur it.)
    """
    known = _known(coverage)
    return fill_holes(color * known[:, :, None], known)


def _min_pooled(coverage: Tensor, factor: int) -> Tensor:
    """[B, T, H, W] -> [B, T, h, w]: 1 where every pixel of a latent is covered, else 0."""
    missing = (coverage < COVERED).float()
    return 1 - functional.max_pool2d(missing, factor)


def _pooled(latents: list[Tensor], masks: list[Tensor]) -> Tensor:
    """Maximum over the views that cover a latent, 0 where none does."""
    hidden = [torch.where(mask[:, None] > 0, one, -torch.inf) for one, mask in zip(latents, masks, strict=True)]
    best = torch.stack(hidden).amax(0)
    return torch.where(torch.isfinite(best), best, 0.0)
