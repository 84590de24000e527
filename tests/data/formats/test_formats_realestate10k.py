"""RealEstate10K text: normalised intrinsics, frames by name or order, frames that are a crop of the video."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from raw_scenes import (
    HEIGHT,
    VIEWS,
    WIDTH,
    assert_same_cameras,
    known_cameras,
    numbered,
    realestate_rows,
    reference,
    write_images,
    write_video,
)

from reconx_pl.data.formats.readers import READERS, read_scenes
from reconx_pl.data.formats.realestate10k import read_realestate10k
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.data.formats.video_frames import VideoFrames
from reconx_pl.data.packing.epipolar import epipolar_pairs
from reconx_pl.errors import BadCameraError, BadDataError, MissingDependencyError
from reconx_pl.types import Cameras

CLIPS = ("0bf152ef84195293", "0c11dbe781b1c11c", "0f47577ab3441480", "2c80f9eb0d3b2bb4", "3c35b868a8ec3433")


def write_clip(
    folder: Path, names: list[str], file: str = "cameras.txt", images: str = "images", scale: int = 1
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_images(folder / images, names, HEIGHT * scale, WIDTH * scale)
    lines = ["https://example.org/video"]
    for view, row in enumerate(realestate_rows(known_cameras())):
        lines.append(" ".join([str(1_000_000 + 40_000 * view), *(repr(float(value)) for value in row)]))
    (folder / file).write_text("\n".join(lines) + "\n")
    return folder


def stamped() -> list[str]:
    return [f"{1_000_000 + 40_000 * view}.png" for view in range(VIEWS)]


@pytest.mark.parametrize("clip", CLIPS)
def test_real_clips_equal_their_checked_cameras(shared_dir: Path, clip: str) -> None:
    """The frames were resized from 16:9 and cropped to 576x320; cameras.json was checked by matches."""
    source = shared_dir / f"scenes/re10k_{clip}"
    scene = read_realestate10k(source, crop="centre")
    assert_same_cameras(scene.cameras, reference(source).cameras, pose=1e-7, pixels=1e-4)
    assert scene.fps is not None and 5 < scene.fps < 8


def test_a_cropped_frame_is_not_taken_for_the_whole_picture(shared_dir: Path) -> None:
    with pytest.raises(BadDataError, match=r"000\.jpg: the frame is 576x320.*crop=centre"):
        read_realestate10k(shared_dir / f"scenes/re10k_{CLIPS[0]}")


@pytest.mark.parametrize("names", [numbered(), stamped()])
def test_known_cameras_come_back(tmp_path: Path, names: list[str]) -> None:
    scene = read_realestate10k(write_clip(tmp_path, names))
    assert_same_cameras(scene.cameras, known_cameras())
    assert scene.fps == pytest.approx(25.0) and scene.frame_ids[1] == 1_040_000


def test_intrinsics_follow_the_size_of_the_frames(tmp_path: Path) -> None:
    scene = read_realestate10k(write_clip(tmp_path, numbered(), scale=2))
    known = known_cameras()
    intrinsics = known.intrinsics.clone()
    intrinsics[:, :2] *= 2
    assert_same_cameras(scene.cameras, Cameras(known.world_to_camera, intrinsics, 2 * HEIGHT, 2 * WIDTH))


def test_frames_by_name_may_be_more_than_cameras(tmp_path: Path) -> None:
    write_clip(tmp_path, [*stamped(), "5.png"])
    assert len(read_realestate10k(tmp_path)) == VIEWS
    (tmp_path / "images/1040000.png").unlink()
    with pytest.raises(BadDataError, match=r"images/1040000\.\*: this image is missing"):
        read_realestate10k(tmp_path)


def test_frames_by_order_need_equal_counts(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="5 cameras, but 4 images"):
        read_realestate10k(write_clip(tmp_path, numbered(4)))


def test_the_official_layout_of_many_clips(tmp_path: Path) -> None:
    for name in ("aa", "bb"):
        write_clip(tmp_path, stamped(), f"{name}.txt", name)
    scenes = [scene for scene in read_scenes(tmp_path) if isinstance(scene, RawScene)]
    assert [scene.name for scene in scenes] == ["aa", "bb"] and "realestate10k" in READERS


@pytest.mark.parametrize(
    ("entry", "value", "error", "message"),
    [
        (1, "0.0", BadCameraError, r"002\.png.*focal length \(0, "),
        (8, "nan", BadCameraError, r"timestamp 1080000.*NaN"),
        (2, "nan", BadCameraError, r"002\.png.*NaN"),
        (4, "half", BadDataError, r"cameras\.txt, line 4"),
    ],
)
def test_bad_lines(tmp_path: Path, entry: int, value: str, error: type[Exception], message: str) -> None:
    write_clip(tmp_path, numbered())
    lines = (tmp_path / "cameras.txt").read_text().splitlines()
    values = lines[3].split()
    values[entry] = value
    lines[3] = " ".join(values)
    (tmp_path / "cameras.txt").write_text("\n".join(lines))
    with pytest.raises(error, match=message):
        read_realestate10k(tmp_path)


# --- frames in a video


def from_real_clip(shared_dir: Path, folder: Path) -> Path:
    """cameras.txt of a real clip, without its frames."""
    folder.mkdir(parents=True)
    shutil.copy(shared_dir / f"scenes/re10k_{CLIPS[0]}/cameras.txt", folder)
    return folder


def test_a_clip_video_has_one_frame_a_camera(shared_dir: Path, tmp_path: Path) -> None:
    source = shared_dir / f"scenes/re10k_{CLIPS[0]}"
    folder = from_real_clip(shared_dir, tmp_path / CLIPS[0])
    shutil.copy(source / "clip.mp4", folder)
    scene = read_realestate10k(folder, crop="centre")
    known = reference(source)
    assert scene.name == CLIPS[0] and scene.frame_ids == read_realestate10k(source, crop="centre").frame_ids
    assert_same_cameras(scene.cameras, known.cameras, pose=1e-7, pixels=1e-4)
    for view in (7, 0, 24, 8):  # in an order that jumps
        differences = [
            np.abs(scene.load_image(view) - known.load_image(other).astype(float)).mean() for other in range(25)
        ]
        assert int(np.argmin(differences)) == view and differences[view] < 2
    (pair,) = epipolar_pairs(replace(scene, frames=(scene.frames[4], scene.frames[7])), 1, long_side=320)
    assert pair.median < 1.0


def test_a_whole_video_is_read_at_the_timestamps(shared_dir: Path, tmp_path: Path) -> None:
    """The official text names a video and counts microseconds in it; several texts may share one."""
    known = reference(shared_dir / f"scenes/re10k_{CLIPS[0]}")
    images = [known.load_image(view) for view in range(25)]
    chosen = [9, 12, 15]
    rows = (shared_dir / f"scenes/re10k_{CLIPS[0]}/cameras.txt").read_text().splitlines()
    lines = [rows[0]]  # https://www.youtube.com/watch?v=QShWPZxTDoE
    for view in chosen:
        lines.append(" ".join([str(round(view * 1e6 / 30) + 4000), *rows[1 + view].split()[1:]]))
    (tmp_path / "train").mkdir()
    (tmp_path / "train/aa.txt").write_text("\n".join(lines))
    (tmp_path / "train/bb.txt").write_text("\n".join(lines[:2]))
    (tmp_path / "full").mkdir()
    write_video(tmp_path / "full/QShWPZxTDoE.mp4", images, 30)
    one, other = read_scenes(tmp_path / "train", "realestate10k", videos="../full", crop="centre")
    assert isinstance(one, RawScene) and isinstance(other, RawScene) and (one.name, other.name) == ("aa", "bb")
    assert_same_cameras(one.cameras, known.cameras[chosen], pose=1e-7, pixels=1e-4)
    for view, source in enumerate(chosen):
        assert np.abs(one.load_image(view) - images[source].astype(float)).mean() < 3
        assert np.abs(one.load_image(view) - images[source + 1].astype(float)).mean() > 10
    lines[-1] = " ".join(["900000000", *lines[-1].split()[1:]])  # 15 minutes into a video of a second
    (tmp_path / "train/aa.txt").write_text("\n".join(lines))
    with pytest.raises(BadDataError, match=r"QShWPZxTDoE\.mp4: 25 frames, .*1 of their timestamps .*900\.000 s"):
        read_realestate10k(tmp_path / "train/aa.txt", videos="../full", crop="centre")
    with pytest.raises(BadDataError, match=r"no video of .*bb\.txt here; looked for bb and QShWPZxTDoE with \.mp4"):
        read_realestate10k(tmp_path / "train/bb.txt", videos="../none")


def test_frames_of_many_clips_in_another_folder(tmp_path: Path) -> None:
    for name in ("aa", "bb"):
        write_clip(tmp_path / "text", stamped(), f"{name}.txt", f"../frames/{name}")
    scenes = list(read_scenes(tmp_path / "text", "realestate10k", images="../frames"))
    assert all(isinstance(scene, RawScene) for scene in scenes)
    assert [Path(scene.frames[0].name).parent.name for scene in scenes] == ["aa", "bb"]


def test_a_turned_video_is_read_upright(tmp_path: Path) -> None:
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write the rotation of a video")
    upright = np.zeros((64, 32, 3), np.uint8)
    upright[:16] = 255  # white at the top
    file = write_video(tmp_path / "a.mp4", [np.ascontiguousarray(np.rot90(upright, -1))] * 3, 10, degrees=90)
    video = VideoFrames(file)
    assert (video.height, video.width) == (64, 32)
    assert np.abs(video.image(1).astype(int) - upright).mean() < 5


def test_what_is_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a video at all")
    with pytest.raises(BadDataError, match=r"a\.mp4: cannot read it as a video"):
        VideoFrames(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match="pip install av"):
        VideoFrames(tmp_path / "a.mp4")
