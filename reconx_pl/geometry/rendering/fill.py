"""Holes of a rendered image filled from around them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reconx_pl.errors import ConfigurationError

GREY = 0.5  # where nothing is covered at all


@torch.no_grad()
def fill_holes(color: Tensor, coverage: Tensor) -> Tensor:
    """Fill what is not covered by push and pull (Gortler et al., The Lumigraph, 1996, section 3.4).

    Down a pyramid of halves, every cell is the mean of what it covers, weighted by the coverage; up it again, what a
    cell lacks comes from the coarser level by bilinear interpolation.

    Args:
        color: [*, 3, H, W] in [0, 1], over black as in ``Rendered``: half covered is half as bright.
        coverage: [*, H, W] in [0, 1], or bool.

    Returns:
        [*, 3, H, W]: ``color`` to the bit where the coverage is 1, elsewhere ``color`` plus as much of the filling as
        the coverage lacks; mid grey where nothing is covered at all.

    Raises:
        ConfigurationError: shapes that do not go together.
    """
    if color.ndim < 3 or color.shape[-3] != 3 or (*color.shape[:-3], *color.shape[-2:]) != tuple(coverage.shape):
        raise ConfigurationError(
            f"color {tuple(color.shape)} and coverage {tuple(coverage.shape)} are not [*, 3, H, W] and [*, H, W]"
        )
    weight = coverage.to(color).reshape(-1, 1, *coverage.shape[-2:])
    levels = [(color.reshape(-1, *color.shape[-3:]), weight)]
    while max(levels[-1][1].shape[-2:]) > 1:
        levels.append(_half(*levels[-1]))
    above, weight = levels.pop()
    result = torch.where(weight > 0, above / torch.where(weight > 0, weight, 1.0), GREY)
    while levels:
        above, weight = levels.pop()
        coarse = F.interpolate(result, size=above.shape[-2:], mode="bilinear", align_corners=False)
        result = above + (1 - weight) * coarse.clamp(0, 1)
    return result.view_as(color)


def _half(color: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over 2 x 2 cells, an odd row or column alone; where they cover more than a cell, their mean."""
    odd = (0, color.shape[-1] % 2, 0, color.shape[-2] % 2)
    color, weight = (4 * F.avg_pool2d(F.pad(part, odd), 2) for part in (color, weight))
    return color / weight.clamp(min=1), weight.clamp(max=1)
