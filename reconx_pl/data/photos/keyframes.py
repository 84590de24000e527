"""Frames of a video for a reconstruction: evenly spread, the sharpest of each stretch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import laplace

from reconx_pl.data.formats.video_frames import VideoFrames
from reconx_pl.errors import BadDataError, BadSceneError
from reconx_pl.types import Progress

_CANDIDATES = 8  # (ours) of a stretch; blur of a hand comes and goes faster
_MIDDLE = 0.6  # (ours) share of a stretch that they come from, so that chosen neighbours are not the same moment


@dataclass(frozen=True)
class Keyframes:
    """Chosen frames of a video."""

    numbers: tuple[int, ...]  # in the video, rising
    pixels: np.ndarray  # [V, H, W, 3] uint8
    video: tuple[int, int]  # width and height of the video, pixels
    damaged: int  # candidates that could not be decoded
    repeated: int  # stretches that show the same pixels as one before


def select_keyframes(path: Path, views: int, max_side: int, progress: Progress | None = None) -> Keyframes:
    """Cut a video into ``views`` equal stretches and take the sharpest frame out of the middle of each.

    Sharpness is the variance of the Laplacian of the grey picture at the size that is returned. Frames that equal one
    taken before, as in a video that stands still, are left out.

    Args:
        path: the file.
        views: frames wanted; a shorter video gives all that it has.
        max_side: the longer side, pixels, at most; never enlarged.
        progress: counts the frames that are looked at.

    Raises:
        BadSceneError: fewer than two different frames.
        BadDataError: not a video, or a stretch of which no frame can be decoded.
        MissingDependencyError: PyAV is not installed.
    """
    video = VideoFrames(path)
    if len(video) < 2:
        raise BadSceneError(f"{path}: {len(video)} frame in this video, two are needed; give a longer one")
    scale = min(1.0, max_side / max(video.width, video.height))
    size = max(1, round(video.width * scale)), max(1, round(video.height * scale))
    stretches = [_candidates(stretch) for stretch in np.array_split(np.arange(len(video)), min(views, len(video)))]
    total, done, damaged, repeated = sum(map(len, stretches)), 0, 0, 0
    numbers: list[int] = []
    chosen: dict[bytes, np.ndarray] = {}
    for stretch in stretches:
        best: tuple[float, int, np.ndarray] | None = None
        failure: BadDataError | None = None
        for number in stretch:
            try:
                pixels = np.asarray(Image.fromarray(video.image(number)).resize(size, Image.Resampling.LANCZOS))
                sharpness = float(laplace(pixels.mean(axis=2, dtype=np.float32)).var())
                if best is None or sharpness > best[0]:
                    best = sharpness, number, pixels
            except BadDataError as error:
                damaged, failure = damaged + 1, error
            done += 1
            if progress is not None:
                progress("looking for sharp frames", done, total)
        if best is None:
            assert failure is not None
            raise failure
        if best[2].tobytes() in chosen:
            repeated += 1
        else:
            chosen[best[2].tobytes()] = best[2]
            numbers.append(best[1])
    if len(numbers) < 2:
        raise BadSceneError(f"{path}: all frames show the same picture; give a video of a camera that moves")
    return Keyframes(tuple(numbers), np.stack(list(chosen.values())), (video.width, video.height), damaged, repeated)


def _candidates(stretch: np.ndarray) -> list[int]:
    """Frames of the middle of a stretch, evenly."""
    margin = round(len(stretch) * (1 - _MIDDLE) / 2)
    middle = stretch[margin : len(stretch) - margin]
    return [
        int(number)
        for number in middle[np.linspace(0, len(middle) - 1, min(_CANDIDATES, len(middle))).round().astype(int)]
    ]
