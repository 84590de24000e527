"""Procedural frames: ray casting beside the JPEG encoding that follows it."""

from __future__ import annotations

import statistics

import simplejpeg

from benchmarks.timing import processor_seconds, table
from reconx_pl.data.procedural import procedural_clip, procedural_views


def main() -> None:
    frames, _, _ = procedural_views(0, [i / 7 for i in range(8)], (128, 128))
    pixels = frames.permute(0, 2, 3, 1).contiguous().numpy()
    views, clips = iter(range(1000)), iter(range(1000))  # both go through the same scenes
    cast = "ray-cast 8 frames of 128 x 128"
    seconds = processor_seconds(
        {
            cast: lambda: procedural_views(next(views), [i / 7 for i in range(8)], (128, 128)),
            "clip: the same, and a cloud of 16,384 points": lambda: procedural_clip(next(clips)),
            "JPEG of 8 frames": lambda: [simplejpeg.encode_jpeg(frame, quality=95) for frame in pixels],
        },
        rounds=15,
    )
    table(seconds, cast)
    print(f"{8 / statistics.median(seconds[cast]):.0f} frames a processor-second")


if __name__ == "__main__":
    main()
