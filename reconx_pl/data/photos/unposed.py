"""Photographs whose poses or points are not known, as scenes: an estimator finds what is missing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from reconx_pl.data.formats.found_poses import EstimatedScene, with_found_poses
from reconx_pl.data.formats.images import IMAGE_SUFFIXES, exif_orientation, image_size, natural_key, read_upright
from reconx_pl.data.formats.readers import detect_format
from reconx_pl.data.formats.scene import RawFrame, RawScene
from reconx_pl.errors import BadDataError, BadSceneError
from reconx_pl.geometry.estimators.base import PointMapEstimator, name_of

log = logging.getLogger(__name__)

Views = Literal["inputs", "clip"]


def photograph_files(folder: Path) -> list[Path]:
    """The image files of a folder, or of ``images`` in it, in natural order of name; empty if there are none."""
    places = [folder, folder / "images"]
    for place in places:
        files = [path for path in place.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES] if place.is_dir() else []
        if files:
            return sorted(files, key=lambda path: natural_key(path.name))
    return []


def without_poses(folder: Path) -> bool:
    """Whether a folder has photographs and nothing that a reader of posed scenes knows."""
    if not photograph_files(folder):
        return False
    try:
        detect_format(folder)
    except BadDataError:
        return True
    return False


def has_geometry(raw: RawScene, frames: Sequence[int]) -> bool:
    """Whether a clip of these frames finds points, or depth of its first or last frame, in the scene."""
    return raw.cloud is not None or any(raw.frames[frames[end]].load_depth is not None for end in (0, -1))


def scene_of_photographs(files: Sequence[Path], estimator: PointMapEstimator) -> EstimatedScene:
    """Find cameras and points of photographs without poses.

    An EXIF orientation is applied: no poses belong to the stored pixels.

    Args:
        files: the photographs, of one camera and one size.
        estimator: finds both.

    Returns:
        a scene in the estimator's own world.

    Raises:
        BadSceneError: fewer than two, of different sizes, or not to be reconstructed; names the photographs.
        BadDataError: an image that cannot be decoded.
    """
    if len(files) < 2:
        raise BadSceneError(f"{files[0] if files else 'no photographs'}: a reconstruction needs at least two")
    frames = []
    for number, path in enumerate(files):
        width, height = image_size(path, str(path))
        if exif_orientation(path) >= 5:
            width, height = height, width
        load = partial(read_upright, path, str(path))
        frames.append(RawFrame(str(path), width, height, np.eye(3), np.eye(4), frame_id=number, load=load))
    folder = files[0].parent.parent if files[0].parent.name == "images" else files[0].parent
    blank = RawScene(folder.resolve().name, "photographs", tuple(frames), folder)
    return with_found_poses(
        blank,
        estimator,
        f"poses and points found by {name_of(estimator)} from {len(files)} photographs, targets included",
    )
