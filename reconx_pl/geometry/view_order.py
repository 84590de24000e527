"""In which order views follow each other best, so that what lies between neighbours is short: for clips and flights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError
from reconx_pl.geometry.cameras import in_view, project, resize_cameras
from reconx_pl.geometry.rendering.cloud_view import view_cloud
from reconx_pl.types import Cameras, PointCloud

_POINTS = 4096  # of the cloud; shares are then known to about a percent
_SIDE = 96  # pixels: so small that the discs of that many points close the surfaces, behind which nothing is seen
_BEHIND = 1.1  # (ours) a point is hidden where it lies so many times deeper than the surface before it
_NO_SHARE = 1e-3  # stands for nothing shared, so that the cost stays finite
_TURN = math.radians(30)  # (ours) parallax that costs as much as the loss of 63 % of the shared points (a factor of e)
_CLOSING = 1.5  # (ours) a loop closes where its last step costs at most so many times the dearest other one,
_RETURN = 0.75  # (ours) and at most this share of the whole path: the way back along a line costs all of it
_EXACT = 12  # views; the exact search visits 2^V subsets


@dataclass(frozen=True)
class ViewOrder:
    """A short path through all views.

    Args:
        order: numbers of the views, each once; the end with the lower number comes first.
        closed: the last view is a neighbour of the first, as in a walk around something.
    """

    order: tuple[int, ...]
    closed: bool


def view_order(cameras: Cameras, cloud: PointCloud) -> ViewOrder:
    """The shortest path through all views in the sense of :func:`pair_costs`.

    Up to 12 views it is exact (dynamic programming over subsets: Held and Karp, 1962); beyond, nearest neighbours from
    every start, improved by 2-opt (Croes, 1958). The same input gives the same order.

    (ours) The loop is closed where three or more views are, and the step from the last to the first costs at most 1.5
    times the dearest step of the path and at most three quarters of the whole path.

    Args:
        cameras: V >= 1 views.
        cloud: points of the scene in the world of the cameras.

    Raises:
        BadSceneError: no views, or a cloud without points.
    """
    if len(cameras) == 0:
        raise BadSceneError("there are no views to put in order; give at least one camera")
    costs = pair_costs(cameras, cloud).numpy()
    order = _exact_path(costs) if len(cameras) <= _EXACT else _short_path(costs)
    if order[0] > order[-1]:
        order = order[::-1]
    steps = [float(costs[one, other]) for one, other in zip(order, order[1:], strict=False)]
    last = float(costs[order[-1], order[0]])
    closed = len(order) >= 3 and last <= _CLOSING * max(steps) and last <= _RETURN * sum(steps)
    return ViewOrder(tuple(order), closed)


def pair_costs(cameras: Cameras, cloud: PointCloud) -> Tensor:
    """What it costs to go from one view to another: [V, V] float64, symmetric, zero on the diagonal.

    (ours) -log(share) + angle / 30 degrees. ``share`` is the number of points that both see over the number that either
    sees; occluded points are not seen. ``angle`` is the median parallax: between the directions from a shared point to
    both cameras (from any that either sees, if none is shared). The logarithm makes steps add up along a path on which
    every step loses the same part.

    Raises:
        BadSceneError: a cloud without points.
    """
    if len(cloud) == 0:
        raise BadSceneError("a cloud without points does not tell which views are neighbours; reconstruct it again")
    cameras = cameras.to(device="cpu", dtype=torch.float32)
    thin = torch.linspace(0, len(cloud) - 1, min(len(cloud), _POINTS), dtype=torch.float64).round().long()
    some = PointCloud(cloud.points.detach().cpu().float()[thin], cloud.colors.cpu()[thin], cloud.confidence.cpu()[thin])
    seen = _seen(cameras, some)  # [V, N]
    toward = torch.nn.functional.normalize(cameras.centers[:, None] - some.points, dim=-1).double()  # [V, N, 3]
    costs = torch.zeros(len(cameras), len(cameras), dtype=torch.float64)
    for i in range(len(cameras)):
        for j in range(i):
            both, either = seen[i] & seen[j], seen[i] | seen[j]
            share = float(both.sum()) / max(1.0, float(either.sum()))
            asked = both if both.any() else either if either.any() else torch.ones_like(both)
            angle = torch.acos((toward[i, asked] * toward[j, asked]).sum(-1).clamp(-1, 1)).median()
            costs[i, j] = costs[j, i] = -math.log(max(share, _NO_SHARE)) + float(angle) / _TURN
    return costs


def _seen(cameras: Cameras, cloud: PointCloud) -> Tensor:
    """[V, N] bool: points in the image that lie on the surface the view sees there, or right behind it."""
    scale = _SIDE / max(cameras.height, cameras.width)
    small = resize_cameras(cameras, max(1, round(cameras.height * scale)), max(1, round(cameras.width * scale)))
    surface = view_cloud(cloud, small)
    pixels, depth = project(cloud.points, small)
    column = pixels[..., 0].clamp(0, small.width - 1).long()
    row = pixels[..., 1].clamp(0, small.height - 1).long()
    views = torch.arange(len(cameras))[:, None]
    open_sight = ~surface.covered[views, row, column] | (depth <= _BEHIND * surface.depth[views, row, column])
    return in_view(cloud.points, small) & open_sight


def _exact_path(costs: np.ndarray) -> list[int]:
    """Shortest Hamiltonian path: best[S, v] is the shortest way through the views of the set S that ends in v."""
    views = len(costs)
    best = np.full((1 << views, views), np.inf)
    best[1 << np.arange(views), np.arange(views)] = 0.0
    before = np.zeros((1 << views, views), dtype=np.int64)
    for subset in range(1 << views):
        for view in range(views):
            rest = subset & ~(1 << view)
            if rest == subset or rest == 0:
                continue
            ways = best[rest] + costs[:, view]
            before[subset, view] = at = int(ways.argmin())
            best[subset, view] = ways[at]
    subset = (1 << views) - 1
    order = [int(best[subset].argmin())]
    while subset & ~(1 << order[-1]):
        subset, view = subset & ~(1 << order[-1]), int(before[subset, order[-1]])
        order.append(view)
    return order


def _short_path(costs: np.ndarray) -> list[int]:
    """A path that no reversal of a stretch makes shorter: the best of those that start at every view."""
    found = [_without_detours(_nearest_first(costs, start), costs) for start in range(len(costs))]
    return min(found, key=lambda order: (round(float(costs[order[:-1], order[1:]].sum()), 9), order))


def _nearest_first(costs: np.ndarray, start: int) -> list[int]:
    order, left = [start], set(range(len(costs))) - {start}
    while left:
        order.append(min(left, key=lambda view: (costs[order[-1], view], view)))
        left.remove(order[-1])
    return order


def _without_detours(order: list[int], costs: np.ndarray) -> list[int]:
    """2-opt on an open path: reverse stretches, also at either end, as long as one makes it shorter."""
    # a view that is as near to all stands at both ends, so that a stretch there is one like the others
    fenced = np.pad(costs, ((0, 1), (0, 1)))
    fence, last = len(costs), len(order)
    order = [fence, *order, fence]
    better = True
    while better:
        better = False
        for i in range(1, last):
            ends = np.array(order[i + 1 : last + 1])
            following = np.array(order[i + 2 : last + 2])
            before, first = order[i - 1], order[i]
            change = fenced[before, ends] + fenced[first, following] - fenced[before, first] - fenced[ends, following]
            at = int(change.argmin())
            if change[at] < -1e-9:
                order[i : i + at + 2] = order[i : i + at + 2][::-1]
                better = True
    return order[1:-1]
