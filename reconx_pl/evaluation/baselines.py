"""What the generated scene is compared with on the same targets."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from reconx_pl.geometry.cameras import camera_distance
from reconx_pl.geometry.point_maps import view_cloud
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
PIXEL_RADIUS, POINT_RADIUS = 2, 4  # pixels, the largest disc: of a pixel of a depth map, of a point of a cloud


def nearest_view(targets: Cameras, inputs: Cameras) -> Tensor:
    """Index of the nearest input view of each target: [V]; the first one of equals."""
    return camera_distance(targets, inputs).argmin(dim=1)


def warped_views(cloud: PointCloud, targets: Cameras, dense: bool, fallback: Tensor) -> tuple[Tensor, list[float]]:
    """Context views moved to other cameras by their depth, with a z-buffer (``view_cloud``); nothing is learned.

    Holes, where no point falls, take the colour of the nearest pixel that has one.

    Args:
        cloud: a point for every pixel with depth of every context view, or the points of a reconstruction.
        targets: V views.
        dense: whether it is the former.
        fallback: [V, 3, H, W], taken for a target into which no point falls.

    Returns:
        [V, 3, H, W] in [0, 1] on the device of the cloud, and of every target the share of its pixels that are holes.
    """
    seen = view_cloud(cloud, targets, PIXEL_RADIUS if dense else POINT_RADIUS)
    images, shares = [], []
    for color, covered, other in zip(seen.color, seen.covered, fallback, strict=True):
        shares.append(1 - float(covered.float().mean()))
        if not bool(covered.any()):
            images.append(other.to(color))
            continue
        rows, columns = distance_transform_edt(~covered.cpu().numpy(), return_distances=False, return_indices=True)
        at = [torch.from_numpy(np.ascontiguousarray(part)).long().to(color.device) for part in (rows, columns)]
        images.append(color[:, at[0], at[1]])
    return torch.stack(images), shares


def ceiling_split(frames: int) -> tuple[list[int], list[int]]:
    """Frames to fit (even ones and the last, an input view anyway) and to score (the odd ones between)."""
    fitted = sorted({*range(0, frames, 2), frames - 1})
    return fitted, [index for index in range(frames) if index not in fitted]
