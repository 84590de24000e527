"""DUSt3R's network: rotary angles, odd grids, portraits, half precision, what is refused."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from dust3r_networks import TINY, tiny_network

from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.dust3r.config import Dust3rConfig
from reconx_pl.geometry.dust3r.heads import points_and_confidence
from reconx_pl.geometry.dust3r.rope import patch_positions, rotation_of


def images(count: int, height: int, width: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_rotation_depends_on_the_distance_alone_and_by_axis() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8, generator=generator)
    query, key = query.expand(-1, -1, 12, -1), key.expand(-1, -1, 12, -1)
    turn = rotation_of(patch_positions(3, 4), 8, 100.0)
    scores = (turn(query) @ turn(key).transpose(-1, -2))[0, 0].view(3, 4, 3, 4)  # row, column of query and key
    assert torch.allclose(scores[0, 0, 1, 2], scores[1, 1, 2, 3], atol=1e-6)
    assert not torch.allclose(scores[0, 0, 1, 2], scores[0, 0, 2, 1], atol=1e-3)


def test_angles_stay_exact_in_half_precision() -> None:
    positions = patch_positions(32, 32)
    exact = rotation_of(positions, 64, 100.0)
    with torch.autocast("cpu", torch.bfloat16):
        rotation = rotation_of(positions, 64, 100.0)
        turned = rotation(torch.ones(1, 1, 1024, 64, dtype=torch.bfloat16))
    assert rotation.cos.dtype == torch.float32 and rotation.cos.equal(exact.cos)
    assert turned.dtype == torch.bfloat16


@pytest.mark.parametrize("size", [(16, 48), (48, 80), (80, 16)])
def test_odd_grids(size: tuple[int, int]) -> None:
    """The coarsest level of an odd grid is rounded up, and cut."""
    with torch.no_grad():
        output = tiny_network()(images(2, *size), images(2, 32, 32))
    assert output.first_points.shape == (2, *size, 3) and output.second_points.shape == (2, 32, 32, 3)
    assert all(part.isfinite().all() for part in output) and output.first_confidence.min() >= 1


@torch.no_grad()
@pytest.mark.parametrize("head", ["dpt", "linear"])
def test_portraits_that_are_stored_lying_down_are_seen_upright(head: str) -> None:
    model = tiny_network(head=head)
    upright, landscape = images(1, 64, 32), images(1, 32, 64, seed=2)
    batch = torch.cat([landscape, upright.transpose(2, 3)])
    mixed = model(batch, batch.flip(0), torch.tensor([False, True]), torch.tensor([True, False]))
    alone = model(upright, landscape)
    assert torch.allclose(mixed.first_points[1].transpose(0, 1), alone.first_points[0], atol=1e-5)
    assert torch.allclose(mixed.second_confidence[1], alone.second_confidence[0], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("depth", "hooks"),
    [(2, (0, 1, 1, 2)), (3, (0, 1, 2, 3)), (5, (0, 2, 3, 5)), (6, (0, 3, 4, 6)), (12, (0, 6, 9, 12))],
)
def test_a_dpt_head_reads_at_depths_that_are_rounded_down(depth: int, hooks: tuple[int, ...]) -> None:
    model = tiny_network(decoder_depth=depth)
    assert model.config.hooks == hooks
    first, second = (model.encode(images(1, 32, 48, seed=seed)) for seed in (1, 2))
    every = model.decoders(first, second, tuple(range(depth + 1)))
    read = model.decoders(first, second, hooks)
    for of_view, of_all in zip(read, every, strict=True):
        assert [tokens.equal(of_all[hook]) for tokens, hook in zip(of_view, hooks, strict=True)] == [True] * 4
    output = model.decode(first, second)
    assert output.first_points.shape == (1, 32, 48, 3) and all(part.isfinite().all() for part in output)


@torch.no_grad()
def test_heads_are_float32_under_autocast() -> None:
    model = tiny_network()
    seen = []
    model.first_head.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    first, second = images(1, 32, 48), images(1, 32, 48, seed=2)
    exact = model(first, second)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(first, second)
    assert seen == [torch.float32, torch.float32] and half.first_points.dtype == torch.float32
    assert 0 < (half.first_points - exact.first_points).abs().max() < 0.1 * exact.first_points.abs().max()


@torch.no_grad()
def test_a_copy_uses_its_own_heads() -> None:
    model = tiny_network()
    copy = deepcopy(model)
    for parameter in copy.first_head.parameters():
        parameter.zero_()
    first = images(1, 32, 32)
    assert copy(first, first).first_points.abs().max() == 0
    assert model(first, first).first_points.abs().max() > 0


def test_gradients_reach_everything() -> None:
    model = tiny_network()
    output = model(images(1, 32, 48), images(1, 32, 48, seed=2))
    sum(part.sum() for part in output).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    points, _ = points_and_confidence(torch.zeros(1, 4, 2, 2, requires_grad=True))
    assert points.abs().max() == 0 and torch.autograd.grad(points.sum(), points)[0].isfinite().all()


@pytest.mark.parametrize(
    ("images", "portrait", "words"),
    [
        (torch.zeros(1, 3, 30, 32), None, "multiples of 16"),
        (torch.zeros(1, 1, 32, 32), None, "multiples of 16"),
        (torch.zeros(3, 32, 32), None, "multiples of 16"),
        (torch.zeros(2, 3, 32, 32), torch.tensor([True]), "one bool an image"),
    ],
)
def test_images_that_do_not_fit(images: torch.Tensor, portrait: torch.Tensor | None, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        tiny_network().encode(images, portrait)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder_heads": 3}, "encoder_width .* over 3 heads"),
        ({"decoder_depth": 1}, "decoder_depth of at least 2, got 1"),
        ({"head": "dense"}, "not 'dense'"),
        ({"encoder_depth": 0}, "encoder_depth must be positive"),
        ({"image_size": (500, 512)}, r"multiples of 16, got \(500, 512\)"),
        ({"dpt_level_widths": (1, 2)}, r"4 levels, got \(1, 2\)"),
    ],
)
def test_networks_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Dust3rConfig(**TINY | changes)
