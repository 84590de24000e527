"""Sizes of photographs, and what OpenCV's formulas promise."""

from __future__ import annotations

import pytest
import torch

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.da3.preprocess import Da3Preprocessing, Method, prepare_image
from reconx_pl.geometry.da3.resize import area, cubic


@pytest.mark.parametrize(
    ("method", "size", "resized"),
    [
        ("upper_bound_resize", (378, 504), (378, 504)),
        ("upper_bound_crop", (378, 504), (378, 504)),
        ("lower_bound_resize", (504, 672), (504, 672)),
        ("lower_bound_crop", (504, 672), (504, 672)),
    ],
)
def test_four_thirds(method: Method, size: tuple[int, int], resized: tuple[int, int]) -> None:
    window = Da3Preprocessing(method=method).window(768, 1024)
    assert (window.height, window.width) == size and (window.resized_height, window.resized_width) == resized


def test_seven_pixels_go_up_and_a_crop_is_in_the_middle() -> None:
    resize = Da3Preprocessing(size=140).window(119, 140)
    assert (resize.height, resize.width) == (126, 140), "119 = 8.5 * 14"
    crop = Da3Preprocessing(size=140, method="upper_bound_crop").window(119, 140)
    assert (crop.height, crop.top, crop.left, crop.resized_height) == (112, 3, 0, 119)


def test_a_strip_is_refused_by_a_crop_and_widened_by_a_resize() -> None:
    with pytest.raises(BadSceneError, match="too narrow.*upper_bound_resize"):
        Da3Preprocessing(method="upper_bound_crop").window(10, 1000)
    assert Da3Preprocessing().window(10, 1000).height == 14


def test_settings() -> None:
    with pytest.raises(ConfigurationError, match="at least 14"):
        Da3Preprocessing(size=13)
    with pytest.raises(ConfigurationError, match="lower_bound_crop, not 'stretch'"):
        Da3Preprocessing(method="stretch")  # type: ignore[arg-type]


def test_area_is_the_mean_of_what_a_pixel_covers() -> None:
    image = torch.tensor([[0, 30, 60, 90, 120]], dtype=torch.uint8).expand(3, 4, 5)
    assert area(image, 2, 2)[0, 0].tolist() == [24, 96]  # (0 + 30 + 60 / 2) / 2.5
    flat = torch.full((3, 9, 7), 201, dtype=torch.uint8)
    assert area(flat, 4, 3).unique().tolist() == cubic(flat, 20, 30).unique().tolist() == [201]
    assert area(image, 4, 5).equal(image)


def test_cubic_overshoots_and_stays_in_range() -> None:
    step = torch.tensor([[0, 0, 200, 200]], dtype=torch.uint8).expand(3, 4, 4)
    found = cubic(step, 4, 8)[0, 0].tolist()
    assert max(found) > 200 and min(found) == 0


def test_a_prepared_image_is_what_the_window_says() -> None:
    image = torch.rand(3, 50, 80, generator=torch.Generator().manual_seed(0))
    prepared = prepare_image(image, Da3Preprocessing(size=56))
    assert prepared.pixels.shape == (3, 42, 56) == (3, prepared.window.height, prepared.window.width)
    assert prepared.pixels.mean() == pytest.approx(float(image.mean()), abs=0.01)
