"""What the generated scene is compared with on the same targets."""

from __future__ import annotations

import torch
from torch import Tensor

from reconx_pl.geometry.cameras import camera_distance
from reconx_pl.geometry.rendering.cloud_view import view_cloud
from reconx_pl.geometry.rendering.fill import fill_holes
from reconx_pl.geometry.rendering.surface import render_surface
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.types import Cameras, PointCloud

METHODS = {
    "reconx": "ReconX: splats fitted to the generated frames",
    "reconx_refined": "ReconX (test poses refined)",
    "generated": "Generated frames themselves",
    "two_views": "Splats from the two input views alone",
    "contexts": "Splats from the context views alone",
    "filled_render": "Rendered depth of the input views, holes filled",
    "filled_render_splats": "Splats fitted to the filled renders",
    "depth_warp": "Context views warped by their depth",
    "nearest_input": "Nearest input view, copied",
    "ceiling": "Splats from the true frames (ceiling)",
}


def nearest_view(targets: Cameras, inputs: Cameras) -> Tensor:
    """Index of the nearest input view of each target: [V]; the first one of equals."""
    return camera_distance(targets, inputs).argmin(dim=1)


def warped_views(known: DepthViews | PointCloud, targets: Cameras, fallback: Tensor) -> tuple[Tensor, list[float]]:
    """Context views as surfaces in other cameras, or the points of a reconstruction as discs; nothing is learned.

    Holes, where nothing falls, are filled from around them.

    Args:
        known: context views with depth, or a cloud.
        targets: V views.
        fallback: [V, 3, H, W], taken for a target into which nothing falls.

    Returns:
        [V, 3, H, W] in [0, 1] on the device of ``known``, and of every target the share of its pixels that are holes.

    Raises:
        BadSceneError: no pixel of the context views has a depth.
    """
    if isinstance(known, DepthViews):
        surface = render_surface(known, targets)
        color, covered = surface.color, surface.coverage
    else:
        seen = view_cloud(known, targets)
        color, covered = seen.color, seen.covered.float()
    share = covered.mean((1, 2))  # [V]
    filled = torch.where((share > 0)[:, None, None, None], fill_holes(color, covered), fallback.to(color))
    return filled, (1 - share).tolist()


def ceiling_split(frames: int) -> tuple[list[int], list[int]]:
    """Frames to fit (even ones and the last, an input view anyway) and to score (the odd ones between)."""
    fitted = sorted({*range(0, frames, 2), frames - 1})
    return fitted, [index for index in range(frames) if index not in fitted]
