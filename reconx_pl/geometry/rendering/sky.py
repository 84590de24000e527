"""Depth that is known to be far, at a distance that arithmetic bears."""

from __future__ import annotations

import torch
from torch import Tensor

from reconx_pl.geometry.rendering.limits import FAR


def finite_depth(depth: Tensor) -> Tensor:
    """Depth [*] with ``limits.FAR`` times its largest finite value in the place of infinity; the rest stays.

    Of sky alone, the largest is taken to be 1.
    """
    sky = depth == torch.inf
    known = torch.isfinite(depth) & (depth > 0)
    largest = depth[known].max() if bool(known.any()) else depth.new_ones(())
    return torch.where(sky, FAR * largest, depth)
