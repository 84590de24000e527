"""The layout of IDR and NeuS: projection matrices in an ``.npz``, photographs in ``image``, masks in ``mask``.

``world_mat_i`` [4, 4] is K [R | t] over a row (0, 0, 0, 1), OpenCV axes; ``scale_mat_i`` [4, 4] takes a unit sphere to
where the object lies (Yariv et al. 2020). Cameras stay in the world of ``world_mat``, which for DTU is that of the
other layouts, in millimetres; the sphere is not used.
"""

from __future__ import annotations

import logging
import re
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy.linalg import rq

from reconx_pl.data.formats.dtu import PHOTOGRAPH, centred, dtu_scene_name
from reconx_pl.data.formats.images import image_size, list_images, natural_key
from reconx_pl.data.formats.masks import mask_file, read_mask
from reconx_pl.data.formats.realestate10k import Crop
from reconx_pl.data.formats.scene import RawScene, frame_from_file, matrix_4x4
from reconx_pl.errors import BadCameraError, BadDataError

logger = logging.getLogger(__name__)

CAMERA_FILES = ("cameras.npz", "cameras_sphere.npz")
IMAGE_FOLDERS = ("image", "images", "rgb")
_SKEW = 1e-3  # of the focal length; more cannot come from rounding


def read_idr(path: Path, *, images: Path | str | None = None, crop: Crop = "auto") -> RawScene:
    """Read a ``cameras.npz`` (or ``cameras_sphere.npz``) or the folder that holds one.

    Args:
        path: the file or its folder.
        images: folder of images, absolute or relative to the file; by default ``image``, ``images`` or ``rgb``. Images
            and matrices go together in order of name, image i with ``world_mat_i``.
        crop: how images came from those that the matrices are for, which the file does not say. ``none``: the whole
            picture. ``centre``: DTU's photographs of 1600 x 1200, resized so that they cover the image and cropped
            around the centre (MonoSDF). ``auto``: the whole picture, at its own size or, if the principal point is that
            of DTU's photographs and the aspect 4:3, reduced from those; an error otherwise.

    Raises:
        BadDataError: no such archive, matrices without image, images of another size than the cameras.
        BadCameraError: a matrix that is no pinhole camera.
    """
    file = path if path.suffix == ".npz" else find_cameras(path)
    matrices = world_matrices(file)
    paths = sorted(list_images(_image_folder(file.parent, images)), key=lambda image: natural_key(image.name))
    if len(paths) != len(matrices):
        raise BadDataError(
            f"{file}: {len(matrices)} matrices world_mat, but {len(paths)} images in {paths[0].parent}; they must go "
            "together one to one"
        )
    frames = []
    for view, (image, matrix) in enumerate(zip(paths, matrices, strict=True)):
        name = f"{file}, world_mat_{view}"
        size = image_size(image, str(image))
        intrinsics, world_to_camera = decompose(matrix, name)
        frame = frame_from_file(
            image, _fit(intrinsics, size, crop, f"{name}, image {image}"), size, world_to_camera, view
        )
        mask = mask_file((file.parent / "mask", file.parent / "masks"), view)
        if mask is not None:
            frame = replace(frame, load_mask=partial(read_mask, mask, *size))
        frames.append(frame)
    scene = dtu_scene_name(file.absolute().parent.name)
    dataset = "dtu" if re.fullmatch(r"scan\d+", scene) else "idr"
    return RawScene(name=scene, dataset=dataset, frames=tuple(frames), source=file)


def find_cameras(folder: Path) -> Path:
    """The camera file of a folder; BadDataError if there is none."""
    for name in CAMERA_FILES:
        if (folder / name).is_file():
            return folder / name
    raise BadDataError(f"{folder}: no camera file here (looked for {', '.join(CAMERA_FILES)})")


def is_idr(path: Path) -> bool:
    """Whether a path is such a camera file, or a folder with one and with images."""
    if path.is_file():
        return path.name in CAMERA_FILES
    return any((path / name).is_file() for name in CAMERA_FILES) and any(
        (path / name).is_dir() for name in IMAGE_FOLDERS
    )


def world_matrices(file: Path) -> list[np.ndarray]:
    """``world_mat_0``, ``world_mat_1``, ... of an archive, float64 [4, 4].

    Raises:
        BadDataError: not an archive of plain arrays, or one without those; a number is left out.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            numbers = sorted(int(key[10:]) for key in archive.files if re.fullmatch(r"world_mat_\d+", key))
            matrices = [archive[f"world_mat_{number}"] for number in numbers]
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise BadDataError(f"{file}: cannot read it as an archive of plain arrays ({error})") from error
    if not numbers or numbers != list(range(len(numbers))):
        raise BadDataError(f"{file}: needs world_mat_0, world_mat_1, ... without a gap, has {numbers or 'none'}")
    return [matrix_4x4(matrix, f"{file}, world_mat_{number}") for number, matrix in enumerate(matrices)]


def decompose(matrix: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Intrinsics [3, 3] without skew and world-to-camera [4, 4] of a projection K [R | t] [4, 4].

    RQ decomposition (Hartley and Zisserman, section 6.2.4), with signs such that K has a positive diagonal.

    Raises:
        BadCameraError: a singular matrix, one that mirrors the scene, or one with skew; names it.
    """
    left = matrix[:3, :3]
    if abs(np.linalg.det(left)) < 1e-12 * np.linalg.norm(left) ** 3:
        raise BadCameraError(f"{name}: the matrix is singular and is no camera")
    if np.linalg.det(left) < 0:
        matrix = -matrix  # a projection is known up to its sign
        left = matrix[:3, :3]
    upper, rotation = rq(left)
    signs = np.diag(np.sign(np.diag(upper)))
    upper, rotation = upper @ signs, signs @ rotation
    intrinsics = upper / upper[2, 2]
    if abs(intrinsics[0, 1]) > _SKEW * intrinsics[0, 0]:
        raise BadCameraError(f"{name}: its camera has skew {intrinsics[0, 1]:g}, which a pinhole has not; undistort")
    translation = np.linalg.solve(upper, matrix[:3, 3])
    intrinsics[0, 1] = 0.0
    return intrinsics, matrix_4x4(np.column_stack([rotation, translation]), name)


def _fit(intrinsics: np.ndarray, size: tuple[int, int], crop: Crop, name: str) -> np.ndarray:
    """Intrinsics [3, 3] in pixels of the image that is there."""
    width, height = size
    if crop == "centre":
        scale = max(width / PHOTOGRAPH[0], height / PHOTOGRAPH[1])
        left, top = (PHOTOGRAPH[0] * scale - width) / 2, (PHOTOGRAPH[1] * scale - height) / 2
        return (
            np.array([[1.0, 0.0, -left], [0.0, 1.0, -top], [0.0, 0.0, 1.0]]) @ np.diag([scale, scale, 1]) @ intrinsics
        )
    if crop == "none" or centred(intrinsics, width, height):
        return intrinsics
    if centred(intrinsics, *PHOTOGRAPH) and abs(width * 3 - height * 4) <= 4:
        return np.diag([width / PHOTOGRAPH[0], height / PHOTOGRAPH[1], 1.0]) @ intrinsics
    raise BadDataError(
        f"{name}: the principal point ({intrinsics[0, 2]:.1f}, {intrinsics[1, 2]:.1f}) is far from the middle of an "
        f"image of {width}x{height}; say crop=centre if they are a centre crop of DTU's photographs, or crop=none "
        "if the matrices are for these images all the same"
    )


def _image_folder(folder: Path, images: Path | str | None) -> Path:
    if images is not None:
        return folder / images
    found = [folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()]
    if not found:
        raise BadDataError(f"{folder}: no folder of images here (looked for {', '.join(IMAGE_FOLDERS)})")
    return found[0]
