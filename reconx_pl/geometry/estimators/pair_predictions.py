"""What a pairwise model says of the directed edges of a pair graph."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PairPredictions:
    """What a pairwise model says of the directed edges of a pair graph."""

    edges: Tensor  # [E, 2] int64: first and second view
    # per edge: [H1, W1, 3] of the first and [H2, W2, 3] of the second view, both in the first view's frame
    points: list[tuple[Tensor, Tensor]]
    confidence: list[tuple[Tensor, Tensor]]  # per edge: [H1, W1] and [H2, W2], >= 1
