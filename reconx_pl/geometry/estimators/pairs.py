"""Which pairs of views a pairwise model is asked about."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError

GraphKind = Literal["complete", "swin", "logwin", "oneref", "anchors"]
_NAME = re.compile(r"(complete|swin|logwin|oneref)(?:-(\d+))?(-noncyclic)?")


@dataclass(frozen=True)
class PairGraph:
    """A graph over views in their order; all but ``anchors`` are DUSt3R's.

    Args:
        kind: complete: every pair. swin: views at most ``window`` apart. logwin: views 1, 2, 4, ... apart, ``window``
            distances. oneref: every view with ``reference``. anchors (ours, for generated clips): views at most
            ``window`` apart, and every view with each of ``anchors``, the views that are known; not cyclic, as a clip
            has two ends.
        window: see ``kind``.
        cyclic: the last view is followed by the first (swin, logwin).
        reference: index of a view (oneref).
        anchors: indices of views (anchors).
        symmetric: ask about (i, j) and (j, i), which answer in different frames.
        self_pairs: keep the pairs (i, i) that the original makes, once for each direction, where a cyclic swin window
            is as long as the row of views; they hold nothing that the others do not.
        max_distance: leave out views farther apart than this in their order.
        distance_cyclic: measure that distance around the end.

    Raises:
        ConfigurationError: options that contradict each other.
    """

    kind: GraphKind = "complete"
    window: int = 3
    cyclic: bool = True
    reference: int = 0
    anchors: tuple[int, ...] = ()
    symmetric: bool = True
    self_pairs: bool = False
    max_distance: int | None = None
    distance_cyclic: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "anchors", tuple(self.anchors))
        if self.window < 1:
            raise ConfigurationError(f"a window of {self.window} views holds no pair; give at least 1")
        if (self.kind == "anchors") != bool(self.anchors):
            raise ConfigurationError(
                f"a graph of kind {self.kind!r} with anchors {self.anchors}: anchors are views of the kind 'anchors', "
                "and that kind needs them"
            )
        if self.max_distance is not None and self.max_distance < 1:
            raise ConfigurationError(f"max_distance {self.max_distance} leaves no pair; give at least 1")
        if self.distance_cyclic and self.max_distance is None:
            raise ConfigurationError("distance_cyclic says how max_distance is measured, and there is none")

    @classmethod
    def named(cls, name: str) -> PairGraph:
        """By the original's names: ``complete``, ``swin-5``, ``logwin-3-noncyclic``, ``oneref-2``.

        Raises:
            ConfigurationError: no such name.
        """
        found = _NAME.fullmatch(name)
        if not found or (found[1] == "complete" and (found[2] or found[3])) or (found[1] == "oneref" and found[3]):
            raise ConfigurationError(
                f"no pair graph is called {name!r}; there are complete, swin-K, logwin-K (both also with -noncyclic) "
                "and oneref-R"
            )
        kind, number = found[1], found[2]
        if kind == "oneref":
            return cls(kind="oneref", reference=int(number or 0))
        return cls(kind=kind, window=int(number or 3), cyclic=not found[3])  # type: ignore[arg-type]

    def edges(self, views: int) -> Tensor:
        """Directed pairs of ``views`` views: [E, 2] int64, every pair once, then, if symmetric, all of them reversed.

        Raises:
            BadSceneError: there are fewer than two views, or no pair is left.
            ConfigurationError: a reference or an anchor that is none of the views.
        """
        if views < 2:
            raise BadSceneError(f"a pair needs two views, there is {views}")
        for view in (*self.anchors, self.reference):
            if not 0 <= view < views:
                raise ConfigurationError(f"view {view} is a reference or an anchor, and there are {views} views")
        pairs = [pair for pair in self._pairs(views) if self._near(pair, views)]
        if not pairs:
            raise BadSceneError(f"no pair of the {views} views is left; raise max_distance")
        if self.symmetric:
            pairs += [(second, first) for first, second in pairs]
        return torch.tensor(pairs, dtype=torch.int64)

    def _pairs(self, views: int) -> list[tuple[int, int]]:
        if self.kind == "complete":
            return [(i, j) for i in range(views) for j in range(i)]
        if self.kind == "oneref":
            return [(self.reference, j) for j in range(views) if j != self.reference]
        steps = [2**power for power in range(self.window)] if self.kind == "logwin" else range(1, self.window + 1)
        cyclic = self.cyclic and self.kind != "anchors"
        found = {
            (min(i, j), max(i, j))
            for i in range(views)
            for step in steps
            if cyclic or i + step < views
            for j in [(i + step) % views]
            if i != j or (self.self_pairs and self.kind == "swin")
        }
        found |= {(min(i, anchor), max(i, anchor)) for anchor in self.anchors for i in range(views) if i != anchor}
        return sorted(found)

    def _near(self, pair: tuple[int, int], views: int) -> bool:
        distance = abs(pair[0] - pair[1])
        if self.distance_cyclic:
            distance = min(distance, views - distance)
        return self.max_distance is None or distance <= self.max_distance


def connected_parts(edges: Tensor, views: int) -> list[list[int]]:
    """Views that edges [E, 2] join, each part in ascending order, in the order of their first views."""
    ones = np.ones(len(edges), dtype=bool)
    rows, columns = edges.reshape(-1, 2).T.numpy()
    count, part = connected_components(coo_array((ones, (rows, columns)), shape=(views, views)), directed=False)
    return sorted(np.flatnonzero(part == number).tolist() for number in range(count))
