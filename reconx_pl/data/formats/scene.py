"""A raw posed scene, as every reader of a foreign format gives it, and the checks that all readers share.

Conventions are those of :mod:`reconx_pl.types`: OpenCV axes, ``world_to_camera``, intrinsics in pixels of the image as
it is loaded, corner of the image at (0, 0). Each reader converts from its format; nothing behind it converts again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from reconx_pl.data.formats.images import image_size, read_rgb, rescale_intrinsics
from reconx_pl.data.formats.undistort import Undistortion
from reconx_pl.errors import BadCameraError, BadDataError, BadSceneError
from reconx_pl.types import Cameras, PointCloud

logger = logging.getLogger(__name__)

# folders that data sets put between a scene and its files: DL3DV's benchmark and samples, COLMAP's undistorter
_INNER_FOLDERS = ("nerfstudio", "gaussian_splat", "colmap", "dense")


@dataclass(frozen=True)
class RawFrame:
    """One posed image that is read when it is asked for.

    Args:
        name: what messages call it: the image file, or the chunk, the scene and the index.
        width: columns of the image as ``load`` gives it.
        height: rows of the image as ``load`` gives it.
        intrinsics: [3, 3] float64, pixels of that image.
        world_to_camera: [4, 4] float64.
        frame_id: the number or timestamp that the source gives this frame.
        load: reads the image, uint8 [H, W, 3].
        load_depth: reads the z-depth, float32 [h, w] in world units, 0 = none; its size may differ from the image's.
        observed: rows of the scene's cloud whose points were found in this image; None where the source does not say.
        load_mask: reads the mask, bool [H, W] of the image's size, True where the object is that is scored.
    """

    name: str
    width: int
    height: int
    intrinsics: np.ndarray
    world_to_camera: np.ndarray
    frame_id: int
    load: Callable[[], np.ndarray]
    load_depth: Callable[[], np.ndarray] | None = None
    observed: np.ndarray | None = None
    load_mask: Callable[[], np.ndarray] | None = None

    @property
    def camera(self) -> Cameras:
        """This frame's camera as one view, float64."""
        return Cameras(
            torch.as_tensor(self.world_to_camera, dtype=torch.float64)[None],
            torch.as_tensor(self.intrinsics, dtype=torch.float64)[None],
            self.height,
            self.width,
        )


@dataclass(frozen=True)
class RawScene:
    """A scene before it is packed; the frames may differ in size.

    Args:
        name: name of the scene within its data set.
        dataset: name of the data set or of the format.
        frames: in the order of the source, at least one.
        source: the file or folder it was read from, for messages.
        cloud: points of a reconstruction in world coordinates.
        fps: frames a second of consecutive ``frames``; None for photographs.
        caption: text that belongs to the scene.

    Raises:
        BadSceneError: no frames.
        BadCameraError: NaN, a focal length that is not positive, a pose that is not rigid; names source and frame.
    """

    name: str
    dataset: str
    frames: tuple[RawFrame, ...]
    source: Path
    cloud: PointCloud | None = None
    fps: float | None = None
    caption: str = ""

    def __post_init__(self) -> None:
        if not self.frames:
            raise BadSceneError(f"{self.source}: the scene {self.name!r} has no frames")
        for frame in self.frames:
            frame.camera.check(f"{self.source}, frame {frame.name}")

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def frame_ids(self) -> tuple[int, ...]:
        return tuple(frame.frame_id for frame in self.frames)

    @property
    def frame_names(self) -> tuple[str, ...]:
        return tuple(frame.name for frame in self.frames)

    @property
    def cameras(self) -> Cameras:
        """All cameras as one, float64.

        Raises:
            BadSceneError: the images differ in size; names the first one that does.
        """
        self.check_one_size()
        first = self.frames[0]
        return Cameras(
            torch.from_numpy(np.stack([frame.world_to_camera for frame in self.frames]).astype(np.float64)),
            torch.from_numpy(np.stack([frame.intrinsics for frame in self.frames]).astype(np.float64)),
            first.height,
            first.width,
        )

    def load_image(self, index: int) -> np.ndarray:
        """uint8 [H, W, 3] of one frame.

        Raises:
            BadDataError: the image cannot be decoded, or its size is not what the camera was scaled to.
        """
        frame = self.frames[index]
        image = frame.load()
        if image.shape != (frame.height, frame.width, 3):
            raise BadDataError(
                f"{frame.name}: decoded to {image.shape[1]}x{image.shape[0]}, "
                f"its header said {frame.width}x{frame.height}"
            )
        return image

    def depth(self, index: int) -> np.ndarray | None:
        """Float32 z-depth [h, w] of one frame in world units, 0 = none; None if the source has no depth for it."""
        loader = self.frames[index].load_depth
        return None if loader is None else loader()

    def mask(self, index: int) -> np.ndarray | None:
        """bool [H, W] of one frame, True where the object is that is scored; None if the source has no mask for it."""
        loader = self.frames[index].load_mask
        return None if loader is None else loader()

    def check_one_size(self) -> None:
        """Raise BadSceneError, naming the file, unless all images have one size."""
        first = self.frames[0]
        for frame in self.frames:
            if (frame.width, frame.height) != (first.width, first.height):
                raise BadSceneError(
                    f"{frame.name} is {frame.width}x{frame.height}, but {first.name} is {first.width}x{first.height}; "
                    "a clip needs images of one size: resize them, or split the scene by image size"
                )


def frames_in_memory(images: np.ndarray, cameras: Cameras, names: Sequence[str]) -> tuple[RawFrame, ...]:
    """Frames of images that are loaded already.

    Args:
        images: [V, H, W, 3] uint8.
        cameras: V views of that size.
        names: V, what messages call them.
    """
    return tuple(
        RawFrame(
            name=name,
            width=cameras.width,
            height=cameras.height,
            intrinsics=cameras.intrinsics[view].double().numpy(),
            world_to_camera=cameras.world_to_camera[view].double().numpy(),
            frame_id=view,
            load=partial(np.array, images[view]),
        )
        for view, name in enumerate(names)
    )


def scene_name(folder: Path) -> str:
    """Name of the scene whose files are in ``folder``: ``<hash>`` for DL3DV's ``<hash>/nerfstudio``, for instance."""
    folder = folder.absolute()
    return folder.parent.name if folder.name in _INNER_FOLDERS and folder.parent.name else folder.name


def frame_from_file(
    path: Path,
    intrinsics: np.ndarray,
    camera_size: tuple[int, int],
    world_to_camera: np.ndarray,
    frame_id: int,
    distortion: tuple[float, ...] | None = None,
    load_depth: Callable[[], np.ndarray] | None = None,
) -> RawFrame:
    """A frame whose image is a file; intrinsics follow the file's size, and lens distortion is taken out when it loads.

    Args:
        path: the image.
        intrinsics: [3, 3] pixels at ``camera_size``.
        camera_size: (width, height) that the intrinsics are for.
        world_to_camera: [4, 4].
        frame_id: number of the frame in the source.
        distortion: OpenCV coefficients (k1, k2, p1, p2, k3), or None where the image is a pinhole image already.
        load_depth: reads the z-depth that belongs to the image.

    Raises:
        BadDataError: the image is missing, or has another aspect than the camera.
        BadCameraError: the distortion cannot be inverted over the image.
    """
    name = str(path)
    width, height = image_size(path, name)
    if not np.isfinite(intrinsics).all() or min(camera_size) <= 0:
        raise BadCameraError(f"{name}: its camera has NaN or infinite intrinsics, or no size {camera_size}")
    if min(intrinsics[0, 0], intrinsics[1, 1]) <= 0:
        focal = f"({intrinsics[0, 0]:g}, {intrinsics[1, 1]:g})"
        raise BadCameraError(f"{name}: its camera has focal length {focal} px; it must be positive")
    scaled = rescale_intrinsics(intrinsics, camera_size, (width, height), path)
    load: Callable[[], np.ndarray] = partial(read_rgb, path, name)
    if distortion is not None and any(distortion):
        plan = Undistortion.plan(scaled, distortion, width, height, name)
        if plan is not None:
            scaled = plan.pinhole
            load = partial(_load_undistorted, path, name, plan)
            if load_depth is not None:
                load_depth = partial(_undistort_depth, load_depth, plan)
    return RawFrame(name, width, height, scaled, world_to_camera, frame_id, load, load_depth)


def _load_undistorted(path: Path, name: str, plan: Undistortion) -> np.ndarray:
    return plan.image(read_rgb(path, name))


def _undistort_depth(load_depth: Callable[[], np.ndarray], plan: Undistortion) -> np.ndarray:
    return plan.depth(load_depth())


def log_rescaling(source: Path, sizes: Iterable[tuple[tuple[int, int], RawFrame]]) -> None:
    """Say once a scene that the images have another size than the pose file."""
    scaled = [(size, frame) for size, frame in sizes if size != (frame.width, frame.height)]
    if scaled:
        (width, height), frame = scaled[0]
        logger.info(
            "%s: cameras are for %dx%d, images are %dx%d (%d frames); intrinsics scaled",
            source, width, height, frame.width, frame.height, len(scaled),
        )  # fmt: skip


def matrix_4x4(matrix: object, name: str) -> np.ndarray:
    """A pose given as 3x4 or 4x4 numbers, as float64 [4, 4].

    Raises:
        BadCameraError: another shape, or values that are not finite numbers.
    """
    try:
        pose = np.asarray(matrix, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadCameraError(f"{name}: the pose is not a matrix of numbers") from error
    if pose.shape == (3, 4):
        pose = np.vstack([pose, [0.0, 0.0, 0.0, 1.0]])
    if pose.shape != (4, 4):
        raise BadCameraError(f"{name}: the pose has shape {pose.shape}, not 3x4 or 4x4")
    if not np.isfinite(pose).all():
        raise BadCameraError(f"{name}: the pose has NaN or infinite values; remove or re-estimate that view")
    return pose


def invert_rigid(pose: np.ndarray, name: str) -> np.ndarray:
    """Inverse [4, 4] of a pose; BadCameraError, naming it, if there is none."""
    try:
        return np.linalg.inv(pose)
    except np.linalg.LinAlgError as error:
        raise BadCameraError(f"{name}: the pose cannot be inverted; remove or re-estimate that view") from error


def pinhole(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """[3, 3] intrinsics, pixels."""
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
