"""Where the camera of a generated sequence goes, chosen by one word or a file, and which input views lie on its way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from reconx_pl.data.formats.camera_path_file import read_camera_path
from reconx_pl.errors import ConfigurationError
from reconx_pl.files.checksums import file_sha256
from reconx_pl.geometry.camera_paths import PATHS
from reconx_pl.geometry.cameras import with_views
from reconx_pl.geometry.clip_paths import path_cameras, viewcrafter_path
from reconx_pl.types import Cameras, Tensors

PathKind = Literal["interpolated", "viewcrafter", "orbit", "spiral", "file"]
PATH_WORDS: tuple[str, ...] = tuple(kind for kind in get_args(PathKind) if kind != "file")
_THROUGH = {"interpolated": path_cameras, "viewcrafter": viewcrafter_path}  # every input view, at a place of its own

# A path camera that is this near to an input view shows its photograph: half a pixel at 0.05 degrees for 512 pixels.
NEAR = 1e-4  # of the extent of the input views; of the way from a single one to the farthest camera
TURNED = 0.05  # degrees
SHIFTED = 0.5  # pixels between the corners of the two images, for lenses that differ
_ROUNDING = 1e-6  # of the distance from the origin: a centre out of a float32 pose is no better


@dataclass(frozen=True)
class PathConfig:
    """Which path the camera takes.

    Args:
        kind: "interpolated" goes straight and evenly from each view to the next, "viewcrafter" with ViewCrafter's
            timing (``viewcrafter_path``); "orbit" and "spiral" go around what the views look at
            (``geometry/camera_paths.py``); "file" reads ``file``.
        frames: M of an orbit or a spiral; None takes as many as an interpolated path would have, and of a single view
            as many as a closed one of two. Between views there are as many as a clip has, and a file has its own: give
            none there.
        file: of kind "file": our cameras.json, nerfstudio's camera_path.json, or transforms.json, in the world of the
            scene (``read_camera_path``).

    Raises:
        ConfigurationError: options that contradict each other.
    """

    kind: PathKind = "interpolated"
    frames: int | None = None
    file: Path | None = None

    def __post_init__(self) -> None:
        if (self.kind == "file") != (self.file is not None):
            raise ConfigurationError(f"a path of kind {self.kind} does not go with the file {self.file}")
        if self.frames is not None and self.kind not in PATHS.keys() - _THROUGH.keys():
            raise ConfigurationError(
                f"a path of kind {self.kind} has the frames of its clips or of its file; say no number of frames"
            )
        if self.frames is not None and self.frames < 2:
            raise ConfigurationError(f"a path has at least 2 frames, got {self.frames}")

    @classmethod
    def parse(cls, text: str, frames: int | None = None) -> PathConfig:
        """From the one word of an option: the name of a path, or that of a file.

        Raises:
            ConfigurationError: neither; lists the words. And see the class.
        """
        if text in PATH_WORDS:
            return cls(cast(PathKind, text), frames)
        if not Path(text).is_file():
            raise ConfigurationError(
                f"no camera path {text!r}: take one of {', '.join(PATH_WORDS)}, or a file of cameras that is there"
            )
        return cls("file", frames, Path(text))

    @property
    def identity(self) -> str:
        """What the path follows from, beside the views: the word, or the hash of the file."""
        return self.kind if self.file is None else f"file {file_sha256(self.file)}"

    def __str__(self) -> str:
        """The word that ``parse`` reads."""
        return self.kind if self.file is None else str(self.file)


@dataclass(frozen=True)
class CameraPath(Tensors):
    """All cameras of a sequence.

    Attributes:
        cameras: M views.
        places: for each of C input views the number of its camera in the path, None where the path does not pass
            through it. There the camera is that of the view to the last bit.
        closed: whether camera 0 follows camera M - 1; it is not there twice.
    """

    cameras: Cameras
    places: tuple[int | None, ...]
    closed: bool = False

    def __len__(self) -> int:
        return len(self.cameras)


def path_of(
    config: PathConfig, views: Cameras, frames_per_clip: int, points: Tensor | None = None, closed: bool = False
) -> CameraPath:
    """The path of a sequence that starts from input views.

    Interpolated and ViewCrafter's pass through view i at i (T - 1). The others pass through a view only where one of
    their cameras is that of the view: within ``NEAR``, ``TURNED`` and ``SHIFTED``; the nearest one, if there are more.

    Args:
        config: which one.
        views: C >= 2 input views in the order of visiting; an orbit, a spiral or a file also takes a single one.
        frames_per_clip: T of a clip from one view to the next, both included.
        points: [N, 3] of the scene, world units; an orbit or a spiral needs them where the views look the same way,
            and of a single one.
        closed: a path through the views leads from the last one back to the first.

    Returns:
        M cameras on the device and of the type of ``views``: (C - 1) (T - 1) + 1 through views, C (T - 1) where closed.

    Raises:
        ConfigurationError: too few views, or fewer than two frames; views that this path cannot be made of.
        BadDataError: the file is no path; see ``read_camera_path``.
        BadCameraError: the file has a camera that cannot be used.
    """
    step = frames_per_clip - 1
    least = 2 if config.kind in _THROUGH else 1
    if len(views) < least or step < 1:
        raise ConfigurationError(
            f"the camera path {config} needs {least} views and clips of 2 frames at least, got {len(views)} views and "
            f"{frames_per_clip}"
        )
    total = len(views) * step if closed else (len(views) - 1) * step + 1
    if len(views) == 1:
        total = 2 * step
    if config.kind in _THROUGH:
        knots = views[[*range(len(views)), 0]] if closed else views
        path = _THROUGH[config.kind](knots, frames_per_clip)
        return CameraPath(path[:total], tuple(range(0, len(views) * step, step)), closed)
    if config.file is not None:
        path, leads_back = read_camera_path(config.file, views.height, views.width), False
        path = path.to(views.world_to_camera.device, views.world_to_camera.dtype)
    else:
        path, leads_back = PATHS[config.kind](views, config.frames or total, points), True
    places = _places(path, views)
    met = [view for view, place in enumerate(places) if place is not None]
    exact = with_views(path, [place for place in places if place is not None], views[met])
    return CameraPath(exact, places, leads_back)


def _places(path: Cameras, views: Cameras) -> tuple[int | None, ...]:
    """Of each view, the nearest camera of the path that is the same."""
    path, views = (cameras.to("cpu", torch.float64) for cameras in (path, views))
    there, here = path.centers, views.centers
    way = torch.cdist(here, there, compute_mode="donot_use_mm_for_euclid_dist")  # [C, M]; the other one rounds
    extent = float((here - here.mean(dim=0)).norm(dim=1).max()) if len(views) > 1 else float(way.max())
    extent = max(extent, 1e-12)
    between = views.world_to_camera[:, None, :3, :3] - path.world_to_camera[None, :, :3, :3]
    turn = 2 * (between.flatten(2).norm(dim=2) / 8**0.5).clamp(max=1).asin().rad2deg()
    same = (way <= NEAR * extent + _ROUNDING * here.norm(dim=1, keepdim=True)) & (turn <= TURNED)
    same &= _shift(path, views) <= SHIFTED
    nearest = torch.where(same, way / extent + turn.deg2rad(), torch.inf).min(dim=1)
    return tuple(
        int(place) if distance < torch.inf else None
        for distance, place in zip(nearest.values, nearest.indices, strict=True)
    )


def _shift(path: Cameras, views: Cameras) -> Tensor:
    """How far, in pixels, the lens of a path camera puts the corners of a view's image from their places: [C, M]."""
    corners = torch.tensor([[x, y, 1.0] for x in (0, views.width) for y in (0, views.height)], dtype=torch.float64)
    rays = torch.linalg.inv(views.intrinsics) @ corners.T  # [C, 3, 4]
    moved = path.intrinsics[None] @ rays[:, None] - corners.T  # [C, M, 3, 4]
    return moved[:, :, :2].norm(dim=2).amax(dim=2)
