"""Photographs with depth: what is rendered into other cameras."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.types import Cameras, Tensors


@dataclass(frozen=True)
class DepthViews(Tensors):
    """V photographs with their depth and cameras.

    Args:
        images: [V, 3, H, W] in [0, 1].
        depth: [V, H, W] along the optical axis, world units; 0, negative or NaN = unknown, +inf = known to be
            far (sky).
        cameras: V views of H x W pixels.
        confidence: [V, H, W] on DUSt3R's scale, >= 1; None trusts every pixel alike.

    Raises:
        ConfigurationError: shapes that do not go together.
    """

    images: Tensor  # [V, 3, H, W]
    depth: Tensor  # [V, H, W] world units
    cameras: Cameras
    confidence: Tensor | None = None  # [V, H, W]

    def __post_init__(self) -> None:
        images, depth = tuple(self.images.shape), tuple(self.depth.shape)
        if len(images) != 4 or images[1] != 3 or depth != (images[0], *images[2:]):
            raise ConfigurationError(f"images {images} and depth {depth} are not [V, 3, H, W] and [V, H, W]")
        if self.confidence is not None and tuple(self.confidence.shape) != depth:
            raise ConfigurationError(f"confidence {tuple(self.confidence.shape)} does not go with depth {depth}")
        cameras = (len(self.cameras), self.cameras.height, self.cameras.width)
        if cameras != depth:
            raise ConfigurationError(
                f"depth {depth} does not go with {cameras[0]} cameras of {cameras[1]} x {cameras[2]} pixels"
            )

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def finite(self) -> Tensor:  # [V, H, W] bool: pixels on a surface
        return torch.isfinite(self.depth) & (self.depth > 0)

    @property
    def sky(self) -> Tensor:  # [V, H, W] bool: pixels known to be far
        return self.depth == torch.inf

    def known(self, min_confidence: float = 1.0) -> DepthViews:
        """The same with every unknown depth 0, and depth less confident than ``min_confidence`` unknown too.

        Raises:
            BadSceneError: this leaves no pixel.
        """
        known = self.finite | self.sky
        if not bool(known.any()):
            raise BadSceneError("no pixel of any view has a depth; give at least one view some, or infinity for sky")
        if self.confidence is not None:
            known = known & (self.confidence >= min_confidence)
            if not bool(known.any()):
                raise BadSceneError(f"no pixel has a confidence of at least {min_confidence:g}; lower min_confidence")
        return replace(self, depth=torch.where(known, self.depth, 0.0))
