"""The strongest edges that join all views, and the clouds chained along them."""

from __future__ import annotations

import torch
from torch import Tensor

from reconx_pl.geometry.estimators.pair_predictions import PairPredictions
from reconx_pl.geometry.estimators.pairs import connected_parts
from reconx_pl.geometry.procrustes import fit_similarity


def edge_scores(predictions: PairPredictions) -> Tensor:
    """Product of the mean confidences of an edge's two views: [E]."""
    means = [[one.mean() for one in both] for both in predictions.confidence]
    return torch.tensor(means, dtype=torch.float64).prod(1)


def spanning_tree(edges: Tensor, scores: Tensor, views: int) -> list[int]:
    """Rows of the edges of the tree with the largest sum of scores (Kruskal), the strongest first."""
    tree: list[int] = []
    for row in torch.argsort(scores, descending=True, stable=True).tolist():
        longer = [*tree, row]
        if len(connected_parts(edges[longer], views)) == views - len(longer):
            tree = longer
    return tree


def chained(predictions: PairPredictions, tree: list[int], views: int) -> list[Tensor]:
    """Points of every view in the frame and the unit of the tree's strongest edge: V of [N, 3] float64.

    An edge whose one view is placed is moved onto it by the similarity that fits, weighted by its confidence.
    """
    placed: dict[int, Tensor] = {}
    waiting = list(tree)
    while waiting:
        row = next(one for one in waiting if not placed or placed.keys() & set(predictions.edges[one].tolist()))
        waiting.remove(row)
        pair = predictions.edges[row].tolist()
        points = [one.flatten(0, 1).double() for one in predictions.points[row]]
        if not placed:
            placed.update(zip(pair, points, strict=True))
            continue
        known = 0 if pair[0] in placed else 1
        weights = predictions.confidence[row][known].flatten()
        moved = fit_similarity(points[known], placed[pair[known]], weights)
        placed[pair[1 - known]] = moved.apply(points[1 - known])
    return [placed[view] for view in range(views)]
