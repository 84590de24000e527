"""A cloud as surfaces: what an estimator needs to know of the points that each view sees."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from reconx_pl.geometry.cameras import project
from reconx_pl.geometry.point_maps import neighbour_distance
from reconx_pl.geometry.rendering.discs import disc_hits
from reconx_pl.types import Cameras, PointCloud


class CloudView(NamedTuple):
    """A cloud as each view sees it. Where ``covered`` is False the maps are zero."""

    depth: Tensor  # [V, H, W] world units, of the nearest surface
    color: Tensor  # [V, 3, H, W] in [0, 1]
    confidence: Tensor  # [V, H, W], of the points seen
    covered: Tensor  # [V, H, W] bool


def view_cloud(cloud: PointCloud, cameras: Cameras, max_radius: int = 4, tolerance: float = 0.05) -> CloudView:
    """Draw a cloud into views as small z-buffered discs, each as large as the gap to its neighbours.

    Args:
        cloud: N points.
        cameras: V views.
        max_radius: largest radius of a disc, pixels.
        tolerance: discs within this share of the nearest depth are one surface and are averaged.

    Returns:
        depth, colour and confidence of the nearest surface at every pixel.
    """
    views, height, width = len(cameras), cameras.height, cameras.width
    device = cloud.points.device
    pixels, depth = project(cloud.points, cameras)  # [V, N, 2], [V, N]
    focal = 0.5 * (cameras.intrinsics[:, 0, 0] + cameras.intrinsics[:, 1, 1])  # [V]
    # a disc overlaps its neighbours a little, so that slanted surfaces have no holes
    radius = (0.6 * focal[:, None] * neighbour_distance(cloud.points) / depth.clamp(min=1e-6) + 0.4).clamp(
        0.5, max_radius
    )
    payload = torch.cat([cloud.colors, cloud.confidence[:, None]], dim=1)  # [N, 4]
    out_depth = torch.zeros(views, height * width, device=device)
    out_payload = torch.zeros(views, height * width, 4, device=device)
    covered = torch.zeros(views, height * width, dtype=torch.bool, device=device)
    for view in range(views):
        drawn = depth[view] > 1e-6
        cell, point, gap = disc_hits(pixels[view], radius[view], drawn, height, width, max_radius)
        z = depth[view, point].float()
        nearest = torch.full((height * width,), torch.inf, device=device).scatter_reduce(0, cell, z, "amin")
        front = z <= nearest[cell] * (1 + tolerance)
        # near its centre a disc knows the colour best
        weight = torch.exp(-0.5 * (gap.float() / (0.5 * radius[view, point].float())) ** 2) * front
        total = torch.zeros(height * width, device=device).index_add(0, cell, weight)
        covered[view] = total > 0
        divisor = torch.where(total > 0, total, 1.0)
        out_depth[view] = torch.zeros_like(total).index_add(0, cell, weight * z) / divisor
        summed = torch.zeros(height * width, 4, device=device)
        out_payload[view] = summed.index_add(0, cell, weight[:, None] * payload[point].float()) / divisor[:, None]
    image = out_payload.view(views, height, width, 4)
    return CloudView(
        out_depth.view(views, height, width),
        image[..., :3].permute(0, 3, 1, 2),
        image[..., 3],
        covered.view(views, height, width),
    )
