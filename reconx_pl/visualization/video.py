"""Frames to mp4 files that every browser plays: H.264, yuv420p, header in front."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reconx_pl.errors import BadDataError, ConfigurationError, MissingDependencyError
from reconx_pl.files.atomic import atomic_write

CODEC = "libx264"


def to_uint8(frames: Tensor | np.ndarray) -> np.ndarray:
    """Frames as uint8 [T, H, W, 3].

    Args:
        frames: uint8 [T, H, W, 3] (array or tensor), or float in [0, 1] [T, 3, H, W] (tensor).
    """
    if isinstance(frames, np.ndarray):
        frames = torch.from_numpy(frames)
    if frames.is_floating_point():
        frames = (frames.detach().clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1)
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or frames.numel() == 0:
        raise ConfigurationError(
            f"a video needs uint8 [T, H, W, 3] or float [T, 3, H, W] frames, got {frames.dtype} {tuple(frames.shape)}"
        )
    return frames.cpu().numpy()


def write_mp4(frames: Tensor | np.ndarray, path: str | Path, fps: float, quality: int = 18) -> Path:
    """Write a video; the file appears under its name only when it is complete.

    Args:
        frames: see ``to_uint8``. yuv420p needs even sizes, so an odd image is extended by its last row or column.
        path: ends in .mp4; its folder is made.
        fps: frames a second.
        quality: x264's constant rate factor: 0 is lossless, 18 looks so, 51 is worst.

    Raises:
        MissingDependencyError: this build of PyAV cannot encode H.264.
        ConfigurationError: frames of another shape, a rate that is not positive.
    """
    import av
    from av.video.stream import VideoStream

    images = to_uint8(frames)
    if not fps > 0:
        raise ConfigurationError(f"a video needs a positive frame rate, got {fps}")
    if CODEC not in av.codecs_available:
        raise MissingDependencyError(f"PyAV {av.__version__} has no {CODEC} encoder; pip install --force-reinstall av")
    images = np.pad(images, ((0, 0), (0, images.shape[1] % 2), (0, images.shape[2] % 2), (0, 0)), mode="edge")
    path = Path(path)
    video = {"movflags": "faststart"}
    with atomic_write(path) as unfinished, av.open(str(unfinished), "w", options=video) as container:
        stream = container.add_stream(CODEC, rate=Fraction(fps).limit_denominator(1000))
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(quality), "preset": "medium"}
        stream.codec_context.thread_count = 1
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")))
        container.mux(stream.encode())
    return path


def read_mp4(path: str | Path) -> tuple[np.ndarray, float]:
    """Frames uint8 [T, H, W, 3] and frames a second of a video.

    Raises:
        BadDataError: not a video.
    """
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            rate = float(stream.average_rate or 0)
    except (av.error.FFmpegError, IndexError, OSError) as error:
        raise BadDataError(f"{path} cannot be read as a video: {error}") from error
    if not frames:
        raise BadDataError(f"{path} holds no video frames")
    return np.stack(frames), rate
