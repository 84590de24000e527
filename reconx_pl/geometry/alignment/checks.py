"""What must be true of the predictions of an alignment, and what is said where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.estimators.pair_predictions import PairPredictions
from reconx_pl.geometry.estimators.pairs import connected_parts


def view_names(views: int, names: Sequence[str] | None) -> list[str]:
    """The names that errors give the views.

    Raises:
        ConfigurationError: not one name a view.
    """
    if names is not None and len(names) != views:
        raise ConfigurationError(f"{len(names)} names do not go with {views} views")
    return list(names) if names is not None else [f"view {view}" for view in range(views)]


def checked_sizes(predictions: PairPredictions, names: Sequence[str] | None = None) -> list[tuple[int, int]]:
    """Rows and columns of every view.

    Raises:
        BadSceneError: fewer than two views, a view in no edge, values that are not finite, confidence below 1.
        ConfigurationError: point maps that are of no one size for a view, or as many as there are edges.
    """
    edges = predictions.edges
    if edges.ndim != 2 or edges.shape[1] != 2 or not len(edges):
        raise BadSceneError(f"an alignment needs edges [E, 2], at least one, got {tuple(edges.shape)}")
    if len(predictions.points) != len(edges) or len(predictions.confidence) != len(edges):
        raise ConfigurationError(
            f"{len(edges)} edges, {len(predictions.points)} pairs of point maps, {len(predictions.confidence)} of "
            "confidences"
        )
    count = int(edges.max()) + 1
    called = view_names(max(count, len(names or ())), names)
    sizes: dict[int, tuple[int, int]] = {}
    for edge, pair in enumerate(edges.tolist()):
        where = f"edge {edge} ({called[pair[0]]}, {called[pair[1]]})"
        for side, view in enumerate(pair):
            points, confidence = predictions.points[edge][side], predictions.confidence[edge][side]
            size = (confidence.shape[0], confidence.shape[1]) if confidence.ndim == 2 else (0, 0)
            if points.shape != (*size, 3) or sizes.setdefault(view, size) != size:
                raise ConfigurationError(
                    f"{where}: points {tuple(points.shape)} and confidence {tuple(confidence.shape)} of "
                    f"{called[view]} do not go together, or not with those of another edge"
                )
            if not (torch.isfinite(points).all() and torch.isfinite(confidence).all()):
                raise BadSceneError(f"{where}: points or confidence are not finite; check the weights of the network")
            if confidence.min() < 1:
                raise BadSceneError(f"{where}: confidence {confidence.min():.3g} is below 1, the floor of DUSt3R")
    missing = [called[view] for view in range(len(called)) if view not in sizes]
    if missing:
        raise BadSceneError(f"no pair contains {', '.join(missing)}; choose a graph that reaches every view")
    if count < 2:
        raise BadSceneError(f"an alignment needs two views, there is {called[0]} alone")
    return [sizes[view] for view in range(count)]


def confident(predictions: PairPredictions, names: Sequence[str] | None = None) -> PairPredictions:
    """Without the edges that one of whose views has no confidence above the floor: they say nothing.

    Raises:
        BadSceneError: no edge is left, or what is left falls apart; the message names the views.
    """
    keep = [edge for edge, both in enumerate(predictions.confidence) if min(one.max() for one in both) > 1]
    views = int(predictions.edges.max()) + 1
    called = view_names(views, names)
    if not keep:
        raise BadSceneError(
            f"the confidence of every pair of {', '.join(called)} is at its floor: the network found nothing that "
            "these images share; use images that overlap"
        )
    kept = replace(
        predictions,
        edges=predictions.edges[keep],
        points=[predictions.points[edge] for edge in keep],
        confidence=[predictions.confidence[edge] for edge in keep],
    )
    parts = connected_parts(kept.edges, views)
    if len(parts) > 1:
        told = "; ".join(", ".join(called[view] for view in part) for part in parts)
        raise BadSceneError(
            f"no confident pair joins these groups of images: {told}. Add images between them, or pairs to the graph"
        )
    return kept
