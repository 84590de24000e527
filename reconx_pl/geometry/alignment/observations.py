"""The point maps of all edges, sorted by the view that they are about, so that one step is a few large operations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reconx_pl.geometry.alignment.options import Weighting
from reconx_pl.geometry.estimators.pair_predictions import PairPredictions


@dataclass
class ViewGroup:
    """Views of equally many pixels (N = H W) that equally many point maps (D) are about.

    In a complete or a cyclic graph of images of one size there is one group.
    """

    views: Tensor  # [Vg] int64
    edges: Tensor  # [Vg, D] int64, the edges that the point maps are from
    first: Tensor  # [Vg, D] bool, whether the view is the first of the edge
    points: Tensor  # [Vg, D, 3, N] in the frames of the edges' first cameras
    weights: Tensor  # [Vg, D, N], already divided by the pixels of all first, or of all second, views
    pixels: Tensor  # [Vg, 2, N] relative to the principal point
    workspace: list[Tensor] = field(default_factory=list, repr=False)

    def buffers(self) -> list[Tensor]:
        """Two tensors as large as the points and the weights: on a CPU fresh memory costs more than the arithmetic."""
        if not self.workspace:
            self.workspace = [torch.empty_like(self.points), torch.empty_like(self.weights)]
        return self.workspace


def weights_of(confidence: Tensor, weighting: Weighting) -> Tensor:
    """Weight of a pixel's distance, >= 0."""
    return confidence.log() if weighting == "log" else confidence


def grouped(
    predictions: PairPredictions,
    pixels: Sequence[Tensor],
    weighting: Weighting = "log",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[ViewGroup]:
    """Groups of all views that are in an edge.

    Args:
        predictions: checked, see ``checked_sizes``.
        pixels: per view [2, N], see ``centred_pixels``.
        weighting: see ``AlignmentOptions``.
        device: where the alignment computes.
        dtype: in which it does.
    """
    about: dict[int, list[tuple[int, int]]] = defaultdict(list)  # per view: edge and side
    for edge, pair in enumerate(predictions.edges.tolist()):
        for side, view in enumerate(pair):
            about[view].append((edge, side))
    area = [sum(confidence[side].numel() for confidence in predictions.confidence) for side in (0, 1)]
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for view in sorted(about):
        alike[pixels[view].shape[1], len(about[view])].append(view)

    def points(edge: int, side: int) -> Tensor:  # [3, N]
        return predictions.points[edge][side].flatten(0, 1).T

    def weights(edge: int, side: int) -> Tensor:  # [N]
        return weights_of(predictions.confidence[edge][side].flatten().double(), weighting) / area[side]

    groups = []
    for views in alike.values():
        rows = [about[view] for view in views]
        groups.append(
            ViewGroup(
                views=torch.tensor(views, device=device),
                edges=torch.tensor([[edge for edge, _ in row] for row in rows], device=device),
                first=torch.tensor([[side == 0 for _, side in row] for row in rows], device=device),
                points=torch.stack([torch.stack([points(*one) for one in row]) for row in rows]).to(device, dtype),
                weights=torch.stack([torch.stack([weights(*one) for one in row]) for row in rows]).to(device, dtype),
                pixels=torch.stack([pixels[view] for view in views]).to(device, dtype),
            )
        )
    return groups


def first_views(groups: Sequence[ViewGroup]) -> Tensor:
    """The first view of every edge: [E]."""
    found = groups[0].edges.new_empty(sum(int(group.first.sum()) for group in groups))
    for group in groups:
        found[group.edges[group.first]] = group.views[:, None].expand_as(group.edges)[group.first]
    return found
