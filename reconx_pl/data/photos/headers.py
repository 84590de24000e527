"""Photographs as files: which ones a user named, and what their headers say, before any is decoded."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from reconx_pl.data.formats.images import IMAGE_SUFFIXES, exif_orientation
from reconx_pl.data.formats.video_frames import VIDEO_SUFFIXES
from reconx_pl.data.photos.lens_exif import ExifLens, exif_lens
from reconx_pl.data.photos.unposed import photograph_files
from reconx_pl.errors import BadDataError

_HEIC_SUFFIXES = (".heic", ".heif")
_HEIC = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}
_RAW = (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".rw2", ".orf")
_MOVING = ("GIF", "PNG", "WEBP", "AVIF")  # formats whose several pictures are an animation, not previews or pages
_DEEP = ("I", "F")  # first letters of modes that Pillow cuts off at 255


@dataclass(frozen=True)
class PhotographHeader:
    """A photograph that can be opened; width and height are those of the upright picture."""

    path: Path
    width: int
    height: int
    lens: ExifLens


def named_files(sources: Sequence[Path], notes: list[str]) -> list[Path]:
    """The files named, and in the place of a folder its images in natural order of name.

    Args:
        sources: files and folders.
        notes: gets a sentence about HEIC photographs beside the images of a folder, which are not read.

    Raises:
        BadDataError: a path that does not exist, or a folder without images.
    """
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            files += _images_of(source, notes)
        elif source.exists():
            files.append(source)
        else:
            raise BadDataError(f"{source}: no such file or folder; check the path")
    return files


def _images_of(folder: Path, notes: list[str]) -> list[Path]:
    try:
        # macOS writes "._IMG_1.jpg" beside IMG_1.jpg on foreign disks, which is none
        found = [path for path in photograph_files(folder) if not path.name.startswith(".")]
        others = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    except PermissionError as error:
        raise BadDataError(_forbidden(folder, error)) from error
    heic = [path for path in others if path.suffix.lower() in _HEIC_SUFFIXES]
    if found and heic:
        notes.append(f"{len(heic)} HEIC files in {folder} were passed over: convert them to JPEG to use them")
    if found:
        return found
    videos = [path for path in others if path.suffix.lower() in VIDEO_SUFFIXES]
    pictures = [path for path in others if path.suffix.lower() in (*_HEIC_SUFFIXES, *_RAW)]
    hint = "give the folder that holds the photographs"
    if videos:
        hint = f"for the video in it name the file: {videos[0]}"
    elif pictures:
        hint = f"{pictures[0].name} and its like are not read: convert them to JPEG"
    raise BadDataError(f"{folder}: no images here (looked for {', '.join(IMAGE_SUFFIXES)}); {hint}")


def read_header(path: Path) -> PhotographHeader:
    """Open a photograph without decoding it.

    Raises:
        BadDataError: not to be read, not an image, of a kind that is not read, or larger than Pillow opens; says what
            to do.
    """
    if path.suffix.lower() in _RAW:
        raise BadDataError(f"{path}: raw files of a camera are not read; develop it and save it as JPEG")
    try:
        with path.open("rb") as file:
            start = file.read(16)
        if not start:
            raise BadDataError(f"{path}: an empty file; copy it again, or leave it out")
        with quiet_pillow(), Image.open(path) as image:
            count = getattr(image, "n_frames", 1) if image.format in _MOVING else 1
            if count > 1:
                raise BadDataError(
                    f"{path}: an animated {image.format} of {count} pictures is not a photograph; write it as a video "
                    f"(ffmpeg -i {path.name} {path.stem}.mp4), or give its pictures as PNG"
                )
            if image.mode[0] in _DEEP:
                raise BadDataError(
                    f"{path}: pixels of type {image.mode}, more than 8 bits; save it as JPEG or PNG with 8 bits"
                )
            width, height = image.size
            lens = exif_lens(image)
            if exif_orientation(path) >= 5:
                width, height = height, width
    except PermissionError as error:
        raise BadDataError(_forbidden(path, error)) from error
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        size = f"{int(pixels[0]) / 1e6:.0f} megapixels" if pixels else "its size"
        raise BadDataError(
            f"{path}: {size} is beyond what Pillow opens, as such a file can fill the memory; save it smaller, 4096 "
            "pixels on the longer side are plenty"
        ) from error
    except UnidentifiedImageError as error:
        if start[4:8] == b"ftyp" and start[8:12] in _HEIC:
            raise BadDataError(
                f"{path}: HEIC is not read; convert it to JPEG (heif-convert {path.name} {path.stem}.jpg), or let the "
                "phone save 'most compatible' pictures"
            ) from error
        raise BadDataError(
            f"{path}: not an image, whatever its name says; leave it out, or save the photograph again as JPEG or PNG"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise BadDataError(f"{path}: damaged, or it ends early ({error}); copy it again, or leave it out") from error
    return PhotographHeader(path, width, height, lens)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Without Pillow's warnings of 90 megapixels, which phones take (its error, at twice as many, stays), and EXIF."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module="PIL.TiffImagePlugin")  # damaged EXIF counts as none
        yield


def _forbidden(path: Path, error: PermissionError) -> str:
    return f"{path}: may not be read ({error.strerror}); allow it: chmod u+r{'x' if path.is_dir() else ''} {path}"
