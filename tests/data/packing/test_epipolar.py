"""The epipolar picture: small for the true cameras of a real scene, large for every wrong convention."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from raw_scenes import known_cameras, reference, write_posed

from reconx_pl.data.formats.scene import RawFrame, RawScene
from reconx_pl.data.packing.epipolar import draw_epipolar_check, epipolar_distance, epipolar_pairs
from reconx_pl.data.packing.packing import scene_clip
from reconx_pl.errors import BadSceneError
from reconx_pl.geometry.cameras import fundamental_matrix, project

FLIP_Y = np.diag([1.0, -1.0, 1.0, 1.0])


def few_views(scene: RawScene, views: tuple[int, ...]) -> RawScene:
    return replace(scene, frames=tuple(scene.frames[view] for view in views))


def with_poses(scene: RawScene, change: Callable[[RawFrame], np.ndarray]) -> RawScene:
    return replace(scene, frames=tuple(replace(f, world_to_camera=change(f)) for f in scene.frames))


def test_true_cameras_are_close_and_a_flipped_axis_is_far(shared_dir: Path, tmp_path: Path) -> None:
    scene = few_views(reference(shared_dir / "scenes/ingp_fox"), (0, 4, 8))
    file = tmp_path / "check/true.png"
    right = draw_epipolar_check(scene, file, pairs=2, long_side=320)
    with Image.open(file) as picture:
        assert picture.format == "PNG" and picture.width > 300 and np.asarray(picture).std() > 20
    flipped = with_poses(scene, lambda frame: FLIP_Y @ frame.world_to_camera @ FLIP_Y)
    inverted = with_poses(scene, lambda frame: np.linalg.inv(frame.world_to_camera))
    opengl = with_poses(scene, lambda frame: np.diag([1.0, -1.0, -1.0, 1.0]) @ frame.world_to_camera)
    assert right < 1.0
    for wrong in (flipped, inverted, opengl):
        (pair,) = epipolar_pairs(wrong, 1, long_side=320)
        assert pair.median > 6 * right


@pytest.mark.parametrize(("name", "views"), [("ingp_fox", (0, 4)), ("llff_fern", (5, 6)), ("brighton_beach", (4, 5))])
def test_real_scenes_agree_with_their_images(shared_dir: Path, name: str, views: tuple[int, ...]) -> None:
    (pair,) = epipolar_pairs(few_views(reference(shared_dir / "scenes" / name), views), 1, long_side=320)
    assert pair.median < 1.2 and len(pair.points) >= 12


def test_a_packed_clip_still_agrees(shared_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Resize, crop and cameras went together."""
    scene = reference(shared_dir / "scenes/re10k_3c35b868a8ec3433")
    clip = scene_clip(scene, [0, 4], 256, 256)
    assert draw_epipolar_check(clip, tmp_path / "clip.png", pairs=1) < 1.0
    shifted = clip.cameras.intrinsics.clone()
    shifted[0, 1, 2] += 12.0  # one crop offset forgotten
    wrong = replace(clip, cameras=replace(clip.cameras, intrinsics=shifted))
    with caplog.at_level(logging.WARNING):
        assert draw_epipolar_check(wrong, tmp_path / "wrong.png", pairs=1) > 3.0
    assert "cameras and images disagree" in caplog.text


def test_distance_of_exact_and_of_moved_points() -> None:
    cameras = known_cameras()
    points = torch.from_numpy(np.random.default_rng(3).normal(0, 1, (40, 3)) + [0, 0, 8.0])
    pixels, _ = project(points, cameras[[0, 3]])
    matches = pixels.permute(1, 0, 2).numpy()  # [M, 2, 2]
    fundamental = fundamental_matrix(cameras, 0, 3).numpy()
    assert epipolar_distance(matches, fundamental).max() < 1e-6
    lines = np.hstack([matches[:, 0], np.ones((40, 1))]) @ fundamental.T
    normal = lines[:, :2] / np.linalg.norm(lines[:, :2], axis=1, keepdims=True)
    moved = matches.copy()
    moved[:, 1] += 2.0 * normal  # two pixels off the line in the second view
    first = np.hstack([moved[:, 1], np.ones((40, 1))]) @ fundamental
    in_first = np.abs((np.hstack([moved[:, 0], np.ones((40, 1))]) * first).sum(1)) / np.linalg.norm(
        first[:, :2], axis=1
    )
    np.testing.assert_allclose(epipolar_distance(moved, fundamental), 0.5 * (2.0 + in_first))


def test_scenes_that_cannot_be_checked(tmp_path: Path) -> None:
    scene = reference(write_posed(tmp_path))
    with pytest.raises(BadSceneError, match="needs two views"):
        epipolar_pairs(few_views(scene, (0,)))
    with pytest.raises(BadSceneError, match="no pair of views has 12 matches and a baseline"):
        epipolar_pairs(few_views(scene, (0, 1)))  # two pictures of different things
