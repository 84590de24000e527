"""A scene rendered along a camera path, one frame at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reconx_pl.splatting.renderers.base import Renderer
from reconx_pl.types import Cameras, Gaussians, Progress
from reconx_pl.visualization.video import to_uint8

SOLID = 0.5  # alpha from which a pixel has a depth


@dataclass(frozen=True)
class Flythrough:
    """frames [M, H, W, 3] uint8; depth [M, H, W] float32, world units, 0 where the scene is less than half opaque."""

    frames: np.ndarray
    depth: Tensor


@torch.no_grad()
def render_flythrough(
    gaussians: Gaussians, cameras: Cameras, renderer: Renderer, progress: Progress | None = None
) -> Flythrough:
    """Render every camera; ``progress`` counts frames. Tensors of the result are on the CPU."""
    cameras = cameras.to(device=gaussians.means.device, dtype=torch.float32)
    frames = np.empty((len(cameras), cameras.height, cameras.width, 3), np.uint8)
    depth = torch.empty(len(cameras), cameras.height, cameras.width)
    for view in range(len(cameras)):
        seen = renderer.render(gaussians, cameras[view])
        frames[view] = to_uint8(seen.color)[0]
        depth[view] = torch.where(seen.alpha >= SOLID, seen.depth, 0.0)[0].cpu()
        if progress is not None:
            progress("rendering", view + 1, len(cameras))
    return Flythrough(frames, depth)
