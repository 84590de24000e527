"""Inference over a pair graph: each image once, shapes mixed, chunks, precision, order, progress."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from dust3r_networks import tiny_network

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.dust3r.config import Dust3rConfig
from reconx_pl.geometry.dust3r.inference import InferenceOptions, _chunk_size, predict_pairs
from reconx_pl.geometry.dust3r.model import Dust3r
from reconx_pl.geometry.estimators.pairs import PairGraph

SHAPES = ((32, 48), (48, 32), (32, 48), (32, 48))


def views() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(3, *shape, generator=generator) for shape in SHAPES]


@pytest.mark.parametrize("batch_size", [1, 2, 100, None])
def test_every_edge_gets_the_answer_of_its_pair(batch_size: int | None) -> None:
    model, images, edges = tiny_network(), views(), PairGraph().edges(4)
    found = predict_pairs(model, images, edges, InferenceOptions(batch_size=batch_size))
    assert found.edges.equal(edges)
    for row, (i, j) in enumerate(edges.tolist()):
        with torch.no_grad():
            alone = model(images[i][None] * 2 - 1, images[j][None] * 2 - 1)
        expected = [part[0] for part in alone]
        for actual, wanted in zip(
            (found.points[row][0], found.confidence[row][0], found.points[row][1], found.confidence[row][1]),
            expected,
            strict=True,
        ):
            assert torch.allclose(actual, wanted, rtol=1e-4, atol=1e-5)
    assert found.points[0][0].requires_grad is False and not found.points[0][0].is_inference()


def test_every_image_is_encoded_once_and_unused_ones_never() -> None:
    model, seen = tiny_network(), []
    encode = Dust3r.encode

    def counted(self: Dust3r, images: torch.Tensor) -> object:
        seen.append(len(images))
        return encode(self, images)

    edges = torch.tensor([[0, 2], [2, 0], [0, 1], [1, 0], [2, 1]])
    with patch.object(Dust3r, "encode", counted):
        predict_pairs(model, views(), edges, InferenceOptions(batch_size=8))
    assert sorted(seen) == [1, 2]  # one portrait, two landscapes; the fourth image is in no pair


def test_progress_counts_images_and_edges() -> None:
    calls: list[tuple[str, int, int | None]] = []
    predict_pairs(
        tiny_network(),
        views(),
        PairGraph().edges(4),
        InferenceOptions(batch_size=2),
        progress=lambda *call: calls.append(call),
    )
    done = [call[1] for call in calls]
    assert done == sorted(set(done)) and done[-1] == 16
    assert {(what, total) for what, _, total in calls} == {("pairs", 16)}


def test_bf16_is_near() -> None:
    model, images, edges = tiny_network(), views(), torch.tensor([[0, 2]])
    exact, half = (predict_pairs(model, images, edges, InferenceOptions(bf16=flag)) for flag in (False, True))
    points, other = exact.points[0][0], half.points[0][0]
    assert other.dtype == torch.float32
    assert 0 < (points - other).abs().max() < 0.1 * points.abs().max()


def test_a_chunk_fits_the_memory() -> None:
    shape = (3, 384, 512)
    sizes = [_chunk_size(Dust3rConfig(), (shape, shape), InferenceOptions(memory_gib=gib)) for gib in (0.001, 4, 16)]
    assert sizes[0] == 1 and 1 < sizes[1] < sizes[2]
    assert _chunk_size(Dust3rConfig(), ((3, 192, 256),) * 2, InferenceOptions()) == pytest.approx(4 * sizes[1], abs=4)


def test_what_does_not_fit_is_refused() -> None:
    model, images = tiny_network(), views()
    for edges in (torch.zeros(0, 2, dtype=torch.int64), torch.tensor([[0, 4]]), torch.tensor([[-1, 0]])):
        with pytest.raises(BadSceneError):
            predict_pairs(model, images, edges)
    with pytest.raises(ConfigurationError, match="multiples of 16"):
        predict_pairs(model, [image[:, 1:] for image in images], torch.tensor([[0, 2]]))
    for options in ({"memory_gib": 0}, {"batch_size": 0}):
        with pytest.raises(ConfigurationError):
            InferenceOptions(**options)  # type: ignore[arg-type]
