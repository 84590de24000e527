"""LLFF and the NeRF forward-facing scenes: ``poses_bounds.npy``.

Each row is a 3x5 matrix and two depth bounds. The matrix holds camera-to-world columns in the order down, right,
backward, the centre, and (height, width, focal length) in pixels of the original photographs (Mildenhall et al. 2019).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reconx_pl.data.formats.images import image_folder, list_images
from reconx_pl.data.formats.scene import RawScene, frame_from_file, invert_rigid, log_rescaling, matrix_4x4, pinhole
from reconx_pl.errors import BadDataError


def read_llff(path: Path, *, images: Path | str | None = None) -> RawScene:
    """Read a ``poses_bounds.npy`` or the folder that holds one.

    Args:
        path: the file or its folder.
        images: folder of images, relative to the scene or absolute; by default ``images``, else the one among
            ``images_N`` with the smallest N. Intrinsics are scaled by the size that the images have. Images and poses
            go together in order of name.

    Raises:
        BadDataError: not that file, no images, another number of images than of poses, another aspect.
        BadCameraError: a NaN or non-rigid pose, a focal length of zero.
    """
    file = path if path.suffix == ".npy" else path / "poses_bounds.npy"
    try:
        rows = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise BadDataError(f"{file}: cannot read it as an array of numbers ({error})") from error
    if rows.ndim != 2 or rows.shape[1] != 17 or not np.issubdtype(rows.dtype, np.floating):
        raise BadDataError(f"{file}: poses have shape {rows.shape}, not [views, 17]; this is no LLFF pose file")
    folder = image_folder(file.parent, images)
    paths = list_images(folder)
    if len(paths) != len(rows):
        raise BadDataError(
            f"{file}: {len(rows)} poses, but {len(paths)} images in {folder}; they must go together one to one"
        )
    frames, sizes = [], []
    for number, (row, image) in enumerate(zip(rows, paths, strict=True)):
        name = f"{file}, row {number} ({image.name})"
        matrix = row[:15].reshape(3, 5).astype(np.float64)
        down, right, backward, centre, (height, width, focal) = matrix.T
        camera_to_world = matrix_4x4(np.stack([right, down, -backward, centre], axis=1), name)
        if not np.isfinite([height, width]).all() or min(height, width) < 1:
            raise BadDataError(f"{name}: the image size {width:g}x{height:g} makes no sense")
        size = (round(width), round(height))
        frame = frame_from_file(
            image, pinhole(focal, focal, width / 2, height / 2), size, invert_rigid(camera_to_world, name), number
        )
        frames.append(frame)
        sizes.append((size, frame))
    log_rescaling(file, sizes)
    return RawScene(name=file.parent.name, dataset="llff", frames=tuple(frames), source=file)
