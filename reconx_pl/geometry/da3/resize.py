"""OpenCV's resizing of 8-bit images, as Depth-Anything-3 prepares its inputs, by formula and without OpenCV."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def area(image: Tensor, height: int, width: int) -> Tensor:
    """To fewer rows and columns: the mean of what each pixel covers, exactly (INTER_AREA).

    Args:
        image: [3, H, W] uint8.
        height: rows, at most H.
        width: columns, at most W.

    Returns:
        [3, height, width] uint8, rounded; at most one level off OpenCV's, which sums in float32.
    """
    rows = _means(image.double().transpose(-1, -2), height).transpose(-1, -2)
    return _means(rows, width).round().clamp(0, 255).byte()


def cubic(image: Tensor, height: int, width: int) -> Tensor:
    """By a cubic of the 4 x 4 pixels around, A = -0.75, no antialias (INTER_CUBIC): see ``area``."""
    resized = F.interpolate(image[None].double(), (height, width), mode="bicubic", align_corners=False)[0]
    return resized.round().clamp(0, 255).byte()


def _means(values: Tensor, count: int) -> Tensor:
    """[..., old] to [..., count]: means over intervals of old / count, whose ends lie within old values."""
    old = values.shape[-1]
    sums = F.pad(values.cumsum(-1), (1, 0))
    edges = torch.arange(count + 1, dtype=values.dtype) * old / count
    whole = edges.long().clamp(max=old - 1)
    below = sums[..., whole] + (edges - whole) * values[..., whole]
    return below.diff(dim=-1) * count / old
