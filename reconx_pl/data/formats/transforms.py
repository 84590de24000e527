"""nerfstudio, instant-ngp and Blender: ``transforms.json``.

Poses are camera-to-world with OpenGL axes (x right, y up, z backward). Intrinsics are global or per frame, in pixels
of an image w x h, or as ``camera_angle_x`` in radians.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from reconx_pl.data.formats.images import IMAGE_SUFFIXES, image_folder, image_size, natural_key
from reconx_pl.data.formats.scene import (
    RawFrame,
    RawScene,
    frame_from_file,
    invert_rigid,
    log_rescaling,
    matrix_4x4,
    pinhole,
    scene_name,
)
from reconx_pl.errors import BadCameraError, BadDataError
from reconx_pl.files.json_files import read_object

logger = logging.getLogger(__name__)

OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


def read_transforms(
    path: Path,
    *,
    images: Path | str | None = None,
    undistort: bool = True,
    missing: Literal["error", "skip"] = "error",
    depth_scale: float = 1e-3,
) -> RawScene:
    """Read a ``transforms.json`` or the folder that holds one.

    Args:
        path: the file or its folder; ``file_path`` entries are relative to that folder and may lack their extension.
        images: folder that holds the images in place of the one that ``file_path`` names, absolute or relative to the
            file. Where entries name ``images/`` and only ``images_N`` are there (DL3DV), the least reduced is taken.
        undistort: resample images with k1, k2, p1, p2 (k3) to a pinhole camera when they load. Set False where the
            images are undistorted already; the coefficients are then ignored.
        missing: whether an image that is listed and not there is an error or is left out with a log line.
        depth_scale: world units of one unit of a ``depth_file_path`` image (nerfstudio: 0.001, millimetres).

    Raises:
        BadDataError: not JSON, no frames, a missing or unreadable image, an aspect that is not the camera's.
        BadCameraError: fisheye or equirectangular cameras, missing intrinsics, zero focal length, a NaN or non-rigid
            pose.
    """
    file = path if path.suffix == ".json" else path / "transforms.json"
    content = read_object(file)
    entries = content.get("frames")
    if not isinstance(entries, list) or not entries:
        raise BadDataError(f"{file}: it has no list of frames")
    folder = _image_folder(file, entries, images)
    frames, sizes, absent = [], [], []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or "file_path" not in entry or "transform_matrix" not in entry:
            raise BadDataError(f"{file}: frame {number} has no file_path or no transform_matrix")
        listed = Path(str(entry["file_path"]))
        image = find_image(file.parent if folder is None else folder, str(listed) if folder is None else listed.name)
        if not image.is_file() and missing == "skip":
            absent.append(image.name)
            continue
        frame, size = _frame(file, image, {**content, **entry}, number, undistort, depth_scale)
        frames.append(frame)
        sizes.append((size, frame))
    if absent:
        logger.warning(
            "%s: %d of %d images are missing and left out: %s", file, len(absent), len(entries), ", ".join(absent)
        )
    order = sorted(range(len(frames)), key=lambda index: natural_key(frames[index].name))
    if order != sorted(order):
        logger.info("%s: its frames are not in order of name; they are taken in that order here", file)
    log_rescaling(file, sizes)
    if "ply_file_path" in content:
        logger.info("%s: the point cloud %s is not read", file, content["ply_file_path"])
    return RawScene(
        name=scene_name(file.parent),
        dataset="transforms",
        frames=tuple(frames[index] for index in order),
        source=file,
    )


def _image_folder(file: Path, entries: list[Any], images: Path | str | None) -> Path | None:
    """The folder that replaces those of the entries, or None if these hold."""
    if images is not None:
        return image_folder(file.parent, images)
    folders = {
        Path(str(entry["file_path"])).parent for entry in entries if isinstance(entry, dict) and "file_path" in entry
    }
    if folders != {Path("images")} or (file.parent / "images").is_dir() or not any(file.parent.glob("images_*")):
        return None
    found = image_folder(file.parent, None)
    logger.info("%s: there is no folder images, the images are taken from %s", file, found.name)
    return found


def find_image(folder: Path, file_path: str) -> Path:
    """The image that an entry names, which may lack its extension; where there is none, the name as it stands."""
    image = folder / file_path
    if image.is_file() or image.suffix.lower() in IMAGE_SUFFIXES:
        return image
    for suffix in IMAGE_SUFFIXES:
        for candidate in (folder / (file_path + suffix), folder / (file_path + suffix.upper())):
            if candidate.is_file():
                return candidate
    return image


def _frame(
    file: Path, image: Path, values: Mapping[str, Any], number: int, undistort: bool, depth_scale: float
) -> tuple[RawFrame, tuple[int, int]]:
    name = f"{file}, frame {values['file_path']}"
    lens = read_lens(values, image, name)
    pose = invert_rigid(matrix_4x4(values["transform_matrix"], name) @ OPENGL_TO_OPENCV, name)
    load_depth = None
    if values.get("depth_file_path"):
        load_depth = partial(_read_depth, file.parent / str(values["depth_file_path"]), depth_scale)
    size = (lens.width, lens.height)
    distortion = lens.distortion if undistort else None
    frame = frame_from_file(image, lens.intrinsics, size, pose, number, distortion=distortion, load_depth=load_depth)
    return frame, size


@dataclass(frozen=True)
class Lens:
    """The lens of one frame.

    Attributes:
        intrinsics: [3, 3] pixels of an image ``width`` x ``height``, corner at (0, 0), float64.
        width: columns, pixels.
        height: rows, pixels.
        distortion: OpenCV coefficients (k1, k2, p1, p2, k3), zero where there is none.
    """

    intrinsics: np.ndarray
    width: int
    height: int
    distortion: tuple[float, ...]


def read_lens(values: Mapping[str, Any], image: Path, name: str) -> Lens:
    """The lens of one frame of ``transforms.json``.

    Args:
        values: of the frame, over those of the whole file.
        image: gives the size where ``w`` and ``h`` do not.
        name: what messages call the frame.

    Raises:
        BadCameraError: fisheye or equirectangular, coefficients k4 to k6, no focal length, something else than numbers.
        BadDataError: the size is not given, and the image is missing or unreadable.
    """
    model = str(values.get("camera_model", "OPENCV")).upper()
    if values.get("is_fisheye") or "FISHEYE" in model or "EQUIRECT" in model or model == "ORTHOPHOTO":
        raise BadCameraError(
            f"{name}: camera model {model} is not a pinhole with lens distortion; undistort the images first"
        )
    if any(_number(values, key, name) for key in ("k4", "k5", "k6")):
        raise BadCameraError(f"{name}: the coefficients k4 to k6 are not supported; undistort the images first")
    given = [_number(values, key, name) for key in ("w", "h")]
    if not np.isfinite(given).all():
        raise BadCameraError(f"{name}: its w or h is not finite")
    width, height = (int(extent) for extent in given)
    if width <= 0 or height <= 0:
        width, height = image_size(image, str(image))
    distortion = tuple(_number(values, key, name) for key in ("k1", "k2", "p1", "p2", "k3"))
    return Lens(_intrinsics(values, width, height, name), width, height, distortion)


def _number(values: Mapping[str, Any], key: str, name: str, default: float = 0.0) -> float:
    value = values.get(key, default)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadCameraError(f"{name}: {key} is {value!r}, not a number") from error


def _intrinsics(values: Mapping[str, Any], width: int, height: int, name: str) -> np.ndarray:
    if "fl_x" in values:
        fx = _number(values, "fl_x", name)
    elif "camera_angle_x" in values:
        fx = _from_angle(_number(values, "camera_angle_x", name), width, name)
    else:
        raise BadCameraError(f"{name}: neither fl_x nor camera_angle_x is given")
    if "fl_y" in values:
        fy = _number(values, "fl_y", name)
    elif "camera_angle_y" in values and "fl_x" not in values:
        fy = _from_angle(_number(values, "camera_angle_y", name), height, name)
    else:
        fy = fx
    return pinhole(fx, fy, _number(values, "cx", name, width / 2), _number(values, "cy", name, height / 2))


def _from_angle(angle: float, extent: int, name: str) -> float:
    if not 0.0 < angle < math.pi:
        raise BadCameraError(f"{name}: a field of view of {angle:g} rad gives no focal length")
    return extent / (2.0 * math.tan(angle / 2.0))


def _read_depth(path: Path, scale: float) -> np.ndarray:
    """Float32 z-depth [h, w] in world units from a 16-bit image or an .npy array."""
    try:
        if path.suffix == ".npy":
            depth = np.load(path, allow_pickle=False)
        else:
            with Image.open(path) as image:
                depth = np.asarray(image)
    except (OSError, ValueError) as error:
        raise BadDataError(f"{path}: cannot read this depth ({error})") from error
    depth = np.squeeze(depth)
    if depth.ndim != 2:
        raise BadDataError(f"{path}: depth has shape {depth.shape}, not one value a pixel")
    return np.nan_to_num(depth.astype(np.float32) * scale, nan=0.0, posinf=0.0, neginf=0.0)
