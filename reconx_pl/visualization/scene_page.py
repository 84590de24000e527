"""The page of a fitted scene, with its photographs and generated frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from reconx_pl.types import Cameras, Gaussians
from reconx_pl.visualization.viewer import write_scene_page

_SIDE = 96  # pixels of the pictures in the pyramids


def write_fit_page(
    path: Path, gaussians: Gaussians, frames: Tensor, cameras: Cameras, photographs: Sequence[int], title: str
) -> None:
    """Write the page of a scene; the photographs and the generated frames stand in it as small pyramids.

    Args:
        path: of the file.
        gaussians: the scene.
        frames: [S, 3, H, W] in [0, 1] that it was fitted to.
        cameras: S views.
        photographs: their places among the frames; the page starts at the first.
        title: of the page.

    Raises:
        BadSceneError: see ``write_scene_page``.
    """
    generated = sorted(set(range(len(frames))) - set(photographs))
    height, width = frames.shape[-2:]
    smaller = min(1.0, _SIDE / max(height, width))
    size = max(1, round(height * smaller)), max(1, round(width * smaller))
    places = list(photographs)
    write_scene_page(
        path,
        gaussians,
        cameras[places],
        title=title,
        images=F.interpolate(frames[places].detach().float().cpu(), size, mode="area"),
        frames=cameras[generated] if generated else None,
    )
