"""By what the depth of a view is multiplied, so that it goes with points that bundle adjustment found."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reconx_pl.geometry.refinement.bundle import Bundle
from reconx_pl.geometry.refinement.tracks import depth_at, parallax, reprojection

_ENOUGH = 20  # (ours) points of a view, whose median ratio is then known well


def depth_factors(bundle: Bundle, depth: Tensor, min_angle: float) -> Tensor:
    """Of each view the median, over its points, of their depth over that of the map: [V] float64, NaN if unknown.

    Unknown is a view with fewer than 20 points that have depth there, and rays at ``min_angle`` degrees at least.

    Args:
        bundle: of V views.
        depth: [V, H, W] along the optical axis; 0 = none.
        min_angle: a point whose rays are nearly parallel has no certain depth.
    """
    _, true = reprojection(bundle.tracks, bundle.cameras, bundle.points)
    mapped = depth_at(bundle.tracks, depth)
    wide = parallax(bundle.tracks, bundle.cameras, bundle.points) >= min_angle
    usable = (mapped > 0) & (true > 0) & wide[bundle.tracks.points]
    factors = torch.full((len(depth),), torch.nan, dtype=torch.float64)
    for view in range(len(depth)):
        here = usable & (bundle.tracks.views == view)
        if here.sum() >= _ENOUGH:
            factors[view] = float(np.median(true[here] / mapped[here]))
    return factors
