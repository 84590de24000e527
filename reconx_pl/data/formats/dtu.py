"""DTU in the rectified layout of MVSNet: ``Rectified``, ``Cameras`` and, where it is there, ``Depths``.

A camera file has world-to-camera [4, 4], OpenCV axes, millimetres, and intrinsics [3, 3] (Yao et al., MVSNet, 2018; the
photographs are of Aanæs et al. 2016). It does not say which image size they are for: ``Cameras`` has those of the
1600 x 1200 photographs, ``Cameras/train`` those of a quarter of the 640 x 512 training images. All scans share the
cameras.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from reconx_pl.data.formats.images import image_size
from reconx_pl.data.formats.masks import mask_file, read_mask
from reconx_pl.data.formats.scene import RawFrame, RawScene, frame_from_file, log_rescaling, matrix_4x4
from reconx_pl.errors import BadCameraError, BadDataError

logger = logging.getLogger(__name__)

PHOTOGRAPH = (1600, 1200)
# (width, height) that published camera files are for: photographs and training crops, whole and reduced
CAMERA_SIZES = (PHOTOGRAPH, (800, 600), (400, 300), (640, 512), (320, 256), (160, 128))
_OFF_CENTRE = 0.1  # the principal point lies within 4 % of the centre in all of DTU's files
_RECTIFIED = re.compile(r"rect_(\d{3})_(\w+)_r5000\.(?:png|jpg)")
_FOLDER = re.compile(r"(scan\d+)(?:_train)?(?:_\d+)?")


def dtu_scene_name(name: str) -> str:
    """``scan24`` of a folder ``scan24_train`` and of an entry ``scan24_train_03`` of MVSplat's index; else the name."""
    match = _FOLDER.fullmatch(name)
    return match[1] if match else name


def read_dtu(path: Path, *, light: int = 3, masks: Path | str | None = None) -> RawScene:
    """Read one scan: a folder of ``Rectified``, such as ``Rectified/scan24`` or ``Rectified/scan24_train``.

    Frame i is view i of the camera files, ``rect_<i + 1>_<light>_r5000.png``; the views are those that have an image,
    which must be the first ones, so that the number of a frame is the one that index files count.

    Args:
        path: the folder of a scan. ``Cameras`` and ``Depths`` lie beside ``Rectified``.
        light: which of the seven illuminations, 0 to 6; evaluations use 3.
        masks: folder with the masks of the scan, or with one folder a scan; absolute or relative to the folder that
            holds ``Rectified``; by default ``idrmasks`` there. Masks of whole photographs fit the training images.

    Raises:
        BadDataError: no image of this light, a view or a camera file is missing, cameras of another size than the
            images.
        BadCameraError: a NaN or non-rigid pose, a focal length of zero.
    """
    name = dtu_scene_name(path.name)
    root = dtu_root(path)
    images = rectified_images(path, light)
    cameras = _camera_folder(root, image_size(images[0], str(images[0])))
    depths = root / "Depths" / path.name
    holder = root / ("idrmasks" if masks is None else masks)
    frames, sizes = [], []
    for view, image in enumerate(images):
        file = cameras / f"{view:08d}_cam.txt"
        world_to_camera, intrinsics = read_camera(file)
        size = camera_size(intrinsics, str(file))
        depth = depths / f"depth_map_{view:04d}.pfm"
        load_depth = partial(read_pfm, depth) if depth.is_file() else None
        frame = frame_from_file(image, intrinsics, size, world_to_camera, view, load_depth=load_depth)
        mask = mask_file((holder / name / "mask", holder / name, holder), view)
        if mask is not None:
            frame = replace(frame, load_mask=partial(_mask, mask, frame))
        frames.append(frame)
        sizes.append((size, frame))
    if masks is not None and frames[0].load_mask is None:
        raise BadDataError(f"{holder}: no mask of {name} here, such as {name}/mask/000.png")
    log_rescaling(cameras, sizes)
    return RawScene(name=name, dataset="dtu", frames=tuple(frames), source=path)


def dtu_root(scan: Path) -> Path:
    """The folder that holds ``Rectified`` and ``Cameras``; BadDataError where a scan has none above it."""
    root = scan.absolute().parent.parent
    if not (root / "Cameras").is_dir():
        raise BadDataError(f"{scan}: there is no folder {root / 'Cameras'}; it belongs beside Rectified")
    return root


def is_scan(path: Path) -> bool:
    """Whether a folder holds rectified photographs and camera files lie where they belong."""
    return (
        path.is_dir()
        and any(_RECTIFIED.fullmatch(file.name) for file in path.glob("rect_001_*"))
        and (path.absolute().parent.parent / "Cameras").is_dir()
    )


def scans(root: Path) -> list[Path]:
    """The folders of scans in the ``Rectified`` of a folder, in order of number."""
    found = [path for path in (root / "Rectified").glob("scan*") if is_scan(path)]
    return sorted(found, key=lambda path: (int(re.sub(r"\D", "", path.name) or 0), path.name))


def rectified_images(scan: Path, light: int) -> list[Path]:
    """The photographs of one light, by view.

    Raises:
        BadDataError: there are none, or a view is missing between others.
    """
    matches = [(match, file) for file in scan.iterdir() if (match := _RECTIFIED.fullmatch(file.name))]
    by_view = {int(match[1]): file for match, file in matches if match[2] == str(light)}
    if not by_view:
        there = ", ".join(sorted({match[2] for match, _ in matches})) or "none"
        raise BadDataError(f"{scan}: no image rect_NNN_{light}_r5000.png; lights that are there: {there}")
    absent = sorted(set(range(1, max(by_view) + 1)) - set(by_view))
    if absent:
        raise BadDataError(
            f"{scan}: rect_{absent[0]:03d}_{light}_r5000.png is missing ({len(absent)} of {max(by_view)} views are); "
            "index files count the views, so restore it"
        )
    return [by_view[number] for number in sorted(by_view)]


def read_camera(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """World-to-camera [4, 4] and intrinsics [3, 3] of a ``*_cam.txt``.

    Raises:
        BadDataError: the file is missing, or is not laid out as ``extrinsic``, 16 numbers, ``intrinsic``, 9 numbers.
        BadCameraError: a pose that is not finite.
    """
    try:
        words = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise BadDataError(f"{file}: cannot read this camera file ({error})") from error
    try:
        if words[0] != "extrinsic" or words[17] != "intrinsic":
            raise ValueError("the words extrinsic and intrinsic are not where they belong")
        pose = np.array([float(word) for word in words[1:17]]).reshape(4, 4)
        intrinsics = np.array([float(word) for word in words[18:27]]).reshape(3, 3)
    except (IndexError, ValueError) as error:
        raise BadDataError(f"{file}: not a camera file of MVSNet ({error})") from error
    return matrix_4x4(pose, str(file)), intrinsics


def camera_size(intrinsics: np.ndarray, name: str) -> tuple[int, int]:
    """(width, height) of the images that intrinsics of DTU are for, told from the principal point.

    Raises:
        BadCameraError: it is the middle of none of the published sizes.
    """
    for width, height in CAMERA_SIZES:
        if centred(intrinsics, width, height):
            return width, height
    cx, cy = float(intrinsics[0, 2]), float(intrinsics[1, 2])
    known = ", ".join(f"{width}x{height}" for width, height in CAMERA_SIZES)
    raise BadCameraError(f"{name}: its principal point ({cx:g}, {cy:g}) is the middle of no image of {known}")


def centred(intrinsics: np.ndarray, width: int, height: int) -> bool:
    """Whether the principal point lies where that of an image of this size does in DTU's files."""
    x, y = 2 * intrinsics[0, 2] / width - 1, 2 * intrinsics[1, 2] / height - 1
    return bool(max(abs(x), abs(y)) < _OFF_CENTRE)


def read_pfm(path: Path) -> np.ndarray:
    """Float32 z-depth [h, w] of a portable float map, millimetres, 0 = none.

    Raises:
        BadDataError: not such a file, or a damaged one.
    """
    try:
        with Image.open(path) as image:
            depth = np.asarray(image)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise BadDataError(f"{path}: cannot read this depth ({error})") from error
    if depth.ndim != 2 or depth.dtype != np.float32:
        raise BadDataError(f"{path}: it holds {depth.dtype} {depth.shape}, not one float a pixel")
    return np.maximum(np.nan_to_num(depth, nan=0.0, posinf=0.0, neginf=0.0), 0.0)


def _camera_folder(root: Path, size: tuple[int, int]) -> Path:
    """The one of ``Cameras`` and ``Cameras/train`` whose aspect is that of the images."""
    looked = []
    for folder in (root / "Cameras", root / "Cameras/train"):
        file = folder / "00000000_cam.txt"
        if file.is_file():
            width, height = camera_size(read_camera(file)[1], str(file))
            if width * size[1] == height * size[0]:
                return folder
            looked.append(f"{folder} ({width}x{height})")
    raise BadDataError(
        f"{root}: no camera files for images of {size[0]}x{size[1]}; found {', '.join(looked) or 'none'}. Photographs "
        "of 1600x1200 go with Cameras, training images of 640x512 with Cameras/train"
    )


def _mask(path: Path, frame: RawFrame) -> np.ndarray:
    """A mask at the frame's size; training images are the middle 640 x 512 of the photograph at half its size."""
    if frame.width * 4 == frame.height * 5 and image_size(path, str(path)) == PHOTOGRAPH:
        half = read_mask(path, 800, 600)
        crop = half[44:556, 80:720]
        if (frame.width, frame.height) == (640, 512):
            return crop
        return np.asarray(Image.fromarray(crop).resize((frame.width, frame.height), Image.Resampling.NEAREST))
    return read_mask(path, frame.width, frame.height)
