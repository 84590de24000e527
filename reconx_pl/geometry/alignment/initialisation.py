"""Where the optimiser starts: the clouds chained along the strongest edges, and the cameras that they imply."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reconx_pl.geometry.alignment.focal import weiszfeld_focal
from reconx_pl.geometry.alignment.observations import weights_of
from reconx_pl.geometry.alignment.options import FixedViews, Weighting
from reconx_pl.geometry.alignment.resection import resect
from reconx_pl.geometry.alignment.spanning_tree import chained, edge_scores, spanning_tree
from reconx_pl.geometry.estimators.pair_predictions import PairPredictions
from reconx_pl.geometry.procrustes import Similarity, fit_similarity

_NEAREST = 1e-3  # of the median depth; nothing starts nearer to a camera, or behind it


@dataclass(frozen=True)
class Start:
    """Everything in one world, float64 on the CPU."""

    camera_to_world: Tensor  # [V, 4, 4]
    focal: Tensor  # [V] pixels
    depth: list[Tensor]  # V of [N], world units, positive
    pairs: Similarity  # [E] each: frame of an edge's first camera to the world


def initialise(
    predictions: PairPredictions, pixels: list[Tensor], fixed: FixedViews, weighting: Weighting = "log"
) -> Start:
    """Spanning tree, focals, poses, and all edges registered anew.

    Every view takes focal and pose from the best edge that it is the first view of, where its points are in its own
    camera's frame: the focal by Weiszfeld, the pose by a similarity. Views that are first in no edge are resected.

    Args:
        predictions: of one connected graph.
        pixels: per view [2, N], see ``centred_pixels``.
        fixed: poses and lenses taken as they are.
        weighting: of the registration of the edges.
    """
    views = len(pixels)
    scores = edge_scores(predictions)
    tree = spanning_tree(predictions.edges, scores, views)
    points = chained(predictions, tree, views)
    poses, focal = _cameras(predictions, pixels, fixed, scores, tree, points)
    if fixed.poses.any():
        to_fixed = fixed_frame(poses[fixed.poses], torch.linalg.inv(fixed.world_to_camera[fixed.poses].double()))
        points = [to_fixed.apply(one) for one in points]
        poses[:, :3, :3] = to_fixed.rotation @ poses[:, :3, :3]
        poses[:, :3, 3] = to_fixed.apply(poses[:, :3, 3])
    # depth in the camera that was found, the pose that is known: what the two disagree about moves with the camera
    depth = []
    for view, (pose, cloud) in enumerate(zip(poses, points, strict=True)):
        z = (cloud - pose[:3, 3]) @ pose[:3, 2]
        depth.append(z.clamp(min=_NEAREST * float(z.abs().median().clamp(min=1e-12))))
        if fixed.poses[view]:
            poses[view] = torch.linalg.inv(fixed.world_to_camera[view].double())
    return Start(poses, focal, depth, _registered(predictions, pixels, poses, focal, depth, weighting))


def _cameras(
    predictions: PairPredictions,
    pixels: list[Tensor],
    fixed: FixedViews,
    scores: Tensor,
    tree: list[int],
    points: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """Poses [V, 4, 4], camera to the chained world, and focals [V]."""
    views, edges = len(pixels), predictions.edges
    poses, focal = torch.eye(4, dtype=torch.float64).repeat(views, 1, 1), torch.zeros(views, dtype=torch.float64)
    best = {view: own_edge(edges, scores, view) for view in range(views)}
    for view, row in best.items():
        if row is None:
            continue
        own = predictions.points[row][0].flatten(0, 1)
        confidence = predictions.confidence[row][0].flatten().double()
        focal[view] = weiszfeld_focal(own, pixels[view], weights_of(confidence, "log"))
        found = fit_similarity(own, points[view], confidence)
        poses[view, :3, :3], poses[view, :3, 3] = found.rotation, found.translation
    focal = torch.where(fixed.lenses, fixed.intrinsics[:, 0, 0].double(), focal)
    for view, row in best.items():
        if row is not None:
            continue
        # the first view of the tree's edge to it stands nearest to it
        through = next(one for one in tree if view == edges[one, 1])
        near = int(edges[through, 0])
        guess = float(
            focal[view] if fixed.lenses[view] else focal[near] / _extent(pixels[near]) * _extent(pixels[view])
        )
        weights = weights_of(predictions.confidence[through][1].flatten().double(), "log")
        pose, lens = resect(
            points[view],
            pixels[view],
            weights,
            torch.linalg.inv(poses[near]),
            guess,
            free_focal=not fixed.lenses[view],
        )
        poses[view], focal[view] = torch.linalg.inv(pose), lens
    return poses, focal


def own_edge(edges: Tensor, scores: Tensor, view: int) -> int | None:
    """The best edge that ``view`` is the first view of."""
    rows = (edges[:, 0] == view).nonzero()[:, 0]
    return int(rows[scores[rows].argmax()]) if len(rows) else None


def fixed_frame(found: Tensor, fixed: Tensor) -> Similarity:
    """The similarity that takes cameras, not only their centres, to known ones: camera-to-world [K, 4, 4] each.

    Rotations by the mean of the turns, scale by the spread of the centres; where either set has no spread, 1.
    """
    u, _, vt = torch.linalg.svd((fixed[:, :3, :3] @ found[:, :3, :3].transpose(1, 2)).sum(0))
    sign = torch.ones(3, dtype=u.dtype)
    sign[2] = torch.linalg.det(u @ vt).sign()
    rotation = (u * sign) @ vt
    means = [centers[:, :3, 3].mean(0) for centers in (found, fixed)]
    spreads = [(centers[:, :3, 3] - mean).norm() for centers, mean in zip((found, fixed), means, strict=True)]
    scale = spreads[1] / spreads[0] if min(spreads) > 0 else torch.ones_like(spreads[0])
    return Similarity(scale, rotation, means[1] - scale * (rotation @ means[0]))


def _registered(
    predictions: PairPredictions,
    pixels: list[Tensor],
    poses: Tensor,
    focal: Tensor,
    depth: list[Tensor],
    weighting: Weighting,
) -> Similarity:
    world = []
    for view, z in enumerate(depth):
        rays = torch.cat([pixels[view] / focal[view], torch.ones_like(z)[None]])
        world.append((rays * z).T @ poses[view, :3, :3].T + poses[view, :3, 3])
    fits = []
    for pair, points, confidence in zip(
        predictions.edges.tolist(), predictions.points, predictions.confidence, strict=True
    ):
        fits.append(
            fit_similarity(
                torch.cat([one.flatten(0, 1) for one in points]),
                torch.cat([world[view] for view in pair]),
                weights_of(torch.cat([one.flatten() for one in confidence]).double(), weighting),
            )
        )
    return Similarity(
        torch.stack([one.scale for one in fits]),
        torch.stack([one.rotation for one in fits]),
        torch.stack([one.translation for one in fits]),
    )


def _extent(pixels: Tensor) -> float:
    return float(pixels.abs().max())
