"""Which points hit which pixels, if every point is a disc in the image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_AT_ONCE = 2**23  # pairs of a point and a pixel that are looked at together: bounds the memory


class DiscHits(NamedTuple):
    """P pairs of a pixel and a disc that has its centre, in the order of the points."""

    cell: Tensor  # [P] row * width + column
    point: Tensor  # [P]
    gap: Tensor  # [P] pixels, from the centre of the disc to that of the pixel


def disc_hits(pixels: Tensor, radius: Tensor, drawn: Tensor, height: int, width: int, reach: int) -> DiscHits:
    """Find the pixels whose centres lie in discs or on their rims.

    Args:
        pixels: [N, 2] as (x, y), centres of the discs, corner of the image at (0, 0).
        radius: [N] pixels, at most ``reach``.
        drawn: [N] bool, which discs there are.
        height: image rows, pixels.
        width: image columns, pixels.
        reach: at least the largest radius, pixels.
    """
    near = (pixels > -reach).all(-1) & (pixels[:, 0] < width + reach) & (pixels[:, 1] < height + reach)
    index = (drawn & near & torch.isfinite(pixels).all(-1)).nonzero().squeeze(1)
    steps = torch.arange(-reach, reach + 1, device=pixels.device)
    offsets = torch.cartesian_prod(steps, steps)  # [O, 2] as (x, y)
    parts = index.split(max(1, _AT_ONCE // len(offsets)))
    found = [_hits(pixels[part], radius[part], part, offsets, height, width) for part in parts]
    return DiscHits(*(torch.cat(each) for each in zip(*found, strict=True)))


def _hits(pixels: Tensor, radius: Tensor, index: Tensor, offsets: Tensor, height: int, width: int) -> DiscHits:
    target = pixels.floor().long()[:, None] + offsets  # [n, O, 2]
    gap = (target + 0.5 - pixels[:, None]).norm(dim=-1)  # [n, O]
    inside = (target >= 0).all(-1) & (target[..., 0] < width) & (target[..., 1] < height)
    row, column = (inside & (gap <= radius[:, None])).nonzero(as_tuple=True)
    cell = target[row, column, 1] * width + target[row, column, 0]
    return DiscHits(cell, index[row], gap[row, column])
