"""Frames keep what renders show, but where the network clearly says otherwise."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

SIDE = 3  # latents: over so many rows and columns the strength of a residual, and what is open, is taken


def kept_renders(latents: Tensor, base: Tensor, floor: float, confirmed: Tensor | None = None) -> Tensor:
    """Clean latents [B, C, T, h, w] whose residuals to the renders are shrunk where they do more harm than good.

    A residual is what the network adds to the renders. Its errors have about the same strength everywhere, and what is
    to be mended is stronger. So a residual r is multiplied by max(0, 1 - floor² / mean(r²)), the local Wiener filter
    (Lee 1980), with the mean over channels and ``SIDE`` x ``SIDE`` latents. Where all pixels around are confirmed,
    nothing is added at all.

    Args:
        latents: as sampled.
        base: [B, C, T, h, w] latents of the renders.
        floor: strength of the errors, root of the mean square, in units of the latents.
        confirmed: [B, T, H, W] pixels that the photographs confirm (``confirmed_pixels``); None for none.
    """
    residual = latents - base
    power = _around(residual.square().mean(1))
    share = (1 - floor**2 / power.clamp_min(1e-12)).clamp_min(0)
    if confirmed is not None:
        free = F.adaptive_avg_pool2d(1 - confirmed.to(share), (share.shape[-2], share.shape[-1]))
        share = share * (2 * _around(free)).clamp_max(1)
    return base + residual * share[:, None]


def _around(maps: Tensor) -> Tensor:  # [B, T, h, w] -> means over SIDE x SIDE
    return F.avg_pool2d(maps, SIDE, 1, SIDE // 2, count_include_pad=False)
