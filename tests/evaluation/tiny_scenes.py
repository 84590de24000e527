"""Tiny scenes, a view generator and settings that the tests of the runner share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from reconx_pl.data.procedural import procedural_clip, procedural_scene, render_scene
from reconx_pl.evaluation.entry_views import EntryViews, LazyViews
from reconx_pl.evaluation.runner import EvaluationConfig
from reconx_pl.geometry.estimators.base import Reconstruction
from reconx_pl.geometry.point_maps import cloud_from_maps, point_map_from_depth
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.types import Cameras, Clip

QUICK = FitConfig(steps=20, loss=LossWeights(lpips=0.0))
CONFIG = EvaluationConfig(
    fit=QUICK, metrics=("psnr", "ssim"), media=False, filled_render=False, filled_render_splats=False
)
ENTRIES = replace(CONFIG, pose_policy="interpolated", clip_frames=4)
MODEL, PROTOCOL = "test view generator 1", {"name": "tiny", "hash": "0123"}


def tiny_clip(seed: int, frames: int = 5) -> Clip:
    return procedural_clip(seed, frames=frames, size=(32, 32), points=600, kind="room")


def tiny_views(
    seed: int, contexts: Sequence[int] = (0, 4), targets: Sequence[int] = (1, 2), size: tuple[int, int] = (32, 32)
) -> EntryViews:
    """Of a path of 9 views through a room; the context views have exact depth."""
    made = procedural_scene(seed, "room", 1.0)
    cameras = made.path.cameras(np.linspace(0.0, 1.0, 9), *size)
    seen = render_scene(made.scene, cameras, 2)
    images, context, target = seen.frames.float() / 255, list(contexts), list(targets)
    return EntryViews(
        key=f"room-{seed}",
        dataset="procedural",
        scene=str(seed),
        context_images=images[context],
        context_cameras=cameras[context],
        context_indices=tuple(context),
        target_images=images[target],
        target_cameras=cameras[target],
        target_indices=tuple(target),
        context_depth=seen.depth[context],
    )


def lazily(*entries: EntryViews) -> list[LazyViews]:
    return [LazyViews(views.key, lambda views=views: views) for views in entries]


class CrossFade:
    """Generates by blending the two views; counts its calls and remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[Clip] = []

    def generate(self, clip: Clip, generator: torch.Generator) -> torch.Tensor:
        self.seen.append(clip)
        first, last = clip.images[0], clip.images[-1]
        share = torch.linspace(0, 1, len(clip.cameras))[:, None, None, None]
        return first * (1 - share) + last * share


class Oracle:
    """An estimator that finds the cameras it was made with, a plane, and a confidence that differs between frames."""

    identity = "an oracle"

    def __init__(self, cameras: Cameras) -> None:
        self.cameras, self.seen = cameras, []

    def estimate(
        self, images: torch.Tensor, cameras: Cameras | None = None, fixed: torch.Tensor | None = None
    ) -> Reconstruction:
        self.seen.append((images, cameras, fixed))
        found = self.cameras if fixed is not None else cameras
        depth = torch.full(images[:, 0].shape, 3.0)
        depth[:, 0] = 0
        confidence = torch.full_like(depth, 5.0)
        confidence[1] = 1.5
        maps = point_map_from_depth(depth, found, confidence)
        return Reconstruction(found, maps, cloud_from_maps(maps, images, 300))
