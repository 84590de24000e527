"""LLFF: the order down, right, backward, and intrinsics that follow the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from raw_scenes import HEIGHT, WIDTH, assert_same_cameras, known_cameras, numbered, reference, write_images

from reconx_pl.data.formats.llff import read_llff
from reconx_pl.errors import BadCameraError, BadDataError
from reconx_pl.types import Cameras


def write_llff(folder: Path, images: str = "images", reduced: int = 1) -> Path:
    cameras = known_cameras()
    write_images(folder / images, numbered(), HEIGHT // reduced, WIDTH // reduced)
    pose = cameras.camera_to_world.numpy()
    size = np.tile([HEIGHT, WIDTH, 0.0], (len(pose), 1))
    size[:, 2] = cameras.intrinsics[:, 0, 0].numpy()
    matrix = np.stack([pose[:, :3, 1], pose[:, :3, 0], -pose[:, :3, 2], pose[:, :3, 3], size], axis=-1)
    rows = np.concatenate([matrix.reshape(-1, 15), np.tile([1.0, 9.0], (len(pose), 1))], axis=1)
    np.save(folder / "poses_bounds.npy", rows)
    return folder


def test_fern_equals_its_checked_cameras(shared_dir: Path) -> None:
    source = shared_dir / "scenes/llff_fern"
    scene = read_llff(source / "orig", images=source / "images")
    assert_same_cameras(scene.cameras, reference(source).cameras)


@pytest.mark.parametrize(("images", "reduced"), [("images", 1), ("images_2", 2)])
def test_known_cameras_come_back_at_the_size_of_the_images(tmp_path: Path, images: str, reduced: int) -> None:
    scene = read_llff(write_llff(tmp_path, images, reduced))
    known = known_cameras()
    intrinsics = known.intrinsics.clone()
    intrinsics[:, :2] /= reduced
    expected = Cameras(known.world_to_camera, intrinsics, HEIGHT // reduced, WIDTH // reduced)
    assert_same_cameras(scene.cameras, expected)


def test_counts_that_differ(tmp_path: Path) -> None:
    write_llff(tmp_path)
    (tmp_path / "images/004.png").unlink()
    with pytest.raises(BadDataError, match=r"poses_bounds\.npy: 5 poses, but 4 images"):
        read_llff(tmp_path)


def test_no_images(tmp_path: Path) -> None:
    write_llff(tmp_path, "elsewhere")
    with pytest.raises(BadDataError, match=r"no folder of images here \(looked for images and images_N\)"):
        read_llff(tmp_path)


@pytest.mark.parametrize(
    ("entry", "value", "message"), [(14, 0.0, r"001\.png.*focal length"), (3, np.nan, r"row 1 \(001\.png\).*NaN")]
)
def test_bad_cameras(tmp_path: Path, entry: int, value: float, message: str) -> None:
    write_llff(tmp_path)
    rows = np.load(tmp_path / "poses_bounds.npy")
    rows[1, entry] = value
    np.save(tmp_path / "poses_bounds.npy", rows)
    with pytest.raises(BadCameraError, match=message):
        read_llff(tmp_path)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    write_llff(tmp_path)
    np.save(tmp_path / "poses_bounds.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadDataError, match=r"poses_bounds\.npy: cannot read"):
        read_llff(tmp_path)
