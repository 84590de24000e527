"""Rotary position embedding in two dimensions: rows turn the first half of a head's channels, columns the second."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosine and sine of every token's angles, float32: [N, 2, d/4] or [B, 1, N, 2, d/4], d the width of a head.

    The axis of 2 is (row, column).
    """

    cos: Tensor
    sin: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Turn queries or keys [B, heads, N, d]; computed in float32, returned in the type of ``x``."""
        a, b = x.unflatten(-1, (2, 2, -1)).unbind(-2)  # channel k goes with channel k + d/4 of the same half
        turned = torch.stack([a * self.cos - b * self.sin, b * self.cos + a * self.sin], dim=-2)
        return turned.flatten(-3).to(x.dtype)


def patch_positions(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """(row, column) of the patches of an image in reading order: [rows * columns, 2]."""
    return torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device))


def rotation_of(positions: Tensor, head_width: int, base: float) -> Rotation:
    """The rotation of tokens at ``positions``.

    Nothing here waits for the device, and angles are float32 under autocast too: in half precision positions beyond
    the first few patches would be turned by visibly wrong angles.

    Args:
        positions: [N, 2] or [B, N, 2] as (row, column), patches.
        head_width: d, a multiple of 4.
        base: frequencies are base^(-4k/d), k from 0 to d/4 - 1.
    """
    pairs = head_width // 4
    exponents = torch.arange(pairs, device=positions.device, dtype=torch.float32) / pairs
    angles = positions[..., None].float() * base**-exponents  # [..., N, 2, d/4]
    if angles.ndim == 4:
        angles = angles[:, None]  # one set an image, the same for every head
    return Rotation(angles.cos(), angles.sin())
