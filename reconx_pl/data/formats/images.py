"""Image files of raw scenes: sizes, pixels, order of names."""

from __future__ import annotations

import os
import re
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from reconx_pl.errors import BadDataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_EXIF_ORIENTATION = 0x0112


def is_image(path: Path) -> bool:
    """Whether a file's name ends as that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def read_rgb(source: Path | bytes, name: str, least: int | None = None) -> np.ndarray:
    """Decode an image file or its bytes to uint8 [H, W, 3], rows as they are stored.

    An EXIF orientation is not applied: poses belong to the stored pixels. Transparent pixels are laid over white, as
    the synthetic NeRF scenes expect.

    Args:
        source: the file, or what stands in it.
        name: of the image, for messages.
        least: pixels that the shorter side keeps at least where a JPEG is decoded at a half, a quarter or an eighth of
            its size, which saves memory and time; None decodes all.

    Raises:
        BadDataError: not an image, or a damaged one.
    """
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as opened:
            image: Image.Image = opened
            if least is not None:
                image.draft(None, (least, least))
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                white = Image.new("RGBA", image.size, (255, 255, 255, 255))
                image = Image.alpha_composite(white, image.convert("RGBA"))
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise BadDataError(f"{name}: cannot decode this image ({error}); replace it or remove the frame") from error


def image_size(source: Path | bytes, name: str) -> tuple[int, int]:
    """(width, height) from the header alone, as the pixels are stored.

    Raises:
        BadDataError: the image is missing or not an image.
    """
    if isinstance(source, Path) and not source.is_file():
        raise BadDataError(f"{name}: this image is missing; the pose file lists it, so restore it or remove its entry")
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            return image.width, image.height
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise BadDataError(f"{name}: cannot read this image ({error}); replace it or remove the frame") from error


def exif_orientation(path: Path) -> int:
    """EXIF orientation of an image file, 1 (upright) where it has none. Some formats are decoded for it."""
    with Image.open(path) as image:
        try:
            return int(image.getexif().get(_EXIF_ORIENTATION, 1))
        except (SyntaxError, ValueError, TypeError, struct.error):  # damaged EXIF around a sound picture
            return 1


def read_upright(path: Path, name: str, least: int | None = None) -> np.ndarray:
    """As ``read_rgb``, turned as the EXIF orientation says: for photographs to which no poses belong yet.

    Raises:
        BadDataError: not an image, or a damaged one.
    """
    pixels = read_rgb(path, name, least)
    turned = {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(pixels),
    }
    return np.ascontiguousarray(turned.get(exif_orientation(path), pixels))


def rescale_intrinsics(
    intrinsics: np.ndarray, camera_size: tuple[int, int], actual_size: tuple[int, int], path: Path
) -> np.ndarray:
    """Intrinsics [3, 3] for the size that the image at ``path`` really has; sizes are (width, height).

    Raises:
        BadDataError: the aspect differs by more than the rounding of one pixel; names the image and both sizes.
    """
    (camera_width, camera_height), (width, height) = camera_size, actual_size
    if camera_size == actual_size:
        return intrinsics
    if (
        abs(camera_height * width / camera_width - height) > 1
        and abs(camera_width * height / camera_height - width) > 1
    ):
        hint = "use the images that the poses were made from"
        orientation = exif_orientation(path)
        if orientation >= 5 and abs(camera_height * height / camera_width - width) <= 1:
            hint = (
                f"its EXIF orientation is {orientation} and the camera has the rotated size: the poses belong to the "
                "upright picture, so write the rotation into the pixels of the file and drop the EXIF tag"
            )
        raise BadDataError(
            f"{path}: the image is {width}x{height}, its camera is for {camera_width}x{camera_height}, "
            f"which is another aspect; {hint}"
        )
    return np.diag([width / camera_width, height / camera_height, 1.0]) @ intrinsics


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder in order of name.

    Raises:
        BadDataError: the folder is missing or has no image.
    """
    if not folder.is_dir():
        raise BadDataError(f"{folder}: no such folder of images")
    with os.scandir(folder) as entries:
        images = sorted(Path(entry.path) for entry in entries if Path(entry.name).suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise BadDataError(f"{folder}: no images here (looked for {', '.join(IMAGE_SUFFIXES)})")
    return images


def image_folder(scene: Path, images: Path | str | None) -> Path:
    """The folder that was asked for, else ``images``, else the least reduced ``images_N``.

    Raises:
        BadDataError: there is none; names what was looked for.
    """
    if images is not None:
        return scene / images
    if (scene / "images").is_dir():
        return scene / "images"
    reduced = [
        (int(match[1]), folder)
        for folder in scene.glob("images_*")
        if (match := re.fullmatch(r"images_(\d+)", folder.name))
    ]
    if not reduced:
        raise BadDataError(f"{scene}: no folder of images here (looked for images and images_N)")
    return min(reduced)[1]


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sorting key that puts frame_2 before frame_10."""
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"([0-9]+)", name) if part)
