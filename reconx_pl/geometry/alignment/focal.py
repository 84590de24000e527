"""The focal length that a point map in its own camera's frame implies."""

from __future__ import annotations

import torch
from torch import Tensor

_MIN_PIXELS = 1e-8  # keeps a weight finite where ray and pixel agree
_NARROWEST, _WIDEST = 10.0, 0.1  # focal lengths over the long side: 6 and 157 degrees


def weiszfeld_focal(points: Tensor, pixels: Tensor, weights: Tensor | None = None, reweightings: int = 10) -> float:
    """The f with the least sum of |pixel - f (x, y) / z|, by reweighted least squares (Weiszfeld; DUSt3R, section 3.3).

    Args:
        points: [N, 3] in the camera's frame; what has no positive z does not count.
        pixels: [2, N] relative to the principal point.
        weights: [N], not negative; None, as in the original, counts every pixel alike, the sky's too.
        reweightings: after one unweighted solution.

    Returns:
        pixels, between 0.1 and 10 times the largest extent of the image.
    """
    xyz, pixels = points.double(), pixels.double()
    front = xyz[:, 2] > 0
    rays = torch.where(front, xyz[:, :2].T / torch.where(front, xyz[:, 2], 1.0), 0.0)  # [2, N]
    share = torch.ones_like(xyz[:, 2]) if weights is None else weights.double()
    dot, square = share * (pixels * rays).sum(0), share * (rays * rays).sum(0)
    focal = dot.sum() / square.sum().clamp(min=1e-12)
    for _ in range(reweightings):
        weight = 1 / torch.linalg.vector_norm(pixels - focal * rays, dim=0).clamp(min=_MIN_PIXELS)
        focal = (weight * dot).sum() / (weight * square).sum().clamp(min=1e-12)
    side = 2 * float(pixels.abs().max())
    return float(focal.clamp(_WIDEST * side, _NARROWEST * side))
