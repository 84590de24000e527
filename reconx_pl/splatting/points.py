"""The points that a fit starts from: chosen from point maps, filtered by confidence, thinned or filled to a number."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import unproject
from reconx_pl.types import Cameras, PointCloud, PointMap

_LOG = logging.getLogger(__name__)

Thinning = Literal["random", "voxel"]
_BISECTIONS = 24  # of the edge of a cell; each halves the interval of its logarithm
_NEIGHBOURS = 3  # of a point, between which and itself midpoints may lie
_REACH = 2.5  # times a point's median distance to them; a farther one most likely lies on another surface

NEAR, FAR = 0.5, 20.0  # depths of random points, in greatest distances between two of the cameras


@dataclass(frozen=True)
class PointsConfig:
    """Which points become Gaussians.

    Args:
        views: "ends" takes the maps of the first and the last frame (ReconX, V-A), "all" those of every frame.
        min_confidence: points below are left out, on DUSt3R's scale, where 1 is the floor and keeps all.
        budget: most points; more are thinned.
        thinning: "random" keeps a random share, so that near surfaces, which fill more pixels, keep more points;
            "voxel" keeps one point a cubic cell, the most confident one, with cells as small as the budget allows,
            so that points are spread evenly over the world.
        at_least: a cloud with fewer points is filled up with points half-way between near neighbours (``fill``), as
            nothing is densified later; 0 leaves it as it is. For the few thousand points of structure from motion.
        random: as many points, at random places of random colour (``random_points``): the ablation of the DUSt3R
            initialisation.
    """

    views: Literal["ends", "all"] = "ends"
    min_confidence: float = 1.0
    budget: int = 200_000
    thinning: Thinning = "random"
    at_least: int = 0
    random: bool = False

    def __post_init__(self) -> None:
        if self.views not in ("ends", "all"):
            raise ConfigurationError(f"points of views {self.views!r}: choose 'ends' or 'all'")
        if self.thinning not in ("random", "voxel"):
            raise ConfigurationError(f"thinning {self.thinning!r}: choose 'random' or 'voxel'")
        if self.budget < 4:
            raise ConfigurationError(f"a budget of {self.budget} points is too small; a fit needs at least 4")
        if not 0 <= self.at_least <= self.budget:
            raise ConfigurationError(f"at_least {self.at_least} is not within 0 and the budget of {self.budget} points")
        if not self.min_confidence >= 0:
            raise ConfigurationError(f"min_confidence must be a number >= 0, got {self.min_confidence}")


def points_from_maps(
    point_map: PointMap, images: Tensor, config: PointsConfig | None = None, generator: torch.Generator | None = None
) -> PointCloud:
    """One point a valid pixel of the chosen views, filtered and thinned.

    Args:
        point_map: V views in one world: of a global alignment, or of known depth.
        images: [V, 3, H, W] in [0, 1], the colours.
        config: see ``PointsConfig``.
        generator: CPU generator of random thinning; None = seeded with 0.

    Raises:
        BadSceneError: no pixel is valid and confident enough, or points are NaN or infinite.
        ConfigurationError: images that do not go with the maps.
    """
    config = config or PointsConfig()
    if tuple(images.shape) != (len(point_map.valid), 3, *point_map.valid.shape[1:]):
        raise ConfigurationError(
            f"images {tuple(images.shape)} do not go with point maps of {tuple(point_map.valid.shape)} (V, H, W)"
        )
    ends = sorted({0, len(images) - 1})
    chosen = ends if config.views == "ends" else list(range(len(images)))
    valid = point_map.valid[chosen]
    cloud = PointCloud(
        point_map.points[chosen][valid],
        images[chosen].permute(0, 2, 3, 1)[valid],
        point_map.confidence[chosen][valid],
    )
    return select_points(cloud, config, generator)


def select_points(
    cloud: PointCloud, config: PointsConfig | None = None, generator: torch.Generator | None = None
) -> PointCloud:
    """The cloud without its doubtful points, thinned to the budget or filled; says in the log what was done.

    Args:
        cloud: N points; their order is kept.
        config: see ``PointsConfig``; its ``views`` mean nothing here.
        generator: CPU generator of random thinning; None = seeded with 0.

    Raises:
        BadSceneError: the cloud is empty, has NaN or infinite values, or no point is confident enough.
    """
    config = config or PointsConfig()
    if len(cloud) == 0:
        raise BadSceneError("the cloud has no points; reconstruct the scene again, or use views that overlap")
    finite = torch.isfinite(torch.cat([cloud.points, cloud.colors, cloud.confidence[:, None]], dim=1)).all(dim=1)
    if not bool(finite.all()):
        raise BadSceneError(
            f"{int((~finite).sum())} of {len(cloud)} points have NaN or infinite values; reconstruct the scene again, "
            "or drop them"
        )
    confident = cloud.confidence >= config.min_confidence
    if not bool(confident.any()):
        raise BadSceneError(
            f"none of {len(cloud)} points has a confidence of {config.min_confidence:g} (the highest is "
            f"{float(cloud.confidence.max()):g}); lower min_confidence"
        )
    kept = cloud[confident]
    thinned = thin(kept, config.budget, config.thinning, generator)
    if len(thinned) < len(cloud):
        _LOG.info(
            "%d of %d points: %d below confidence %g, %d thinned away (%s)",
            len(thinned), len(cloud), len(cloud) - len(kept), config.min_confidence, len(kept) - len(thinned),
            config.thinning,
        )  # fmt: skip
    filled = fill(thinned, config.at_least)
    if len(filled) > len(thinned):
        _LOG.info("%d points filled up to %d with midpoints of neighbours", len(thinned), len(filled))
    return filled


def fill(cloud: PointCloud, count: int) -> PointCloud:
    """The cloud with points added half-way between neighbours, in rounds, until there are ``count``.

    A point and each of its three nearest get a midpoint unless they are farther apart than 2.5 times that point's
    median distance to its nearest, so that surfaces are filled and gaps between them are not. Colours are averaged; of
    the confidences the lower one counts. In the last round evenly spaced midpoints are taken.

    Args:
        cloud: N points, finite; they come first in the result.
        count: points wanted. A cloud of one place, or of fewer than 2 points, stays as it is.
    """
    parts = (cloud.points, cloud.colors, cloud.confidence)
    xyz, colors, confidence = (part.detach().cpu().numpy() for part in parts)
    while 2 <= len(xyz) < count:
        distance, near = cKDTree(xyz).query(xyz, k=min(_NEIGHBOURS + 1, len(xyz)))
        distance, near = distance[:, 1:], near[:, 1:]
        close = (distance > 0) & (distance <= _REACH * np.median(distance, axis=1, keepdims=True))
        pairs = np.stack([np.broadcast_to(np.arange(len(xyz))[:, None], near.shape)[close], near[close]], axis=1)
        pairs = np.unique(np.sort(pairs, axis=1), axis=0)
        if len(pairs) == 0:
            break
        wanted = min(len(pairs), count - len(xyz))
        one, other = pairs[np.linspace(0, len(pairs) - 1, wanted).round().astype(int)].T
        xyz = np.concatenate([xyz, (xyz[one] + xyz[other]) / 2])
        colors = np.concatenate([colors, (colors[one] + colors[other]) / 2])
        confidence = np.concatenate([confidence, np.minimum(confidence[one], confidence[other])])
    return PointCloud(*(torch.from_numpy(a).to(b) for a, b in zip((xyz, colors, confidence), parts, strict=True)))


def thin(
    cloud: PointCloud, budget: int, how: Thinning = "random", generator: torch.Generator | None = None
) -> PointCloud:
    """At most ``budget`` points of a cloud, in their order. See ``PointsConfig.thinning``.

    Args:
        cloud: N points, finite.
        budget: most points.
        how: "random" gives exactly the budget, "voxel" at most that.
        generator: CPU generator of "random"; None = seeded with 0.
    """
    if len(cloud) <= budget:
        return cloud
    if how == "random":
        generator = generator or torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(cloud), generator=generator)[:budget]
    else:
        chosen = _most_confident(cloud, _cells_within(cloud.points, budget))
    return cloud[chosen.sort().values.to(cloud.points.device)]


def _cell_numbers(points: Tensor, edge: float) -> Tensor:  # [N] int64
    """Number of the cubic cell of each point, cells counted from 0; world units."""
    cells = ((points - points.amin(dim=0)) / edge).floor().long()
    span = cells.amax(dim=0) + 1
    return torch.unique((cells[:, 0] * span[1] + cells[:, 1]) * span[2] + cells[:, 2], return_inverse=True)[1]


def _cells_within(points: Tensor, budget: int) -> Tensor:  # [N] int64
    """Cell numbers for the smallest edge that fills at most ``budget`` cells, to within a ten-thousandth of it."""
    points = points.detach().cpu().double()
    high = float((points.amax(dim=0) - points.amin(dim=0)).max()) * 1.001 or 1.0  # one cell holds all
    low = high / 2**20  # so that three cell indices fit into 63 bits
    best = _cell_numbers(points, high)
    for _ in range(_BISECTIONS):
        edge = (low * high) ** 0.5
        cells = _cell_numbers(points, edge)
        if int(cells.max()) < budget:
            best, high = cells, edge
        else:
            low = edge
    return best


def _most_confident(cloud: PointCloud, cells: Tensor) -> Tensor:  # [cells] int64
    """Index of the most confident point of each cell; of equals the first."""
    order = torch.argsort(cloud.confidence.detach().cpu(), descending=True, stable=True)
    first = torch.full((int(cells.max()) + 1,), len(cells), dtype=torch.long)
    places = torch.arange(len(cells))
    return order[first.scatter_reduce(0, cells[order], places, "amin")]


def random_points(cameras: Cameras, count: int, generator: torch.Generator | None = None) -> PointCloud:
    """Points of random colour at random places that the cameras see (ReconX, table V: without DUSt3R initialisation).

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
