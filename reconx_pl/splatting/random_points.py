"""Points that know nothing of the scene: where Gaussians start in the ablation of the DUSt3R initialisation."""

from __future__ import annotations

import torch

from reconx_pl.errors import BadSceneError
from reconx_pl.geometry.cameras import unproject
from reconx_pl.types import Cameras, PointCloud

NEAR, FAR = 0.5, 20.0  # depths, in greatest distances between two of the cameras


def random_points(cameras: Cameras, count: int, generator: torch.Generator | None = None) -> PointCloud:
    """Points of random colour at random places that the cameras see (PAPER, table V: without DUSt3R initialisation).

    The paper does not say how it starts without DUSt3R. (ours) Each point falls on an even place of the image of one of
    the cameras, at a depth whose logarithm is even between 0.5 and 20 times the greatest distance between two of them:
    what two views can triangulate. No more is known of a scene of which only poses are.

    Args:
        cameras: V >= 2 views.
        count: N.
        generator: CPU generator; None = seeded with 0.

    Returns:
        N points with confidence 1, on the device of the cameras.

    Raises:
        BadSceneError: all cameras stand at one place, so that nothing tells how large the scene is.
    """
    generator = generator or torch.Generator().manual_seed(0)
    centers = cameras.centers
    reach = float(torch.cdist(centers.double(), centers.double()).max())
    if not reach > 0:
        raise BadSceneError("all cameras stand at one place: nothing tells how far random points may lie")
    draws = torch.rand(count, 6, generator=generator)
    depth = reach * NEAR * (FAR / NEAR) ** draws[:, 0]
    views = torch.randint(len(cameras), (count,), generator=generator)
    rows = (draws[:, 1] * cameras.height).long().clamp(max=cameras.height - 1)
    columns = (draws[:, 2] * cameras.width).long().clamp(max=cameras.width - 1)
    device = cameras.world_to_camera.device
    points = torch.empty(count, 3, device=device)
    for view in range(len(cameras)):
        own = (views == view).to(device)
        rays = unproject(torch.ones(1, cameras.height, cameras.width, device=device), cameras[[view]])[0]
        directions = rays[rows.to(device)[own], columns.to(device)[own]] - centers[view]  # of depth 1
        points[own] = centers[view] + depth.to(device)[own, None] * directions
    return PointCloud(points, draws[:, 3:].to(device), torch.ones(count, device=device))
