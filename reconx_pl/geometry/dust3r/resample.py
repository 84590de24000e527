"""Depth and confidence of a prepared image, back at the pixels of its photograph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reconx_pl.geometry.dust3r.preprocess import Window

_STEP = 1.05  # ratio of depths in a 2 x 2 neighbourhood above which there is an edge between


def to_photograph(depth: Tensor, confidence: Tensor, window: Window) -> tuple[Tensor, Tensor, Tensor]:
    """Sample at the centres of the photograph's pixels.

    Linear between the four pixels around; where their depths differ by more than 5 %, the nearest of them, so that no
    point floats between a thing and what is behind it.

    Args:
        depth: [V, h, w] world units, positive.
        confidence: [V, h, w].
        window: of all of them.

    Returns:
        depth [V, H, W] and confidence [V, H, W], 0 and 1 outside of what was cut, and whether a pixel is inside [H, W].
    """
    y, x = torch.meshgrid(
        torch.arange(window.source_height, dtype=torch.float32) + 0.5,
        torch.arange(window.source_width, dtype=torch.float32) + 0.5,
        indexing="ij",
    )
    scale_x, scale_y = window.scale
    x, y = x * scale_x - window.left, y * scale_y - window.top  # corner of the prepared image at (0, 0)
    inside = (x >= 0) & (x <= window.width) & (y >= 0) & (y <= window.height)
    grid = torch.stack([2 * x / window.width - 1, 2 * y / window.height - 1], -1).expand(len(depth), -1, -1, -1)
    grid = grid.to(depth)

    def sample(maps: Tensor, mode: str) -> Tensor:
        return F.grid_sample(maps, grid, mode=mode, padding_mode="border", align_corners=False)

    padded = F.pad(depth[:, None], (1, 1, 1, 1), mode="replicate")
    farthest, nearest = F.max_pool2d(padded, 3, 1), -F.max_pool2d(-padded, 3, 1)
    both = torch.stack([depth, confidence], 1)
    edge = sample((farthest > _STEP * nearest).to(depth), "nearest") > 0
    depth, confidence = torch.where(edge, sample(both, "nearest"), sample(both, "bilinear")).unbind(1)
    inside = inside.to(depth.device)
    return torch.where(inside, depth, 0.0), torch.where(inside, confidence, 1.0), inside
