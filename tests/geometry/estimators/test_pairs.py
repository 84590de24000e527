"""Pair graphs: anchors, self-pairs, names, what is refused (parity with the original is tested elsewhere)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.estimators.pairs import PairGraph


def pairs(graph: PairGraph, views: int) -> list[tuple[int, int]]:
    return [tuple(pair) for pair in graph.edges(views).tolist()]


def test_anchors_join_every_view_with_the_known_ones() -> None:
    graph = PairGraph(kind="anchors", window=1, anchors=(0, 4), symmetric=False)
    chain = {(0, 1), (1, 2), (2, 3), (3, 4)}
    assert set(pairs(graph, 5)) == chain | {(0, 2), (0, 3), (0, 4), (1, 4), (2, 4)}
    assert len(pairs(graph, 5)) == 9  # no pair twice, and the clip's ends are joined as anchors, not around the end
    assert (0, 5) not in pairs(PairGraph(kind="anchors", window=1, anchors=(2,), symmetric=False), 6)


def test_symmetric_graphs_hold_every_pair_and_then_its_reverse() -> None:
    edges = PairGraph(kind="swin", window=2).edges(7)
    assert edges.dtype == torch.int64 and edges.shape == (28, 2)
    assert edges[14:].equal(edges[:14].flip(1))
    assert len({tuple(edge) for edge in edges.tolist()}) == 28


def test_self_pairs_are_an_option() -> None:
    assert not any(i == j for i, j in pairs(PairGraph(kind="swin", window=3), 3))
    assert sum(i == j for i, j in pairs(PairGraph(kind="swin", window=3, self_pairs=True), 3)) == 6


def test_names() -> None:
    assert PairGraph.named("swin-5") == PairGraph(kind="swin", window=5)
    assert PairGraph.named("logwin-noncyclic") == PairGraph(kind="logwin", cyclic=False)
    assert PairGraph.named("oneref-2") == PairGraph(kind="oneref", reference=2)
    for name in ("", "ring", "swin-", "swin--1", "complete-2", "oneref-1-noncyclic"):
        with pytest.raises(ConfigurationError, match="no pair graph"):
            PairGraph.named(name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 0}, "a window of 0 views"),
        ({"kind": "anchors"}, r"'anchors' with anchors \(\)"),
        ({"anchors": (1,)}, r"'complete' with anchors \(1,\)"),
        ({"max_distance": 0}, "max_distance 0"),
        ({"distance_cyclic": True}, "max_distance is measured, and there is none"),
    ],
)
def test_graphs_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        PairGraph(**options)


def test_graphs_of_other_views() -> None:
    with pytest.raises(ConfigurationError, match="view 9"):
        PairGraph(kind="oneref", reference=9).edges(4)
    with pytest.raises(BadSceneError, match="two views"):
        PairGraph().edges(1)
