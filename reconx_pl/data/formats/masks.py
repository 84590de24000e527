"""Masks of raw scenes: which pixels show the object that is scored."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from reconx_pl.data.formats.images import image_size, read_rgb
from reconx_pl.errors import BadDataError


def mask_file(folders: Iterable[Path], view: int) -> Path | None:
    """``000.png`` or ``000000.png`` of a view in the first folder that has it; None if none has."""
    for folder in folders:
        for digits in (3, 6):
            file = folder / f"{view:0{digits}d}.png"
            if file.is_file():
                return file
    return None


def read_mask(path: Path, width: int, height: int) -> np.ndarray:
    """bool [height, width], True where the mask is at least half bright; resized to the nearest where it is larger.

    Raises:
        BadDataError: not an image, or one of another aspect; names it.
    """
    found = image_size(path, str(path))
    if abs(found[0] * height - found[1] * width) > max(width, height):
        raise BadDataError(f"{path}: the mask is {found[0]}x{found[1]}, the image {width}x{height}: another aspect")
    mask = Image.fromarray(read_rgb(path, str(path))).convert("L")
    if mask.size != (width, height):
        mask = mask.resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(mask) >= 128
