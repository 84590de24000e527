"""Plain video: frames at a rate of choice, poses and points by structure from motion."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from reconx_pl.data.formats.scene import RawFrame, RawScene
from reconx_pl.data.formats.video_frames import VideoFrames, is_video, open_video
from reconx_pl.errors import BadSceneError, ConfigurationError, UnplacedViewsError
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.geometry.estimators.colmap import ColmapEstimator

logger = logging.getLogger(__name__)

MAX_FRAMES = 400  # all are in memory at once, and matching takes hours beyond
_LEAST_FRAMES = 3
_NAMED = 8  # frames in a message


def read_video(
    path: Path,
    *,
    rate: float = 4.0,
    start: float = 0.0,
    end: float | None = None,
    focal: float | None = None,
    min_placed: float = 0.7,
    estimator: PointMapEstimator | None = None,
) -> RawScene:
    """Read a video: every so many frames, with poses and points that are found for them.

    Frames that find no place among the others, blurred ones for instance, are left out with a warning, and the rest is
    reconstructed again. The world is that of the reconstruction, of any scale.

    Args:
        path: the file.
        rate: frames a second that are taken, at most those that the video has.
        start: seconds from the first frame to where taking frames begins.
        end: seconds from the first frame to where it ends; None takes the video to its end.
        focal: focal length in pixels of the video's frames, kept fixed; None finds it, which not every camera path
            allows: give it where it is known.
        min_placed: least share of the frames that must find a place, 0 to 1.
        estimator: finds poses and points; None is structure from motion with pycolmap, which takes the lens for a
            pinhole.

    Raises:
        BadDataError: not a video, or a damaged one.
        BadSceneError: too few frames, or too few that find a place; says how many of how many.
        ConfigurationError: a rate, a time or a share out of range.
        MissingDependencyError: PyAV or pycolmap is not installed.
    """
    if not rate > 0 or start < 0 or (end is not None and end <= start) or not 0 <= min_placed <= 1:
        raise ConfigurationError(
            f"need rate > 0, 0 <= start < end and min_placed from 0 to 1, got rate {rate:g}, start {start:g}, "
            f"end {end} and min_placed {min_placed:g}"
        )
    if focal is not None and estimator is not None:
        raise ConfigurationError("focal belongs to the reader's own estimator: give it to the one that is named")
    from reconx_pl.data.formats.found_poses import MAX_SIDE, with_found_poses  # it reads scenes itself

    video = open_video(path.absolute())
    numbers = frames_at_rate(video, rate, start, end)
    if not _LEAST_FRAMES <= len(numbers) <= MAX_FRAMES:
        raise BadSceneError(
            f"{path}: {len(numbers)} frames at {rate:g} a second, between {_LEAST_FRAMES} and {MAX_FRAMES} can be "
            f"reconstructed; change rate, start or end (the video has {len(video)} frames in {video.times[-1]:.1f} s)"
        )
    frames = tuple(
        RawFrame(
            f"{path} at {video.times[number]:.3f} s", video.width, video.height, np.eye(3), np.eye(4), number,
            partial(video.image, number),
        )
        for number in numbers
    )  # fmt: skip
    scene = RawScene(path.stem, "video", frames, path, fps=min(rate, 1 / video.step))
    reduced = min(1.0, MAX_SIDE / max(video.width, video.height))
    chosen = estimator or ColmapEstimator(focal=None if focal is None else focal * reduced)
    least = max(_LEAST_FRAMES, math.ceil(min_placed * len(numbers)))
    while True:
        try:
            return with_found_poses(scene, chosen).scene
        except UnplacedViewsError as error:
            lost = set(error.views)
            kept = tuple(frame for view, frame in enumerate(scene.frames) if view not in lost)
            times = ", ".join(f"{video.times[scene.frames[view].frame_id]:.2f}" for view in sorted(lost)[:_NAMED])
            times += ", ..." if len(lost) > _NAMED else ""
            if len(kept) < least:
                raise BadSceneError(
                    f"{path}: {len(kept)} of {len(numbers)} frames find a place, {least} are needed (min_placed); not "
                    f"those at {times} s. Raise rate, so that neighbours overlap more, or leave blurred stretches and "
                    "cuts out with start and end"
                ) from error
            logger.warning("%s: the frames at %s s find no place and are left out", path, times)
            scene = replace(scene, frames=kept)


def frames_at_rate(video: VideoFrames, rate: float, start: float = 0.0, end: float | None = None) -> list[int]:
    """Numbers of the frames nearest to every ``1 / rate`` seconds between two times; none twice."""
    last = video.times[-1] if end is None else min(end, video.times[-1])
    if start > last:
        return []
    wanted = start + np.arange(math.floor((last - start) * rate + 1e-6) + 1) / rate
    return sorted({int(number) for number in video.nearest(wanted)})


def video_files(path: Path) -> list[Path]:
    """The video itself, or the videos of a folder in order of name."""
    return [path] if is_video(path) else sorted(file for file in path.iterdir() if is_video(file))
