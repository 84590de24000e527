"""RealEstate10K text: normalised intrinsics, frames by name or order, frames that are a crop of the video."""

from __future__ import annotations

from pathlib import Path

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
)

from reconx_pl.data.formats import READERS, RawScene, read_scenes
from reconx_pl.data.formats.realestate10k import read_realestate10k
from reconx_pl.errors import BadCameraError, BadDataError
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
