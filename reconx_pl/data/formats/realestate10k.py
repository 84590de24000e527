"""RealEstate10K and ACID: one camera text file a clip, and its frames as images or in a video.

First line: the address of the video. Then a line a frame: timestamp in microseconds, fx fy cx cy normalised by the
image size, two zeros, and world-to-camera [3, 4] in rows, OpenCV axes (Zhou et al. 2018).
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

import numpy as np

from reconx_pl.data.formats.images import image_size, is_image, list_images
from reconx_pl.data.formats.scene import RawFrame, RawScene, frame_from_file, matrix_4x4, pinhole
from reconx_pl.data.formats.video_frames import VIDEO_SUFFIXES, VideoFrames, is_video, open_video
from reconx_pl.errors import BadCameraError, BadDataError

logger = logging.getLogger(__name__)

Crop = Literal["auto", "none", "centre"]
SQUARE_PIXELS = 0.005  # relative difference of fx and fy that rounding explains


def read_realestate10k(
    path: Path, *, images: Path | str | None = None, videos: Path | str | None = None, crop: Crop = "auto"
) -> RawScene:
    """Read one clip: a camera text file, or the folder that holds one.

    Args:
        path: the text file or a folder with ``cameras.txt`` (or one other .txt).
        images: folder of frames, absolute or relative to the text file, or a folder of such folders with the names of
            the text files; by default ``images``, ``frames`` or a folder with the text file's name beside it, else the
            folder itself. Frames are mapped by name where all names are timestamps, else by order where the counts
            agree.
        videos: video file or folder of them, absolute or relative to the text file; frames are then decoded from
            there. By default this happens where there is no folder of images and a video lies beside the text file
            or in ``videos`` beside it. A video has the name of the text file or the identifier of the address in its
            first line, or it is ``clip`` or ``video`` beside a ``cameras.txt``. One with as many frames as there are
            cameras is taken for the clip, any other for the whole video, in which the timestamps count from its first
            frame.
        crop: how the frames came from the video. ``none``: the whole picture, at any size. ``centre``: resized so that
            it covers the frame, then cropped around the centre. ``auto``: the whole picture, and an error if that
            gives pixels that are not square.

    Raises:
        BadDataError: not such a file, frames that cannot be mapped, pixels that are not square.
        BadCameraError: a NaN or non-rigid pose, a focal length of zero.
        MissingDependencyError: the frames are in a video and PyAV is not installed.
    """
    file = find_camera_file(path)
    address, timestamps, rows = parse_cameras(file)
    name = file.parent.name if file.name == "cameras.txt" else file.stem
    poses = [
        matrix_4x4(row[6:].reshape(3, 4), f"{file}, timestamp {t}") for t, row in zip(timestamps, rows, strict=True)
    ]
    video = _video(file, address, images, videos)
    result: list[RawFrame] = []
    if video is not None:
        found = open_video(video.resolve())
        for number, timestamp, row, pose in zip(
            frames_in_video(file, timestamps, found), timestamps, rows, poses, strict=True
        ):
            called = f"{video}, frame {number}"
            intrinsics = denormalise(
                row[:4], found.width, found.height, crop, f"{file}, timestamp {timestamp}, {called}"
            )
            load = partial(found.image, number)
            result.append(RawFrame(called, found.width, found.height, intrinsics, pose, timestamp, load))
    else:
        paths = map_frames(file, timestamps, _frame_folder(file, images))
        for image, timestamp, row, pose in zip(paths, timestamps, rows, poses, strict=True):
            size = image_size(image, str(image))
            intrinsics = denormalise(row[:4], *size, crop, f"{file}, timestamp {timestamp}, image {image}")
            result.append(frame_from_file(image, intrinsics, size, pose, timestamp))
    logger.debug("%s: video %s", file, address)
    return RawScene(name=name, dataset="realestate10k", frames=tuple(result), source=file, fps=frame_rate(timestamps))


def find_camera_file(path: Path) -> Path:
    """The camera text file of a folder; BadDataError if there is none, or more than one without a ``cameras.txt``."""
    if path.is_file():
        return path
    if (path / "cameras.txt").is_file():
        return path / "cameras.txt"
    files = [file for file in sorted(path.glob("*.txt")) if is_camera_file(file)]
    if len(files) != 1:
        raise BadDataError(
            f"{path}: {len(files)} RealEstate10K camera files here, expected cameras.txt or one other .txt"
        )
    return files[0]


def is_camera_file(file: Path) -> bool:
    """Whether the second line of a text file has the 19 numbers of RealEstate10K."""
    try:
        with file.open(encoding="utf-8") as lines:
            next(lines, "")
            values = next(lines, "").split()
        return len(values) == 19 and all(np.isfinite([float(value) for value in values[1:]]))
    except (OSError, ValueError):
        return False


def parse_cameras(file: Path) -> tuple[str, tuple[int, ...], np.ndarray]:
    """Address of the video, timestamps, and [N, 18] numbers: fx fy cx cy 0 0 and world-to-camera rows.

    Raises:
        BadDataError: a line with another number of values, or nothing but the address; names the line.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadDataError(f"{file}: cannot read it as text ({error})") from error
    timestamps, rows = [], []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        values = line.split()
        try:
            if len(values) != 19:
                raise ValueError(f"{len(values)} values, expected 19")
            timestamps.append(int(values[0]))
            rows.append([float(value) for value in values[1:]])
        except ValueError as error:
            raise BadDataError(f"{file}, line {number}: not a RealEstate10K camera ({error})") from error
    if not rows:
        raise BadDataError(f"{file}: no cameras in it")
    return lines[0].strip(), tuple(timestamps), np.array(rows)


def map_frames(file: Path, timestamps: tuple[int, ...], folder: Path) -> list[Path]:
    """An image for every camera.

    Raises:
        BadDataError: a timestamp has no image, or names are no timestamps and the counts differ.
    """
    images = list_images(folder)
    by_name = {image.stem: image for image in images}
    if any(str(timestamp) in by_name for timestamp in timestamps):
        lacking = [timestamp for timestamp in timestamps if str(timestamp) not in by_name]
        if lacking:
            raise BadDataError(
                f"{folder / str(lacking[0])}.*: this image is missing ({len(lacking)} of {len(timestamps)} timestamps "
                f"of {file} have none); extract those frames or remove their lines"
            )
        return [by_name[str(timestamp)] for timestamp in timestamps]
    if len(images) != len(timestamps):
        raise BadDataError(
            f"{file}: {len(timestamps)} cameras, but {len(images)} images in {folder} that are not named by timestamp; "
            "name them by timestamp, or keep exactly one image a camera in order"
        )
    return images


def frames_in_video(file: Path, timestamps: tuple[int, ...], video: VideoFrames) -> list[int]:
    """The number of the video's frame that belongs to every camera.

    Raises:
        BadDataError: neither as many frames as cameras, nor a frame within half a step of every timestamp.
    """
    if len(video) == len(timestamps):
        return list(range(len(video)))
    seconds = np.array(timestamps) / 1e6
    numbers = video.nearest(seconds)
    off = np.abs(video.times[numbers] - seconds)
    far = np.flatnonzero(off > 0.51 * video.step)
    if len(far):
        raise BadDataError(
            f"{video.path}: {len(video)} frames, the last at {video.times[-1]:.3f} s; {file} has {len(timestamps)} "
            f"cameras, and {len(far)} of their timestamps have no frame, the first at {seconds[far[0]]:.3f} s. This is "
            "another video, or a piece of it: fetch the whole video, or extract the frames of the timestamps"
        )
    return [int(number) for number in numbers]


def denormalise(normalised: np.ndarray, width: int, height: int, crop: Crop, name: str) -> np.ndarray:
    """Intrinsics [3, 3] in pixels of a frame from (fx, fy, cx, cy) in units of the video's width and height.

    The size of the video is not in the file. Its pixels are square, so that fy / fx is the video's aspect; with
    ``centre`` the video is scaled until it covers the frame, and the same is cut off on both sides.

    Raises:
        BadCameraError: NaN, or a focal length that is not positive.
        BadDataError: ``auto``, and the frame has another aspect than the video.
    """
    fx, fy, cx, cy = (float(value) for value in normalised)
    if not np.isfinite([fx, fy, cx, cy]).all():
        raise BadCameraError(f"{name}: its intrinsics are NaN or infinite; remove that frame")
    if fx <= 0 or fy <= 0:
        raise BadCameraError(
            f"{name}: its camera has focal length ({fx:g}, {fy:g}) of the image size; it must be positive"
        )
    aspect = fy / fx  # width / height of the video
    if crop == "centre":
        covering = max(width, height * aspect)  # width of the video, scaled until it covers the frame
        full_width, full_height = covering, covering / aspect
        left, top = (full_width - width) / 2, (full_height - height) / 2
        return pinhole(fx * full_width, fy * full_height, cx * full_width - left, cy * full_height - top)
    if crop == "auto" and abs(fx * width / (fy * height) - 1) > SQUARE_PIXELS:
        raise BadDataError(
            f"{name}: the frame is {width}x{height} (aspect {width / height:.3f}), the cameras are for aspect "
            f"{aspect:.3f}; say crop=centre if the frames are a centre crop of the video, or crop=none if the whole "
            "picture was stretched"
        )
    return pinhole(fx * width, fy * height, cx * width, cy * height)


def frame_rate(timestamps: tuple[int, ...]) -> float | None:
    """Frames a second of timestamps in microseconds; None if they do not rise."""
    steps = np.diff(np.array(timestamps, dtype=np.int64))
    typical = float(np.median(steps)) if len(steps) else 0.0
    return 1e6 / typical if typical > 0 else None


def _frame_folder(file: Path, images: Path | str | None) -> Path:
    if images is not None:
        folder = file.parent / images
        return folder / file.stem if (folder / file.stem).is_dir() else folder
    candidates = [file.with_suffix(""), file.parent / "images", file.parent / "frames", file.parent]
    return next((folder for folder in candidates if folder.is_dir()), file.parent)


def _video(file: Path, address: str, images: Path | str | None, videos: Path | str | None) -> Path | None:
    """The video of a clip if its frames are to come from one; BadDataError if one was asked for and is not there."""
    if videos is None:
        folder = _frame_folder(file, images)
        # the text file's own folder may hold thousands of clips: it is not searched for every one of them
        if images is not None or (folder != file.parent and any(map(is_image, folder.iterdir()))):
            return None
        places = [file.parent, file.parent / "videos"]
    else:
        asked = file.parent / videos
        if is_video(asked):
            return asked
        places = [asked]
    names = [file.stem, _video_identifier(address)]
    if file.name == "cameras.txt":
        names = [file.parent.name, names[1], "clip", "video"]
    found = [
        path for place in places for name in names for s in VIDEO_SUFFIXES if is_video(path := place / f"{name}{s}")
    ]
    if not found and videos is not None:
        raise BadDataError(
            f"{asked}: no video of {file} here; looked for {' and '.join(names)} with {', '.join(VIDEO_SUFFIXES)}"
        )
    return found[0] if found else None


def _video_identifier(address: str) -> str:
    """``abc`` of ``https://www.youtube.com/watch?v=abc`` and of ``https://youtu.be/abc``."""
    parts = urlsplit(address)
    return parse_qs(parts.query).get("v", [Path(parts.path).name])[0] or "unnamed"
