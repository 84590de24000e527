"""Photographs of a procedural room, an estimator that knows its cameras, and a view generator that counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from reconx_pl.data.procedural import procedural_scene, render_scene
from reconx_pl.errors import UnplacedViewsError
from reconx_pl.geometry.cameras import resize_cameras
from reconx_pl.geometry.estimators.base import Reconstruction
from reconx_pl.geometry.point_maps import cloud_from_maps, point_map_from_depth
from reconx_pl.reconstruction.run import Reconstructed, reconstruct
from reconx_pl.reconstruction.settings import GenerationConfig, ReconstructionConfig
from reconx_pl.reconstruction.view_generator import ViewGeneratorSource
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.types import Cameras, Clip

SIZE = (64, 96)  # rows, columns
CONFIG = ReconstructionConfig(
    max_side=96,
    short_side=32,
    generation=GenerationConfig(frames=4, height=32, width=48, loop="never"),
    fit=FitConfig(steps=12, loss=LossWeights(lpips=0.0)),
    flythrough_frames=4,
)


@dataclass
class Room:
    """V photographs on disk and what is true about them."""

    files: list[Path]
    cameras: Cameras
    depth: torch.Tensor


def room(folder: Path, views: int = 3, seed: int = 5) -> Room:
    made = procedural_scene(seed, "room", 1.0)
    cameras = made.path.cameras(np.linspace(0.0, 1.0, views), *SIZE)
    seen = render_scene(made.scene, cameras, 2)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"photo_{view}.png" for view in range(views)]
    for file, image in zip(files, seen.frames, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    return Room(files, cameras.to(dtype=torch.float32), seen.depth)


@dataclass
class Surveyor:
    """Finds the true cameras and depth of a room; counts its calls, and does not place what it is told to lose."""

    room: Room
    lost: tuple[int, ...] = ()
    calls: int = 0
    identity: str = "a surveyor"

    def estimate(
        self, images: torch.Tensor, cameras: Cameras | None = None, fixed: torch.Tensor | None = None
    ) -> Reconstruction:
        self.calls += 1
        if fixed is not None:  # all frames: a wall at the mean depth of the room
            assert cameras is not None
            wall = torch.full(images[:, 0].shape, float(self.room.depth.mean()))
            flat = point_map_from_depth(wall, cameras, torch.full_like(wall, 3.0))
            return Reconstruction(cameras, flat, cloud_from_maps(flat, images, 800))
        here = [view for view in range(len(self.room.files)) if view not in self.lost]
        if len(images) > len(here):
            raise UnplacedViewsError("no place was found for some images", self.lost)
        size = images.shape[-2:]
        true = resize_cameras(self.room.cameras[here], *size)
        depth = torch.nn.functional.interpolate(self.room.depth[here][:, None], size=size, mode="nearest-exact")
        maps = point_map_from_depth(depth[:, 0], true)
        return Reconstruction(true, maps, cloud_from_maps(maps, images, 800))


@dataclass
class Fader:
    """Blends the two photographs; may be stopped after some clips."""

    clips: list[Clip] = field(default_factory=list)
    stop_after: int | None = None

    def generate(self, clip: Clip, generator: torch.Generator) -> torch.Tensor:
        if self.stop_after is not None and len(self.clips) == self.stop_after:
            raise KeyboardInterrupt
        self.clips.append(clip)
        share = torch.linspace(0, 1, len(clip.cameras))[:, None, None, None]
        return clip.images[0] * (1 - share) + clip.images[-1] * share

    def source(self) -> ViewGeneratorSource:
        return ViewGeneratorSource("a fader", lambda: self)


def made(stages: Reconstructed) -> list[str]:
    return [stage.name for stage in stages.stages if not stage.reused]


def go(
    three: Room, out: Path, view_generator: Fader | None = None, config: ReconstructionConfig = CONFIG, **more: Any
) -> Any:
    surveyor = more.pop("surveyor", None) or Surveyor(three)
    return reconstruct(three.files, out, config, surveyor, view_generator.source() if view_generator else None, **more)


def folder_of(result: Reconstructed, name: str) -> Path:
    return next(stage.folder for stage in result.stages if stage.name == name)
