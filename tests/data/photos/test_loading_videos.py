"""Photographs out of a video: which frames, and a clear sentence where there are too few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from photograph_files import note, refused, write
from raw_scenes import write_video

from reconx_pl.data.photos.keyframes import select_keyframes
from reconx_pl.data.photos.photographs import load_photographs
from reconx_pl.errors import BadSceneError


def textured(count: int, blurred: set[int] = frozenset()) -> list[np.ndarray]:  # type: ignore[assignment]
    base = np.random.default_rng(0).integers(0, 255, (48, 200, 1), dtype=np.uint8).repeat(3, 2)
    frames = [base[:, 2 * number : 2 * number + 64] for number in range(count)]
    return [
        np.repeat(np.repeat(frame[::8, ::8], 8, 0), 8, 1) if number in blurred else frame
        for number, frame in enumerate(frames)
    ]


def test_frames_of_a_video(tmp_path: Path) -> None:
    sharp = {4, 15, 24, 37}
    file = write_video(tmp_path / "walk.mp4", textured(40, set(range(40)) - sharp), 10)
    found = load_photographs([file], views=4)
    assert found.names == tuple(f"walk_frame_{number:06d}.png" for number in (4, 15, 24, 37))
    assert found.sources[1] == f"{file}, frame 15" and found.lenses == (0,) * 4 and found.focals == (None,) * 4
    assert found.images.shape == (4, 3, 48, 64)
    assert (found.images[1] - torch.from_numpy(textured(40)[15]).permute(2, 0, 1) / 255).abs().mean() < 0.08
    assert len(load_photographs([file])) == 16
    reduced = select_keyframes(file, 5, 32)
    assert reduced.pixels.shape == (5, 24, 32, 3) and min(np.diff(reduced.numbers)) >= 4


def test_videos_with_little_in_them(tmp_path: Path) -> None:
    one = write_video(tmp_path / "one.mp4", textured(1), 10)
    assert refused([one], BadSceneError) == f"{one}: 1 frame in this video, two are needed; give a longer one"
    still = write_video(tmp_path / "still.mp4", [np.full((48, 64, 3), 90, np.uint8)] * 12, 10)
    assert "all frames show the same picture" in refused([still], BadSceneError)
    short = load_photographs([write_video(tmp_path / "short.mp4", textured(3), 10)])
    assert len(short) == 3 and "3 frames, fewer than the 16 views" in note(short, "short.mp4")
    twice = load_photographs(
        [write_video(tmp_path / "twice.mp4", [f for f in textured(3) for _ in range(8)], 10)], views=3
    )
    assert len(twice) == 3
    no_video = tmp_path / "text.mp4"
    no_video.write_text("not a video")
    assert str(no_video) in refused([no_video])


def test_a_video_goes_alone(tmp_path: Path) -> None:
    video = write_video(tmp_path / "walk.mp4", textured(4), 10)
    message = refused([write(tmp_path, "a.png"), video], BadSceneError)
    assert message == f"{video}: a video goes alone, and 1 more came with it; give one video, or photographs"
