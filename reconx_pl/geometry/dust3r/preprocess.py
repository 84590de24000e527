"""Photographs to the sizes that DUSt3R was trained on, and back to the pixels of the photograph."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from reconx_pl.errors import BadDataError, BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import crop_cameras, resize_cameras
from reconx_pl.geometry.dust3r.config import PATCH
from reconx_pl.types import Cameras


@dataclass(frozen=True)
class Window:
    """Where a prepared image lies in its photograph: resized first, then cut. Sizes and offsets in pixels.

    Args:
        source_height: rows of the photograph, upright.
        source_width: columns.
        resized_height: rows after the resize.
        resized_width: columns.
        top: first row of the cut, of the resized image.
        left: first column.
        height: rows of the prepared image.
        width: columns.
    """

    source_height: int
    source_width: int
    resized_height: int
    resized_width: int
    top: int
    left: int
    height: int
    width: int

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the resized image for one of the photograph: x, y."""
        return self.resized_width / self.source_width, self.resized_height / self.source_height

    def cut(self, cameras: Cameras) -> Cameras:
        """Cameras of the photograph to cameras of the prepared image."""
        self._check(cameras, self.source_height, self.source_width)
        resized = resize_cameras(cameras, self.resized_height, self.resized_width)
        return crop_cameras(resized, self.top, self.left, self.height, self.width)

    def restore(self, cameras: Cameras) -> Cameras:
        """Cameras of the prepared image to cameras of the photograph: the inverse of ``cut``."""
        self._check(cameras, self.height, self.width)
        intrinsics = cameras.intrinsics.clone()
        intrinsics[..., 0, 2] += self.left
        intrinsics[..., 1, 2] += self.top
        whole = replace(cameras, intrinsics=intrinsics, height=self.resized_height, width=self.resized_width)
        return resize_cameras(whole, self.source_height, self.source_width)

    def to_source(self, pixels: Tensor) -> Tensor:
        """Pixels [*, 2] of the prepared image as (x, y), corner at (0, 0), to pixels of the photograph."""
        return (pixels + pixels.new_tensor([self.left, self.top])) / pixels.new_tensor(self.scale)

    def _check(self, cameras: Cameras, height: int, width: int) -> None:
        if (cameras.height, cameras.width) != (height, width):
            raise ConfigurationError(
                f"cameras of {cameras.height} x {cameras.width} pixels do not go with images of {height} x {width}"
            )


@dataclass(frozen=True)
class Preprocessing:
    """Sizes as the released models want them.

    Args:
        size: of the long side, pixels, a multiple of 16; 512 for the 512 models. With ``square`` "all", of both sides:
            224 for the 224 model.
        square: what becomes of square images. "cut": 4:3, since the 512 models were trained on no squares ("keep":
            they stay). "all": every image is cut to a square, its short side fitted to ``size``.

    Raises:
        ConfigurationError: a size that is no multiple of 16.
    """

    size: int = 512
    square: Literal["cut", "keep", "all"] = "cut"

    def __post_init__(self) -> None:
        if self.size < PATCH or self.size % PATCH:
            raise ConfigurationError(f"size must be a multiple of {PATCH}, got {self.size}")
        if self.square not in ("cut", "keep", "all"):
            raise ConfigurationError(f"square is 'cut', 'keep' or 'all', not {self.square!r}")

    def window(self, height: int, width: int) -> Window:
        """What is cut from a photograph of ``height`` x ``width`` pixels.

        The centre of the cut is the centre of the resized image, rounded down; its sides are multiples of 16. Where
        three quarters of ``size`` are no such multiple (the original then fails), the 4:3 cut is rounded down to one.

        Raises:
            BadSceneError: the photograph is so narrow that nothing would be left.
        """
        long = self.size
        if self.square == "all":
            long = round(self.size * max(width / height, height / width))
        rows, columns = (round(side * long / max(height, width)) for side in (height, width))
        middle_y, middle_x = rows // 2, columns // 2
        if self.square == "all":
            half_y = half_x = min(middle_y, middle_x)
        else:
            half_y, half_x = (middle // (PATCH // 2) * (PATCH // 2) for middle in (middle_y, middle_x))
            if rows == columns and self.square == "cut":
                half_y = 3 * half_x // 4 // (PATCH // 2) * (PATCH // 2)
        if min(half_y, half_x) == 0:
            raise BadSceneError(
                f"an image of {height} x {width} pixels is too narrow: less than {PATCH} pixels would be left of its "
                f"short side at size {self.size}"
            )
        return Window(height, width, rows, columns, middle_y - half_y, middle_x - half_x, 2 * half_y, 2 * half_x)


@dataclass(frozen=True)
class PreparedImage:
    """An image as the network takes it (but for its scale: [0, 1] here), and where it lies in its photograph."""

    pixels: Tensor  # [3, H, W] in [0, 1]
    window: Window


def prepare_image(
    image: str | Path | Image.Image | Tensor,
    preprocessing: Preprocessing = Preprocessing(),
) -> PreparedImage:
    """Turn upright, resize (Lanczos to smaller, bicubic to larger), cut.

    Args:
        image: a file, an image, or [3, H, W] in [0, 1], which is rounded to 8 bits as a file would be.
        preprocessing: sizes.

    Raises:
        BadDataError: the file cannot be read as an image.
        BadSceneError: the image is too narrow.
    """
    upright = upright_image(image)
    window = preprocessing.window(upright.height, upright.width)
    shrinks = max(upright.size) > max(window.resized_height, window.resized_width)
    resized = upright.resize(
        (window.resized_width, window.resized_height),
        Image.Resampling.LANCZOS if shrinks else Image.Resampling.BICUBIC,
    )
    box = (window.left, window.top, window.left + window.width, window.top + window.height)
    values = torch.from_numpy(np.array(resized.crop(box)))  # [H, W, 3] uint8
    return PreparedImage(values.permute(2, 0, 1).contiguous().float() / 255, window)


def upright_image(image: str | Path | Image.Image | Tensor) -> Image.Image:
    """8 bits RGB as a viewer shows it.

    Args:
        image: a file, an image, or [3, H, W] in [0, 1].

    Raises:
        BadDataError: the file cannot be read as an image, or a tensor of another shape.
    """
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise BadDataError(f"an image is [3, H, W], got {tuple(image.shape)}")
        values = image.detach().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu()
        return Image.fromarray(values.numpy())
    if isinstance(image, Image.Image):
        return _rgb(image)
    try:
        with Image.open(image) as opened:
            return _rgb(opened)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise BadDataError(f"{image}: cannot be read as an image ({error})") from error


def _rgb(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image).convert("RGB")
