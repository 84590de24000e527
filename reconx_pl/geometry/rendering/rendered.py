"""What a renderer of conditions gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from reconx_pl.types import Tensors


@dataclass(frozen=True)
class Rendered(Tensors):
    """M views of what is known of a scene, and where nothing is.

    Args:
        color: [M, 3, H, W] float32 in [0, 1], over black: a hole is black, and what is covered by half is half as
            bright.
        coverage: [M, H, W] float32 in [0, 1]; of a surface 0 or 1, of points their alpha.
        depth: [M, H, W] float32 along the optical axis, world units; 0 in a hole, infinite where the scene is known to
            be far (sky).
    """

    color: Tensor  # [M, 3, H, W]
    coverage: Tensor  # [M, H, W]
    depth: Tensor  # [M, H, W] world units

    def __len__(self) -> int:
        return self.color.shape[0]
