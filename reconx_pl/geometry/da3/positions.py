"""Where tokens and pixels are: the learned table, the rotary positions, and the code that the head adds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reconx_pl.geometry.dust3r.rope import patch_positions

_OFFSET = 0.1  # of DINOv2: kept out of the number of rows, and left in the scale
_CODE_BASE = 100.0
_CODE_SHARE = 0.1


def resized_table(table: Tensor, rows: int, columns: int) -> Tensor:
    """The position table for another number of patches, as DINOv2 resizes it.

    Bicubic (A = -0.75, no antialias); row i samples at (i + 0.5) * side / (rows + 0.1) - 0.5.

    Args:
        table: [1, 1 + side^2, C], token 0 first.
        rows: of patches.
        columns: of patches.

    Returns:
        [1, 1 + rows * columns, C], float32 where it was resized.
    """
    side = round((table.shape[1] - 1) ** 0.5)
    if (rows, columns) == (side, side):
        return table
    grid = table[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = [(count + _OFFSET) / side for count in (rows, columns)]
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1].float(), grid.flatten(2).transpose(1, 2)], dim=1)


def token_positions(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """(row, column) of token 0, which is at (0, 0), and of the patches, from (1, 1) on: [1 + rows * columns, 2]."""
    patches = patch_positions(rows, columns, device) + 1
    return torch.cat([patches.new_zeros(1, 2), patches])


def shared_positions(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """What cross-view blocks know of the positions: every patch is at (1, 1), token 0 at (0, 0)."""
    return token_positions(rows, columns, device).clamp(max=1)


def position_code(channels: int, height: int, width: int, aspect: float, device: torch.device | None = None) -> Tensor:
    """What the head adds to a map: sines and cosines of where a pixel is in the image, times 0.1.

    The image has a half diagonal of 1; pixels of a map lie evenly from half of one inside its left border to half of
    one inside its right border.

    Args:
        channels: C, a multiple of 4; the first half is of x, the second of y, in each first sines, then cosines.
        height: rows of the map.
        width: columns of the map.
        aspect: width of the image over its height.
        device: of the result.

    Returns:
        [C, height, width] float32.
    """
    diagonal = (aspect**2 + 1) ** 0.5
    pairs = channels // 4
    frequency = _CODE_BASE ** -(torch.arange(pairs, device=device, dtype=torch.float64) / pairs)

    def code(count: int, half: float) -> Tensor:  # [C / 2, count]
        end = half * (count - 1) / count
        angles = frequency[:, None] * torch.linspace(-end, end, count, device=device, dtype=torch.float64)
        return torch.cat([angles.sin(), angles.cos()])

    x = code(width, aspect / diagonal)[:, None, :].expand(-1, height, -1)
    y = code(height, 1 / diagonal)[:, :, None].expand(-1, -1, width)
    return _CODE_SHARE * torch.cat([x, y]).float()
