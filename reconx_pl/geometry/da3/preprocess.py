"""Photographs to the sizes that Depth-Anything-3 was trained on; where they lie in the photograph is a ``Window``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.da3.config import PATCH
from reconx_pl.geometry.da3.resize import area, cubic
from reconx_pl.geometry.dust3r.preprocess import PreparedImage, Window, upright_image

Method = Literal["upper_bound_resize", "upper_bound_crop", "lower_bound_resize", "lower_bound_crop"]
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


@dataclass(frozen=True)
class Da3Preprocessing:
    """Sizes that the network sees.

    Args:
        size: of the long side (``upper_bound``) or of the short one (``lower_bound``), pixels; 504 as the original.
        method: how both sides become multiples of 14: by a second resize, which changes the aspect a little, or by a
            centre crop.

    Raises:
        ConfigurationError: a size below 14, or another method.
    """

    size: int = 504
    method: Method = "upper_bound_resize"

    def __post_init__(self) -> None:
        if self.size < PATCH:
            raise ConfigurationError(f"size must be at least {PATCH}, got {self.size}")
        if self.method not in get_args(Method):
            raise ConfigurationError(f"method is one of {', '.join(get_args(Method))}, not {self.method!r}")

    def first(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns after the first resize, which keeps the aspect."""
        side = max(height, width) if self.method.startswith("upper") else min(height, width)
        return max(1, round(height * self.size / side)), max(1, round(width * self.size / side))

    def window(self, height: int, width: int) -> Window:
        """What becomes of a photograph of ``height`` x ``width`` pixels.

        Raises:
            BadSceneError: it is so narrow that a crop would leave nothing.
        """
        rows, columns = self.first(height, width)
        if self.method.endswith("resize"):
            rows, columns = (max(PATCH, (side + PATCH // 2) // PATCH * PATCH) for side in (rows, columns))
            return Window(height, width, rows, columns, 0, 0, rows, columns)
        cut = [side // PATCH * PATCH for side in (rows, columns)]
        if 0 in cut:
            raise BadSceneError(
                f"an image of {height} x {width} pixels is too narrow: less than {PATCH} pixels would be left of its "
                f"short side at size {self.size}; take the method upper_bound_resize"
            )
        return _cut(Window(height, width, rows, columns, 0, 0, rows, columns), *cut)


def prepare_image(
    image: str | Path | Image.Image | Tensor,
    preprocessing: Da3Preprocessing = Da3Preprocessing(),
) -> PreparedImage:
    """Turn upright (the original does not), resize to ``size``, then to multiples of 14.

    Args:
        image: a file, an image, or [3, H, W] in [0, 1], which is rounded to 8 bits as a file would be.
        preprocessing: sizes.

    Raises:
        BadDataError: the file cannot be read as an image.
        BadSceneError: the image is too narrow.
    """
    upright = upright_image(image)
    pixels = torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    window = preprocessing.window(upright.height, upright.width)
    for size in (preprocessing.first(upright.height, upright.width), (window.resized_height, window.resized_width)):
        now = tuple(pixels.shape[-2:])
        if size != now:
            grows = size[0] > now[0] or size[1] > now[1]
            pixels = (cubic if grows else area)(pixels, *size)
    return PreparedImage(_inside(pixels, window).float() / 255, window)


def cut_alike(prepared: Sequence[PreparedImage]) -> list[PreparedImage]:
    """Images of a call that differ in size, cut around their centres to the smallest height and the smallest width."""
    height, width = (min(one.pixels.shape[axis] for one in prepared) for axis in (-2, -1))
    found = []
    for one in prepared:
        window = _cut(one.window, height, width)
        top, left = window.top - one.window.top, window.left - one.window.left
        found.append(PreparedImage(one.pixels[:, top : top + height, left : left + width], window))
    return found


def normalised_images(pixels: Tensor) -> Tensor:
    """[*, 3, H, W] in [0, 1] as the network takes them: ImageNet's mean and deviation taken out."""
    mean, deviation = (pixels.new_tensor(values)[:, None, None] for values in (_MEAN, _DEVIATION))
    return (pixels - mean) / deviation


def _cut(window: Window, height: int, width: int) -> Window:
    top, left = (window.height - height) // 2, (window.width - width) // 2
    return replace(window, top=window.top + top, left=window.left + left, height=height, width=width)


def _inside(pixels: Tensor, window: Window) -> Tensor:
    return pixels[:, window.top : window.top + window.height, window.left : window.left + window.width]
