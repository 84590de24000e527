"""Frames of a video file by number or by time, decoded when they are asked for (PyAV)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from reconx_pl.errors import BadDataError, MissingDependencyError

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm")
_READ_ON = 48  # frames ahead that are reached by decoding on; farther ones by a jump to the key frame before them


def load_av() -> ModuleType:
    """PyAV.

    Raises:
        MissingDependencyError: it is not installed, or its library does not load.
    """
    try:
        import av
    except ImportError as error:
        raise MissingDependencyError(
            f"videos need PyAV, which cannot be imported ({error}); install it: pip install av"
        ) from error
    return av


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and path.is_file()


@lru_cache(maxsize=2)  # clips of one video often follow each other, and the list of its frames costs a pass over it
def open_video(path: Path) -> VideoFrames:
    """The frames of a video; the last two that were opened stay open."""
    return VideoFrames(path)


class VideoFrames:
    """The frames of a video file in the order in which they are shown.

    Frames asked for in rising order are decoded once each.

    Args:
        path: the file.

    Attributes:
        times: [N] seconds since the first frame, rising.
        width, height: of a frame as :meth:`image` gives it, pixels.

    Raises:
        BadDataError: not a video, or one whose frames have no time stamps; names it.
        MissingDependencyError: PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        av = load_av()
        self.path = path
        self._errors: tuple[type[Exception], ...] = (av.error.FFmpegError, OSError, IndexError)
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
            stamps = [
                packet.pts for packet in self._container.demux(self._stream) if packet.size and not packet.is_discard
            ]
        except self._errors as error:
            raise BadDataError(f"{path}: cannot read it as a video ({error}); fetch or convert it again") from error
        if not stamps or any(stamp is None for stamp in stamps):
            raise BadDataError(
                f"{path}: {'no frames in it' if not stamps else 'its frames have no time stamps'}; "
                "write it anew: ffmpeg -fflags +genpts -i OLD -c copy NEW.mp4"
            )
        self._stamps = sorted(set(stamps))
        self.times = (np.array(self._stamps) - self._stamps[0]) * float(self._stream.time_base)
        self._decoding: Iterator[Any] = iter(())
        self._at = len(self)  # number of the frame that decoding gives next; beyond the end: nothing was decoded yet
        first = self.image(0)
        self.height, self.width = first.shape[:2]

    def __len__(self) -> int:
        return len(self._stamps)

    @property
    def step(self) -> float:
        """Seconds from frame to frame, typically."""
        return float(np.median(np.diff(self.times))) if len(self) > 1 else 0.0

    def nearest(self, seconds: np.ndarray) -> np.ndarray:
        """Numbers [K] of the frames shown nearest to times [K] since the first frame."""
        after = np.searchsorted(self.times, seconds).clip(1, max(1, len(self) - 1))
        before = after - 1
        after = np.minimum(after, len(self) - 1)
        return np.where(seconds - self.times[before] <= self.times[after] - seconds, before, after)

    def image(self, number: int) -> np.ndarray:
        """uint8 [H, W, 3] of a frame, turned as the file says that it is shown.

        Raises:
            BadDataError: a damaged stretch; names the file and the time.
        """
        where = f"{self.path}, frame {number} at {self.times[number]:.3f} s"
        wanted = self._stamps[number]
        try:
            if not self._at <= number <= self._at + _READ_ON:
                self._container.seek(wanted, stream=self._stream)
                self._decoding = self._container.decode(self._stream)
            for frame in self._decoding:
                if frame.pts is not None and frame.pts >= wanted:
                    break
            else:
                raise BadDataError(f"{where}: the video ends before it; fetch or convert it again")
        except self._errors as error:
            self._at = len(self)
            raise BadDataError(f"{where}: cannot decode it ({error}); fetch or convert it again") from error
        if frame.pts != wanted:
            self._at = len(self)
            raise BadDataError(f"{where}: this frame cannot be decoded; fetch or convert the video again")
        self._at = number + 1
        turned = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
        return np.ascontiguousarray(turned)
