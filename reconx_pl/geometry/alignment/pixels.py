"""The pixel convention of DUSt3R, and the border to ours.

DUSt3R numbers pixels: the centre of the first is (0, 0), and its principal point, which the alignment does not move, is
(W / 2, H / 2). In the convention of this package (``reconx_pl.types``) the centre of the first pixel is (0.5, 0.5), so
that the same principal point reads (W / 2 + 0.5, H / 2 + 0.5). Whatever enters or leaves the alignment crosses here.
"""

from __future__ import annotations

import torch
from torch import Tensor

HALF = 0.5  # pixels: ours = DUSt3R's + HALF


def default_principal_point(height: int, width: int) -> tuple[float, float]:
    """(x, y) in this package's convention of what DUSt3R takes for the principal point of an image of this size."""
    return width / 2 + HALF, height / 2 + HALF


def default_intrinsics(focal: Tensor, height: int, width: int) -> Tensor:
    """[3, 3] pixels, this package's convention, for a focal length in pixels and square pixels."""
    x, y = default_principal_point(height, width)
    matrix = torch.eye(3, dtype=focal.dtype, device=focal.device)
    matrix[0, 0] = matrix[1, 1] = focal
    matrix[0, 2], matrix[1, 2] = x, y
    return matrix


def centred_pixels(height: int, width: int, intrinsics: Tensor | None = None) -> Tensor:
    """Pixel centres relative to the principal point, so that a ray is (x / fx, y / fx, 1): [2, H * W] float64.

    Args:
        height: rows.
        width: columns.
        intrinsics: [3, 3] in this package's convention; where fy is not fx, y is stretched by fx / fy. None is the
            default principal point and square pixels.
    """
    stretch, (x0, y0) = 1.0, default_principal_point(height, width)
    if intrinsics is not None:
        (fx, _, x0), (_, fy, y0), _ = intrinsics.double().tolist()
        stretch = fx / fy
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64) + HALF - y0,
        torch.arange(width, dtype=torch.float64) + HALF - x0,
        indexing="ij",
    )
    return torch.stack([x.flatten(), y.flatten() * stretch])
