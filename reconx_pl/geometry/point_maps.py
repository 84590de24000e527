"""Point maps to clouds, and clouds back to maps: what leaves an estimator and what enters the structure encoder."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import in_view, project, unproject
from reconx_pl.geometry.farthest_point import farthest_point_order
from reconx_pl.types import Cameras, PointCloud, PointMap

_POOL = 4  # candidates for each point wanted; more changes the coverage little


def point_map_from_depth(depth: Tensor, cameras: Cameras, confidence: Tensor | None = None) -> PointMap:
    """Depth along the optical axis as a point map.

    Args:
        depth: [V, H, W] world units; 0, negative or not finite = none.
        cameras: V views of H x W pixels.
        confidence: [V, H, W] on DUSt3R's scale; None trusts every pixel alike, with 2 = 1 + exp(0).
    """
    valid = torch.isfinite(depth) & (depth > 0)
    depth = torch.where(valid, depth, 0.0)
    points = torch.where(valid[..., None], unproject(depth, cameras), 0.0)
    trust = torch.full_like(depth, 2.0) if confidence is None else confidence
    return PointMap(points, torch.where(valid, trust, 1.0), valid)


def depth_from_point_map(point_map: PointMap, cameras: Cameras) -> Tensor:
    """The reverse of ``point_map_from_depth``: [V, H, W] along the optical axes of ``cameras``, 0 where not valid."""
    _, z = project(point_map.points.flatten(1, 2).to(cameras.world_to_camera), cameras)  # [V, H * W]
    return torch.where(point_map.valid, z.view(point_map.valid.shape).to(point_map.points), 0.0)


def cloud_from_maps(
    point_map: PointMap,
    images: Tensor,
    count: int,
    min_confidence: float = 1.0,
    generator: torch.Generator | None = None,
) -> PointCloud:
    """Merge the views of a point map into one coloured cloud in farthest-point order.

    Args:
        point_map: V views.
        images: [V, 3, H, W] in [0, 1], the colours.
        count: points wanted. A map with fewer usable pixels gives them all: the cloud is never padded.
        min_confidence: pixels below are left out (DUSt3R's scale, 1 is the floor).
        generator: a CPU generator that thins the pixels to four times ``count`` before the sampling; None takes evenly
            spaced pixels instead.

    Returns:
        at most ``count`` points, world units, on the device of the point map.

    Raises:
        BadSceneError: no pixel is valid and confident enough.
    """
    views, height, width = point_map.confidence.shape
    if tuple(images.shape) != (views, 3, height, width):
        raise ConfigurationError(
            f"images {tuple(images.shape)} do not go with a point map of {views} views of {height} x {width} pixels"
        )
    if count < 1:
        raise ConfigurationError(f"a cloud needs at least one point, not {count}")
    usable = point_map.valid & (point_map.confidence >= min_confidence)  # [V, H, W]
    index = usable.flatten().nonzero().squeeze(1)
    if len(index) == 0:
        raise BadSceneError(
            f"no pixel of the point map is valid with a confidence of at least {min_confidence:g}; "
            "lower min_confidence or use views that overlap"
        )
    pool = min(len(index), _POOL * count)
    if pool < len(index):
        if generator is None:
            chosen = torch.linspace(0, len(index) - 1, pool, dtype=torch.float64).round().long()
        else:
            chosen = torch.randperm(len(index), generator=generator)[:pool]
        index = index[chosen.to(index.device)]
    points = point_map.points.reshape(-1, 3)[index]
    colors = images.permute(0, 2, 3, 1).reshape(-1, 3)[index]
    order = farthest_point_order(points, min(count, pool))
    return PointCloud(points[order], colors[order], point_map.confidence.flatten()[index][order])


def with_unexplained(dense: PointCloud, sparse: PointCloud, point_map: PointMap, cameras: Cameras) -> PointCloud:
    """``dense``, points of the map, and those of ``sparse`` that tell what the map does not (``unexplained``)."""
    alone = sparse[unexplained(sparse.points.to(point_map.points), point_map, cameras).to(sparse.points.device)]
    return PointCloud(
        *(
            torch.cat([part, more.to(part)])
            for part, more in (
                (dense.points, alone.points),
                (dense.colors, alone.colors),
                (dense.confidence, alone.confidence),
            )
        )
    )


def unexplained(points: Tensor, point_map: PointMap, cameras: Cameras, tolerance: float = 0.05) -> Tensor:
    """Which points tell what a point map does not: [N] bool.

    A point is left out where a view has a surface at its depth already, or behind it, so that it hangs in the air.

    Args:
        points: [N, 3] world units.
        point_map: V views of H x W pixels.
        cameras: of the point map.
        tolerance: share of the depth by which point and surface may differ.
    """
    depth = depth_from_point_map(point_map, cameras)  # [V, H, W]
    cameras = cameras.to(depth.device, depth.dtype)
    pixels, z = project(points, cameras)  # [V, N, 2], [V, N]
    size = torch.tensor([cameras.width, cameras.height], device=depth.device)
    at = torch.minimum(pixels.clamp(min=0).long(), size - 1)
    views = torch.arange(len(depth), device=depth.device)[:, None]
    surface = depth[views, at[..., 1], at[..., 0]]  # [V, N]
    return ~(in_view(points, cameras) & (surface > 0) & (z <= surface * (1 + tolerance))).any(dim=0)


def neighbour_distance(points: Tensor, neighbours: int = 3) -> Tensor:
    """Mean distance of every point to its nearest others: [N], world units; 0 for a cloud of one point."""
    if len(points) < 2:
        return points.new_zeros(len(points))
    xyz = points.detach().cpu().double().numpy()
    distance, _ = cKDTree(xyz).query(xyz, k=min(neighbours + 1, len(xyz)))
    return torch.from_numpy(np.ascontiguousarray(distance[:, 1:].mean(1))).to(points)
