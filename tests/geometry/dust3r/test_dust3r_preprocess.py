"""Preparing photographs: EXIF, squares, what is too narrow, and cameras there and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from reconx_pl.errors import BadDataError, BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import project
from reconx_pl.geometry.dust3r.preprocess import Preprocessing, prepare_image
from reconx_pl.types import Cameras


def photograph(height: int, width: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_a_photograph_is_turned_upright(tmp_path: Path) -> None:
    image = photograph(90, 120)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    options = Preprocessing(128)
    prepared = prepare_image(tmp_path / "turned.png", options)
    upright = prepare_image(image.transpose(Image.Transpose.ROTATE_270), options)
    assert prepared.pixels.shape == (3, 128, 96) and prepared.pixels.equal(upright.pixels)
    assert (prepared.window.source_height, prepared.window.source_width) == (120, 90)


@pytest.mark.parametrize(
    ("size", "square", "expected"),
    [(512, "cut", (384, 512)), (512, "keep", (512, 512)), (160, "cut", (112, 160)), (224, "all", (224, 224))],
)
def test_squares(size: int, square: str, expected: tuple[int, int]) -> None:
    """At 160 three quarters are 120, no multiple of 16, where the original fails: the cut is rounded down."""
    prepared = prepare_image(photograph(130, 130), Preprocessing(size, square))  # type: ignore[arg-type]
    assert tuple(prepared.pixels.shape[1:]) == expected


@pytest.mark.parametrize("size", [(333, 500), (517, 389), (700, 700), (40, 61)])
@pytest.mark.parametrize("square", ["cut", "all"])
def test_cameras_follow_the_pixels(size: tuple[int, int], square: str) -> None:
    window = Preprocessing(128, square).window(*size)  # type: ignore[arg-type]
    assert window.height % 16 == window.width % 16 == 0
    assert window.top >= 0 and window.top + window.height <= window.resized_height
    intrinsics = torch.tensor([[[300.0, 0, 170], [0, 310, 140], [0, 0, 1]]])
    cameras = Cameras(torch.eye(4)[None], intrinsics, *size)
    cut = window.cut(cameras)
    assert (cut.height, cut.width) == (window.height, window.width)
    points = torch.tensor([[0.1, -0.2, 2.0], [0.3, 0.1, 1.5]])
    at, there = project(points, cameras)[0], project(points, cut)[0]
    scale = torch.tensor([window.resized_width / size[1], window.resized_height / size[0]])
    assert torch.allclose(there, at * scale - torch.tensor([window.left, window.top]), atol=1e-3)
    assert torch.allclose(window.to_source(there), at, atol=1e-3)
    back = window.restore(cut)
    assert torch.allclose(back.intrinsics, intrinsics, atol=1e-3) and (back.height, back.width) == size
    with pytest.raises(ConfigurationError, match="do not go with"):
        window.cut(replace(cameras, height=1))


def test_a_tensor_is_what_its_file_would_be(tmp_path: Path) -> None:
    image = photograph(60, 100)
    image.save(tmp_path / "image.png")
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    options = Preprocessing(64)
    assert prepare_image(values, options).pixels.equal(prepare_image(tmp_path / "image.png", options).pixels)
    assert prepare_image(image.convert("L"), options).pixels.shape == (3, 32, 64)


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (Path(__file__), BadDataError, r"test_dust3r_preprocess\.py"),
        (Path(__file__).with_name("absent.png"), BadDataError, r"absent\.png"),
        (torch.zeros(1, 8, 8), BadDataError, r"\[3, H, W\]"),
        (torch.zeros(3, 10, 1000), BadSceneError, "too narrow"),
    ],
)
def test_what_cannot_be_prepared(image: Path | torch.Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        prepare_image(image, Preprocessing(128))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 500}, "multiple of 16, got 500"),
        ({"size": 0}, "multiple of 16, got 0"),
        ({"square": "crop"}, "not 'crop'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Preprocessing(**options)
