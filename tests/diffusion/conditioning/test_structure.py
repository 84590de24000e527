"""The structure encoder: invariances, the prefix property, gradients, refused input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from reconx_pl.diffusion.conditioning.structure import (
    StructureEncoder,
    StructureEncoderConfig,
    normalise_points,
    positional_features,
)
from reconx_pl.errors import BadDataError, ConfigurationError

CONFIG = StructureEncoderConfig(points=64, tokens=8, width=32, heads=4)


@pytest.fixture
def encoder() -> StructureEncoder:
    torch.manual_seed(0)
    return StructureEncoder(CONFIG)


@pytest.fixture
def points() -> Tensor:
    return torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(1)) + torch.tensor([0.0, 0.0, 3.0])


def test_shape_and_defaults(encoder: StructureEncoder, points: Tensor) -> None:
    assert encoder(points).shape == (2, 8, 32)
    full = StructureEncoderConfig()
    assert (full.inputs, full.tokens * 8, full.head_count) == (51, full.points, 16)


def test_order_of_the_other_points_does_not_matter(encoder: StructureEncoder, points: Tensor) -> None:
    order = torch.cat([torch.arange(8), 8 + torch.randperm(56, generator=torch.Generator().manual_seed(2))])
    torch.testing.assert_close(encoder(points[:, order]), encoder(points), atol=2e-5, rtol=0)


def test_order_of_the_queries_orders_the_tokens(encoder: StructureEncoder, points: Tensor) -> None:
    order = torch.cat([torch.arange(7, -1, -1), torch.arange(8, 64)])
    torch.testing.assert_close(encoder(points[:, order]), encoder(points).flip(1), atol=2e-5, rtol=0)


def test_unit_of_length_does_not_matter(encoder: StructureEncoder, points: Tensor) -> None:
    # powers of two scale without rounding, so that the high octaves see the very same numbers
    torch.testing.assert_close(encoder(points * 64), encoder(points), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder(points * 3), encoder(points), atol=2e-3, rtol=0)


def test_every_point_matters(encoder: StructureEncoder, points: Tensor) -> None:
    before = encoder(points)
    moved = points.clone()
    moved[:, 40] = -moved[:, 40]  # same distance: the scale stays, one point that is no query moves far
    assert (encoder(moved) - before).abs().max() > 1e-4
    assert (encoder(points[:, :63]) - before).abs().max() > 1e-5


def test_a_prefix_is_a_valid_cloud(encoder: StructureEncoder, points: Tensor) -> None:
    prefix = encoder(points[:, :32])
    assert prefix.shape == (2, 8, 32)
    # the same queries look at fewer points; with the prefix normalised alike the query embeddings are the same
    whole, _ = normalise_points(points)
    part, _ = normalise_points(points[:, :32])
    ratio = part[:, 0] / whole[:, 0]
    torch.testing.assert_close(part[:, :8], whole[:, :8] * ratio[:, None])


def test_clouds_of_a_batch_do_not_mix(encoder: StructureEncoder, points: Tensor) -> None:
    torch.testing.assert_close(encoder(points)[1:], encoder(points[1:]), atol=1e-5, rtol=0)


def test_gradients_reach_every_parameter(encoder: StructureEncoder, points: Tensor) -> None:
    (encoder(points) * torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(3))).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_normalisation(points: Tensor) -> None:
    normalised, scale = normalise_points(points)
    torch.testing.assert_close(normalised.norm(dim=-1).mean(-1), torch.ones(2))
    torch.testing.assert_close(normalised * scale[:, None, None], points)
    zero, unit = normalise_points(torch.zeros(1, 5, 3))
    assert not zero.any() and unit.tolist() == [1]


def test_positional_features() -> None:
    features = positional_features(torch.tensor([[0.25, -0.5, 1.0]]), octaves=2)
    expected = [0.25, -0.5, 1.0]
    angles = [2**k * math.pi * p for k in range(2) for p in (0.25, -0.5, 1.0)]
    expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    torch.testing.assert_close(features, torch.tensor([expected]), atol=1e-6, rtol=0)


def test_a_cloud_in_the_camera_gives_numbers(encoder: StructureEncoder) -> None:
    assert torch.isfinite(encoder(torch.zeros(1, 64, 3))).all()


def test_half_precision_weights_keep_the_positions_exact(points: Tensor) -> None:
    torch.manual_seed(0)
    encoder = StructureEncoder(CONFIG)
    exact = encoder(points)
    half = encoder.to(torch.bfloat16)(points)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.15


def test_bad_clouds_are_refused(encoder: StructureEncoder, points: Tensor) -> None:
    points[1, 5, 2] = float("nan")
    with pytest.raises(BadDataError, match=r"\[1\]"):
        encoder(points)
    with pytest.raises(ConfigurationError, match="8 tokens"):
        encoder(torch.zeros(1, 7, 3))
    with pytest.raises(ConfigurationError, match=r"\[B, N, 3\]"):
        encoder(torch.zeros(64, 3))


@pytest.mark.parametrize(
    "options", [{"tokens": 0}, {"points": 4, "tokens": 8}, {"width": 30, "heads": 4}, {"heads": 0}]
)
def test_contradictory_sizes_are_refused(options: dict) -> None:
    with pytest.raises(ConfigurationError):
        StructureEncoderConfig(**options)
