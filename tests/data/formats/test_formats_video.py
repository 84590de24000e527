"""Plain video: frames at a rate, poses found for them, and what happens to frames that find no place."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_scenes import known_cameras, reference, write_video
from torch import Tensor

from reconx_pl.data.formats.readers import detect_format, read_scenes
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.data.formats.video import frames_at_rate, read_video
from reconx_pl.data.formats.video_frames import VideoFrames
from reconx_pl.data.packing.clip_sampling import PackOptions
from reconx_pl.data.packing.epipolar import epipolar_pairs
from reconx_pl.data.packing.packing import pack_command
from reconx_pl.data.shards.stream import read_clips
from reconx_pl.errors import BadDataError, BadSceneError, ConfigurationError, UnplacedViewsError
from reconx_pl.geometry.cameras import resize_cameras
from reconx_pl.geometry.estimators.base import KnownDepth, Reconstruction
from reconx_pl.geometry.similarity import alignment_quality, fit_cameras
from reconx_pl.types import Cameras

RATE = 10


def plain_video(folder: Path, count: int = 12) -> Path:
    """Frames of one grey each, rising from 0 by tens."""
    return write_video(folder / "walk.mp4", [np.full((48, 64, 3), 10 * n, np.uint8) for n in range(count)], RATE)


class Places:
    """An estimator that finds no place for frames of certain greys, and known cameras for the others."""

    def __init__(self, *without: int) -> None:
        self.without = without
        self.calls: list[list[int]] = []

    def estimate(self, images: Tensor, cameras: Cameras | None = None) -> Reconstruction:
        assert cameras is None
        greys = [round(float(image.mean()) * 25.5) for image in images]
        self.calls.append(greys)
        lost = [view for view, grey in enumerate(greys) if grey in self.without]
        if lost:
            raise UnplacedViewsError(f"image {lost[0]} and others are lost", lost)
        known = resize_cameras(known_cameras(12)[greys], *images.shape[-2:]).to(dtype=torch.float32)
        return KnownDepth(torch.full(images[:, 0].shape, 2.0), points=100).estimate(images, known)


def test_frames_at_a_rate(tmp_path: Path) -> None:
    video = VideoFrames(plain_video(tmp_path))
    assert frames_at_rate(video, 5) == [0, 2, 4, 6, 8, 10]
    assert frames_at_rate(video, 1000) == list(range(12))  # none twice
    assert frames_at_rate(video, 10 / 3, start=0.2, end=0.85) == [2, 5, 8]
    assert frames_at_rate(video, 5, start=5) == []


def test_frames_without_a_place_are_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    places = Places(4, 5)
    scene = read_video(plain_video(tmp_path), rate=RATE, estimator=places)
    assert scene.frame_ids == (0, 1, 2, 3, 6, 7, 8, 9, 10, 11) and len(places.calls) == 2
    assert "the frames at 0.40, 0.50 s find no place and are left out" in caplog.text
    # what was found went to the right frames, in the size of the video
    truth = known_cameras(12)[list(scene.frame_ids)]
    torch.testing.assert_close(scene.cameras.world_to_camera, truth.world_to_camera, atol=1e-5, rtol=0)
    torch.testing.assert_close(scene.cameras.intrinsics, truth.intrinsics, atol=1e-4, rtol=0)
    assert abs(float(scene.load_image(5).mean()) - 70) < 2
    assert (scene.name, scene.dataset, scene.fps) == ("walk", "video", RATE) and scene.cloud is not None


def test_too_few_frames_with_a_place(tmp_path: Path) -> None:
    file = plain_video(tmp_path)
    with pytest.raises(
        BadSceneError, match=r"walk\.mp4: 8 of 12 frames find a place, 9 are needed .* 0\.00, 0\.10, 0\.20"
    ):
        read_video(file, rate=RATE, estimator=Places(0, 1, 2, 11))
    assert len(read_video(file, rate=RATE, min_placed=0.5, estimator=Places(0, 1, 2, 11))) == 8
    with pytest.raises(BadSceneError, match=r"2 frames at 1 a second, between 3 and .* 12 frames in 1\.1 s"):
        read_video(file, rate=1, estimator=Places())


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"start": -1.0}, {"start": 2.0, "end": 1.0}, {"min_placed": 1.5}])
def test_options_out_of_range(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ConfigurationError):
        read_video(tmp_path / "a.mp4", **wrong)
    with pytest.raises(ConfigurationError, match="focal belongs to"):
        read_video(tmp_path / "a.mp4", focal=500.0, estimator=Places())


def test_a_real_walk_with_a_frame_that_shows_nothing(
    shared_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Eight frames of a real clip and a grey one between them: poses as those of the data set."""
    pytest.importorskip("pycolmap")
    known = reference(shared_dir / "scenes/re10k_3c35b868a8ec3433")
    views = list(range(0, 24, 3))
    frames = [known.load_image(view) for view in views]
    write_video(tmp_path / "videos.mp4", [*frames[:3], np.full_like(frames[0], 128), *frames[3:]], RATE)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos.mp4").rename(tmp_path / "videos/walk.mp4")
    assert detect_format(tmp_path / "videos/walk.mp4")[0] == "video"
    with pytest.raises(BadDataError, match="no known format"):  # a folder is not searched for videos unasked
        list(read_scenes(tmp_path / "videos"))
    options = PackOptions(frames=8, height=64, width=64, max_stride=1, points=64)
    focal = float(known.frames[0].intrinsics[0, 0])
    with caplog.at_level(logging.WARNING):
        report = pack_command(tmp_path / "videos", tmp_path / "out", "video", options, rate=RATE, focal=focal)
    assert report.packed == 1 and report.smallest_cloud == 64
    assert "the frames at 0.30 s find no place" in caplog.text
    (clip,) = read_clips(tmp_path / "out")
    assert (clip.key, clip.fps) == ("video-walk-0000", RATE)
    truth = known.cameras[views].to(dtype=torch.float32)
    quality = alignment_quality(fit_cameras(clip.cameras, truth).transform_cameras(clip.cameras), truth)
    assert max(quality.rotation_degrees) < 1 and max(quality.translation_percent) < 3
    (pair,) = epipolar_pairs(replace_frames(clip, frames, known), 1, long_side=320)
    assert pair.median < 1.0


def replace_frames(clip, frames: list[np.ndarray], known: RawScene) -> RawScene:
    """Two frames at their full size with the poses of a packed clip, which are those that were found."""
    raw = tuple(
        replace(
            known.frames[0],
            world_to_camera=clip.cameras.world_to_camera[view].double().numpy(),
            load=lambda v=view: frames[v],
        )
        for view in (0, 1)
    )
    return replace(known, frames=raw)
