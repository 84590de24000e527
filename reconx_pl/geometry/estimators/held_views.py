"""Which of the cameras that an estimator is given are known, and have to come back as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.types import Cameras


def held_views(images: Tensor, cameras: Cameras | None, fixed: Tensor | None) -> Tensor:
    """Which cameras are known.

    Args:
        images: [V, 3, H, W].
        cameras: V views; None: none is known.
        fixed: [V] bool, which of ``cameras`` are known; None: all.

    Returns:
        [V] bool on the CPU.

    Raises:
        ConfigurationError: cameras that do not go with the images, or ``fixed`` that does not go with the cameras.
        BadCameraError: a known camera that cannot be used.
    """
    views, _, height, width = images.shape
    if cameras is None:
        if fixed is not None:
            raise ConfigurationError("known says which of the cameras are known, and there are no cameras")
        return torch.zeros(views, dtype=torch.bool)
    if len(cameras) != views or (cameras.height, cameras.width) != (height, width):
        raise ConfigurationError(
            f"{len(cameras)} cameras of {cameras.height} x {cameras.width} pixels do not go with images "
            f"{tuple(images.shape)}; resize or crop both alike"
        )
    held = torch.ones(views, dtype=torch.bool) if fixed is None else fixed.cpu()
    if held.dtype != torch.bool or held.shape != (views,):
        raise ConfigurationError(f"known is one bool a view, got {held.dtype} {tuple(held.shape)} for {views} views")
    if held.any():
        cameras[held.nonzero()[:, 0]].check("the known cameras")
    return held
