"""Files that say where a camera goes: our ``cameras.json``, nerfstudio's ``camera_path.json``, ``transforms.json``.

No image is needed. The format is told by the content. The world of a path must be that of the scene; a scene of
nerfstudio has two, see ``_scene_world``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from reconx_pl.data.formats.images import natural_key
from reconx_pl.data.formats.posed import camera_entry, read_camera
from reconx_pl.data.formats.scene import invert_rigid, matrix_4x4, pinhole
from reconx_pl.data.formats.transforms import OPENGL_TO_OPENCV, find_image, read_lens
from reconx_pl.data.formats.undistort import Undistortion
from reconx_pl.errors import BadCameraError, BadDataError, ConfigurationError
from reconx_pl.files.json_files import Record, read_object, write_json
from reconx_pl.geometry.cameras import resize_and_crop
from reconx_pl.types import Cameras

logger = logging.getLogger(__name__)

VIEWER_WORLD = "dataparser_transforms.json"  # written by nerfstudio beside the configuration of a training run
_FORMS = (
    "a camera path is our cameras.json (frames with w, h, K, c2w), nerfstudio's camera_path.json (camera_path with "
    "camera_to_world and fov), or transforms.json (frames with transform_matrix)"
)


def read_camera_path(file: Path, height: int, width: int) -> Cameras:
    """Read the cameras of a path, brought to one image size as photographs are (``resize_and_crop``).

    - ``cameras.json``, as ``reconx reconstruct`` and ``write_camera_path`` write it, in its order. Where frames have
      the keys of nerfstudio beside ours, ours count.
    - ``camera_path.json`` of nerfstudio's viewer: 16 numbers row by row, camera-to-world with OpenGL axes; ``fov`` is
      the vertical field of view in degrees of an image of ``render_height`` x ``render_width`` pixels with square
      pixels and its principal point in the middle; its renderer does not look at ``aspect`` either.
    - ``transforms.json`` of nerfstudio, instant-ngp or Blender, in the order of the image names as the reader of scenes
      has it, without lens distortion, and like there with ``applied_transform`` left in the poses. Entries without
      ``w`` and ``h`` need their image.

    Args:
        file: one of these.
        height: rows of the frames that are wanted, pixels.
        width: columns, pixels.

    Returns:
        M >= 2 cameras of height x width, float64.

    Raises:
        BadDataError: no such file, not JSON, none of these formats, fewer than two cameras, a missing key.
        BadCameraError: something else than numbers, NaN, a pose that is not rigid, no focal length, a camera that is no
            pinhole (fisheye, equirectangular).
    """
    content = read_object(file)
    cameras = _reader(file, content)(file, content)
    if len(cameras) < 2:
        raise BadDataError(f"{file}: a path needs at least 2 cameras, this one has {len(cameras)}")
    fitted = [resize_and_crop(camera, height, width)[0] for camera in cameras]
    return replace(
        fitted[0],
        world_to_camera=torch.cat([camera.world_to_camera for camera in fitted]),
        intrinsics=torch.cat([camera.intrinsics for camera in fitted]),
    )


def write_camera_path(cameras: Cameras, fps: float, file: Path) -> None:
    """Write a path as our ``cameras.json``, without images; ``read_camera_path`` gives the same cameras back.

    Args:
        cameras: M views.
        fps: frames a second of a video along it.
        file: is replaced.

    Raises:
        BadCameraError: NaN, a focal length that is not positive, a pose that is not rigid.
        ConfigurationError: a frame rate that is not positive.
    """
    if not 0 < fps < math.inf:
        raise ConfigurationError(f"a camera path has a positive frame rate, got {fps}")
    cameras.check(f"the path for {file}")
    size = (cameras.width, cameras.height)
    poses = torch.linalg.inv(cameras.world_to_camera.detach().double()).cpu().numpy()
    lenses = cameras.intrinsics.detach().double().cpu().numpy()
    frames = [camera_entry(lens, size, pose) for lens, pose in zip(lenses, poses, strict=True)]
    write_json(file, {"fps": fps, "frames": frames})


def _reader(file: Path, content: Record) -> Callable[[Path, Record], list[Cameras]]:
    """What gives the cameras of this content, each as one view of its own image size."""
    if isinstance(content.get("camera_path"), list):
        return _viewer_cameras
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise BadDataError(f"{file}: it has no list of cameras; {_FORMS}")
    first = frames[0] if isinstance(frames[0], dict) else {}
    if {"K", "c2w"} & first.keys():
        return _posed_cameras
    if "transform_matrix" in first:
        return _transforms_cameras
    raise BadDataError(f"{file}: its frames have no camera; {_FORMS}")


def _posed_cameras(file: Path, content: Record) -> list[Cameras]:
    cameras = []
    for number, entry in enumerate(content["frames"]):
        name = f"{file}, frame {number}"
        intrinsics, size, pose = read_camera(entry, name)
        cameras.append(_camera(pose, intrinsics, size, name))
    return cameras


def _viewer_cameras(file: Path, content: Record) -> list[Cameras]:
    kind = str(content.get("camera_type", "perspective"))
    if kind.lower() != "perspective":
        raise BadCameraError(f"{file}: its camera_type is {kind}; save the path with perspective cameras")
    height, width = (int(_positive(content, key, str(file))) for key in ("render_height", "render_width"))
    to_scene, scale = _scene_world(file)
    cameras = []
    for number, entry in enumerate(content["camera_path"]):
        name = f"{file}, camera {number}"
        if not isinstance(entry, dict) or "camera_to_world" not in entry:
            raise BadDataError(f"{name}: lacks camera_to_world")
        fov = _positive(entry, "fov", name)
        if fov >= 180:
            raise BadCameraError(f"{name}: a field of view of {fov:g} degrees gives no focal length")
        focal = height / (2 * math.tan(math.radians(fov) / 2))
        values = entry["camera_to_world"]
        flat = isinstance(values, list) and len(values) == 16
        pose = matrix_4x4([values[row : row + 4] for row in range(0, 16, 4)] if flat else values, name)
        pose[:3, 3] /= scale
        intrinsics = pinhole(focal, focal, width / 2, height / 2)
        cameras.append(_camera(to_scene @ pose @ OPENGL_TO_OPENCV, intrinsics, (width, height), name))
    return cameras


def _transforms_cameras(file: Path, content: Record) -> list[Cameras]:
    cameras, names = [], []
    for number, entry in enumerate(content["frames"]):
        name = f"{file}, frame {number}"
        if not isinstance(entry, dict) or "transform_matrix" not in entry:
            raise BadDataError(f"{name}: lacks transform_matrix")
        values, listed = {**content, **entry}, Path(str(entry.get("file_path", "")))
        image = find_image(file.parent, str(listed))
        if not image.is_file() and not {"w", "h"} <= values.keys():
            raise BadDataError(f"{name}: lacks w and h, and there is no image {image} to take them from; add both")
        lens = read_lens(values, image, name)
        pose, size = matrix_4x4(entry["transform_matrix"], name) @ OPENGL_TO_OPENCV, (lens.width, lens.height)
        camera = _camera(pose, lens.intrinsics, size, name)
        plan = Undistortion.plan(lens.intrinsics, lens.distortion, *size, name) if any(lens.distortion) else None
        if plan is not None:
            camera = replace(camera, intrinsics=torch.from_numpy(plan.pinhole)[None])
        cameras.append(camera)
        names.append(natural_key(str(listed)))
    if all("file_path" in entry for entry in content["frames"]):
        return [cameras[number] for number in sorted(range(len(names)), key=lambda number: names[number])]
    return cameras


def _camera(pose: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int], name: str) -> Cameras:
    """One view of a camera-to-world matrix with OpenCV axes."""
    if np.abs(pose[3] - [0, 0, 0, 1]).max() > 1e-6:
        raise BadCameraError(
            f"{name}: the last row of its pose is {pose[3].tolist()} and not 0, 0, 0, 1; write the matrix row by row"
        )
    if min(size) < 1:
        raise BadCameraError(f"{name}: its image is {size[0]} x {size[1]} pixels; give its true size")
    world_to_camera = torch.from_numpy(invert_rigid(pose, name))[None]
    return Cameras(world_to_camera, torch.from_numpy(intrinsics)[None], size[1], size[0]).check(name)


def _scene_world(file: Path) -> tuple[np.ndarray, float]:
    """From the world of nerfstudio's viewer to that of the scene: a rigid transform [4, 4] of centres over a scale.

    A viewer turns, centres and scales the scene that it is given: p_viewer = scale * transform(p). A training run keeps
    both in ``dataparser_transforms.json``. Where that lies beside the path, it is undone. Its transform starts before
    the ``applied_transform`` of a ``transforms.json``, which the poses of the scene have in them; so where that file
    lies there too, this is done again, as is its ``applied_scale``. Without these files poses stay as they are.
    """
    viewer, scene = file.with_name(VIEWER_WORLD), file.with_name("transforms.json")
    if not viewer.is_file():
        logger.info(
            "%s: its poses are taken for those of the scene's world; if nerfstudio centred or scaled the scene, put %s "
            "of its training run beside this file", file, VIEWER_WORLD,
        )  # fmt: skip
        return np.eye(4), 1.0
    content = read_object(viewer)
    if "transform" not in content:
        raise BadDataError(f"{viewer}: lacks transform; take the file of the training run as it is")
    scale = _positive(content, "scale", str(viewer))
    to_scene = invert_rigid(matrix_4x4(content["transform"], str(viewer)), str(viewer))
    given = read_object(scene) if scene.is_file() else {}
    if "applied_transform" in given:
        to_scene = matrix_4x4(given["applied_transform"], str(scene)) @ to_scene
    if "applied_scale" in given:
        scale /= _positive(given, "applied_scale", str(scene))
    return to_scene, scale


def _positive(values: Record, key: str, name: str) -> float:
    if key not in values:
        raise BadDataError(f"{name}: lacks {key}")
    try:
        value = float(values[key])
    except (TypeError, ValueError, OverflowError) as error:
        raise BadCameraError(f"{name}: {key} is {values[key]!r}, not a number") from error
    if not 0 < value < math.inf:
        raise BadCameraError(f"{name}: {key} is {value:g}; it must be positive and finite")
    return value
