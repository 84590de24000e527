"""Push-pull filling of holes."""

from __future__ import annotations

import pytest
import torch

from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.rendering.fill import fill_holes


def random_color(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(16, 16), (13, 7), (5, 32), (1, 9), (1, 1)])
def test_covered_pixels_keep_every_bit_and_holes_stay_within_the_colours(size: tuple[int, int]) -> None:
    color = 0.3 + 0.2 * random_color(2, 3, *size)
    covered = random_color(2, *size) < 0.4
    covered[:, 0, 0] = True
    filled = fill_holes(color * covered[:, None], covered)
    assert filled.shape == color.shape
    mask = covered[:, None].expand_as(color)
    assert torch.equal(filled[mask], color[mask])
    assert float(filled.min()) >= 0.3 - 1e-6 and float(filled.max()) <= 0.5 + 1e-6


def test_a_hole_takes_the_colours_around_it() -> None:
    """Red on the left, blue on the right: what lies between goes from one to the other, near ones first."""
    color, covered = torch.zeros(3, 16, 16), torch.zeros(16, 16)
    color[0, :, :4], color[2, :, 12:] = 1, 1
    covered[:, :4], covered[:, 12:] = 1, 1
    filled = fill_holes(color, covered)
    red = filled[0, 8]
    assert bool((red.diff() <= 1e-6).all()) and float(red[4]) > 0.7 > 0.3 > float(red[11])
    assert float(filled[1].max()) == 0.0
    torch.testing.assert_close(filled[0] + filled[2], torch.ones(16, 16))


def test_one_pixel_fills_the_image() -> None:
    color, covered = torch.zeros(3, 9, 14), torch.zeros(9, 14)
    color[:, 7, 11] = torch.tensor([0.2, 0.9, 0.4])
    covered[7, 11] = 1
    filled = fill_holes(color, covered)
    torch.testing.assert_close(filled, color[:, 7:8, 11:12].expand_as(filled))


@pytest.mark.parametrize("size", [(8, 8), (5, 3), (1, 1)])
def test_nothing_covered_is_grey(size: tuple[int, int]) -> None:
    assert bool((fill_holes(torch.zeros(2, 4, 3, *size), torch.zeros(2, 4, *size)) == 0.5).all())


def test_half_covered_pixels_are_not_darker_than_what_covers_them() -> None:
    """Colours over black, as points are rendered: half coverage of white is grey, and white once filled."""
    coverage = 0.1 + 0.8 * random_color(12, 12)
    filled = fill_holes(coverage.expand(3, -1, -1), coverage)
    torch.testing.assert_close(filled, torch.ones(3, 12, 12))


def test_half_coverage_mixes_what_is_known_with_what_is_around() -> None:
    color, coverage = torch.zeros(3, 8, 8), torch.ones(8, 8)
    coverage[3, 3] = 0.5
    color[:, 3, 3] = 0.5  # white, half covered, in a black image
    value = float(fill_holes(color, coverage)[0, 3, 3])
    assert 0.5 < value < 0.65  # its own half, and a filling in which it counts little


def test_images_of_a_batch_do_not_mix() -> None:
    color, covered = random_color(2, 3, 3, 10, 6), (random_color(2, 3, 10, 6) < 0.3).float()
    together = fill_holes(color * covered[:, :, None], covered)
    alone = fill_holes(color[1, 2] * covered[1, 2], covered[1, 2])
    assert torch.equal(together[1, 2], alone)


def test_shapes_that_do_not_go_together() -> None:
    with pytest.raises(ConfigurationError, match=r"color \(2, 3, 4, 5\) and coverage \(2, 1, 4, 5\)"):
        fill_holes(torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 4, 5))
