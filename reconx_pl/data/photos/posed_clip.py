"""Photographs to points to frames to Gaussians: the one place that knows the whole chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from reconx_pl.data.formats.found_poses import EstimatedScene, with_estimated_points, with_points_of
from reconx_pl.data.formats.posed import write_posed
from reconx_pl.data.formats.readers import only_scene
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.data.packing.clip_sampling import MIN_POINTS, crop_depth, scene_clip
from reconx_pl.data.photos.unposed import Views, has_geometry, photograph_files, scene_of_photographs, without_poses
from reconx_pl.data.shards.clouds import Poses
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import resize_and_crop
from reconx_pl.geometry.default_estimator import default_estimator
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.types import Clip


@dataclass(frozen=True)
class SceneWindow:
    """Which photographs of a posed scene become a clip for evaluation.

    Args:
        frames: frames of the clip; the first and the last are the inputs, those between are the truth.
        start: index of the first photograph; None centres the window.
        stride: photographs from one frame of the clip to the next.
        height: rows of the packed frames, pixels.
        width: columns of the packed frames, pixels.
        points: cloud points asked of the scene's geometry.
        fps: frame rate that photographs without time stamps are said to have; one that the model was trained with.
    """

    frames: int = 8
    start: int | None = None
    stride: int = 1
    height: int = 128
    width: int = 128
    points: int = 16384
    fps: float = 8.0

    def indices(self, views: int, name: str) -> list[int]:
        """Indices of the photographs.

        Raises:
            BadSceneError: the scene has too few photographs.
        """
        span = (self.frames - 1) * self.stride + 1
        start = (views - span) // 2 if self.start is None else self.start
        if start < 0 or start + span > views:
            raise BadSceneError(
                f"scene {name} has {views} photographs; {self.frames} frames with stride {self.stride} from "
                f"{max(start, 0)} need {max(start, 0) + span}. Ask for fewer frames"
            )
        return list(range(start, start + span, self.stride))


def posed_clip(
    folder: Path,
    window: SceneWindow,
    estimator: PointMapEstimator | None = None,
    poses: Poses = "dataset",
    views: Views = "inputs",
) -> Clip:
    """A clip out of a folder of photographs, posed in any of the supported formats or without poses.

    Where the folder has no poses, poses and points are found from the photographs of the clip. Where it has poses but
    neither depth nor points, points are found from the two input views. Without an ``estimator``, ``default_estimator``
    does both, and the log says so. An estimator that finds depth pixel by pixel also gives the clip the depth and the
    confidence of the input views.

    Args:
        folder: a posed scene, or photographs, or ``images`` with photographs.
        window: which of them.
        estimator: takes the place of depth and points that came with the scene, too.
        poses: "dataset" hands the poses of the scene to the estimator; "estimated" lets it find its own, aligns both,
            and records the residual in the clip. Needs an ``estimator``.
        views: of a posed scene, those that the estimator sees: the two input views, or all of the clip, which gives
            more points and lets it see the targets.

    Raises:
        BadSceneError: too few photographs, or they cannot be reconstructed.
        BadDataError: nothing readable in the folder.
        ConfigurationError: poses "estimated" without an estimator.
    """
    if poses == "estimated" and estimator is None:
        raise ConfigurationError("poses 'estimated' needs an estimator: name one with --estimator")
    folder = Path(folder)
    found: EstimatedScene | None = None
    if without_poses(folder):
        files = photograph_files(folder)
        chosen = estimator or default_estimator(folder, "poses")
        found = scene_of_photographs([files[index] for index in window.indices(len(files), folder.name)], chosen)
        raw, indices = found.scene, list(range(window.frames))
    else:
        raw = only_scene(folder)
        indices = window.indices(len(raw), raw.name)
        if estimator is None and not has_geometry(raw, indices):
            estimator = default_estimator(folder, "points and no depth")
        if estimator is not None:
            found = with_points_of(raw, indices if views == "clip" else [indices[0], indices[-1]], estimator, poses)
            raw = found.scene
    clip = scene_clip(raw, indices, window.height, window.width, points=window.points, default_fps=window.fps)
    if clip.cloud is None:
        raise BadSceneError(
            f"{folder}: fewer than {MIN_POINTS} points fall into the two input views, too few to fit to; choose other "
            "photographs (window.start, window.stride), take the points of all photographs of the clip (views: clip), "
            "or add those of a reconstruction"
        )
    if found is None:
        return clip
    depth, confidence = found.maps or (None, None)
    return replace(
        clip,
        geometry=found.geometry,
        alignment=found.alignment,
        depth=_cropped(depth, raw, indices, window),
        confidence=_cropped(confidence, raw, indices, window),
    )


def _cropped(maps: Tensor | None, raw: RawScene, indices: Sequence[int], window: SceneWindow) -> Tensor | None:
    """Of maps [V, h, w] of the frames that an estimator saw, those of the input views, [2, H, W]: the outermost."""
    if maps is None:
        return None
    ends = replace(raw, frames=(raw.frames[indices[0]], raw.frames[indices[-1]])).cameras
    cameras, resized, offset = resize_and_crop(ends, window.height, window.width)
    return torch.stack([crop_depth(maps[end].numpy(), cameras, resized, offset) for end in (0, -1)])


@dataclass(frozen=True)
class FoundGeometry:
    """What ``find_geometry`` wrote."""

    views: int
    points: int


def find_geometry(source: Path, out: Path, estimator: PointMapEstimator | None = None) -> FoundGeometry:
    """Photographs to a scene in the package's own layout (``data/posed.md``), which every other command reads.

    Args:
        source: photographs, or ``images`` with photographs, or a posed scene, whose poses are kept and whose points
            are made anew from all its photographs.
        out: folder of the scene; must not hold one yet.
        estimator: None takes ``default_estimator``.

    Raises:
        BadSceneError: the photographs cannot be reconstructed; names them.
        BadDataError: nothing readable in ``source``.
        ConfigurationError: ``out`` holds a scene.
    """
    source, out = Path(source), Path(out)
    if (out / "cameras.json").exists():
        raise ConfigurationError(f"{out / 'cameras.json'} is there already; name another folder, or remove it")
    if without_poses(source):
        found = scene_of_photographs(photograph_files(source), estimator or default_estimator(source, "poses"))
    else:
        raw = only_scene(source)
        found = with_estimated_points(raw, estimator or default_estimator(source, "points"))
    write_posed(found.scene, out)
    assert found.scene.cloud is not None
    return FoundGeometry(len(found.scene), len(found.scene.cloud))
