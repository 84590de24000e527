"""Which points of a cloud given views see: what they hide from each other counts, as far as points can tell."""

from __future__ import annotations

import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError
from reconx_pl.geometry.cameras import in_view, project, resize_cameras
from reconx_pl.geometry.rendering.cloud_view import view_cloud
from reconx_pl.types import Cameras, PointCloud


def visible_points(points: Tensor, cameras: Cameras, tolerance: float = 0.1) -> Tensor:
    """Whether each view sees each point: inside its image, and not behind the surface that the points themselves make.

    That surface is ``view_cloud``'s, on as many cells as there are points, so that its discs leave no holes. It knows
    nothing of surfaces that no point lies on: nothing hides what is behind an object whose points are missing.

    Args:
        points: [N, 3] world units.
        cameras: V views.
        tolerance: share of the depth by which a point may lie behind the surface. Slanted surfaces need some of it,
            since a cell of the depth map has one depth.

    Returns:
        [V, N] bool, on the device of ``points``.
    """
    inside = in_view(points, cameras)
    pixels = cameras.height * cameras.width
    scale = min(1.0, (len(points) / pixels) ** 0.5)
    coarse = resize_cameras(cameras, max(1, round(scale * cameras.height)), max(1, round(scale * cameras.width)))
    colorless = PointCloud(points, torch.zeros_like(points), torch.ones_like(points[:, 0]))
    surface = view_cloud(colorless, coarse)
    at, z = project(points, coarse)  # [V, N, 2], [V, N]
    at = torch.where(inside[..., None], at, 0.0).long()
    view = torch.arange(len(cameras), device=points.device)[:, None]
    row, column = at[..., 1].clamp(max=coarse.height - 1), at[..., 0].clamp(max=coarse.width - 1)
    depth, covered = surface.depth[view, row, column], surface.covered[view, row, column]  # [V, N]
    return inside & (~covered | (z <= depth * (1 + tolerance)))


def seen_by_any(points: Tensor, cameras: Cameras) -> Tensor:
    """Indices [n] of the points [N, 3] that one of the views sees, ascending: in the order of the cloud.

    Of a farthest-point order the points that are left are still at least as far from all before them as they were.
    """
    return visible_points(points, cameras).any(dim=0).nonzero().squeeze(1)


def repeated(points: Tensor, count: int) -> Tensor:
    """Points [n, *], or their numbers [n], to [count, *]: the first ``count``, or all of them over and over.

    A repeated point is at distance 0 from one before it, so that a farthest-point order has it last, as here.

    Raises:
        BadSceneError: there is none.
    """
    if len(points) == 0:
        raise BadSceneError("there is no point to repeat")
    return points[torch.arange(count, device=points.device) % len(points)]
