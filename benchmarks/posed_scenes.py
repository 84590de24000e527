"""Posed photographs for measurements of the fit: small frames, every 8th held out, points from some of the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from reconx_pl.data.formats.found_poses import with_points_of
from reconx_pl.data.formats.readers import only_scene
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.geometry.cameras import resize_cameras
from reconx_pl.geometry.estimators.colmap import ColmapEstimator
from reconx_pl.types import Cameras, PointCloud

HOLD_OUT = 8  # every 8th view is scored and never fitted


@dataclass(frozen=True)
class PosedScene:
    """Frames [V, 3, H, W] in [0, 1] with their cameras, and the raw scene that they came from."""

    name: str
    frames: Tensor
    cameras: Cameras
    raw: RawScene

    @property
    def held_out(self) -> list[int]:
        return list(range(0, len(self.frames), HOLD_OUT))

    @property
    def training(self) -> list[int]:
        return [view for view in range(len(self.frames)) if view % HOLD_OUT]


def posed_scene(folder: Path, short_side: int) -> PosedScene:
    """The scene of a folder with its frames reduced (Lanczos) to ``short_side`` pixels; nothing is cropped."""
    raw = only_scene(folder)
    cameras = raw.cameras
    scale = short_side / min(cameras.height, cameras.width)
    height, width = round(cameras.height * scale), round(cameras.width * scale)
    images = [
        np.array(Image.fromarray(raw.load_image(view)).resize((width, height), Image.Resampling.LANCZOS))
        for view in range(len(raw))
    ]
    frames = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    small = resize_cameras(cameras, height, width).to(dtype=torch.float32)
    return PosedScene(folder.resolve().name, frames.contiguous(), small, raw)


def points_from(raw: RawScene, views: Sequence[int], cache: Path) -> PointCloud:
    """Cloud that structure from motion triangulates from some views, with their known poses; kept in ``cache``."""
    estimator = ColmapEstimator()
    wanted = json.dumps([raw.name, list(views), estimator.identity])
    file = cache / f"{raw.name}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}.safetensors"
    if not file.is_file():
        cloud = with_points_of(replace(raw, cloud=None), views, estimator).scene.cloud
        assert cloud is not None
        cache.mkdir(parents=True, exist_ok=True)
        save_file({name: getattr(cloud, name).contiguous() for name in ("points", "colors", "confidence")}, file)
    return PointCloud(**load_file(file))
