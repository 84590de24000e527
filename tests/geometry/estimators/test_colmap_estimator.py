"""Structure from motion on procedural scenes, whose cameras and depth are exact."""

from __future__ import annotations

import logging
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from reconx_pl.data.photos.photographs import MAX_VIEWS
from reconx_pl.data.procedural import procedural_scene, procedural_views, render_scene
from reconx_pl.errors import BadCameraError, BadSceneError, ConfigurationError, MissingDependencyError
from reconx_pl.geometry.cameras import fundamental_matrix, project, resize_cameras
from reconx_pl.geometry.estimators import colmap as colmap_estimator
from reconx_pl.geometry.estimators.colmap import ColmapEstimator
from reconx_pl.geometry.estimators.colmap_matches import ImageMatches, groups, mutual_matches, sampson_distances
from reconx_pl.geometry.estimators.sparse_cloud import sfm_cloud
from reconx_pl.geometry.similarity import align
from reconx_pl.types import Cameras, PointCloud

pycolmap = pytest.importorskip("pycolmap", reason="structure from motion needs pycolmap")
HEIGHT, WIDTH = 240, 320


class Views:
    """Five views of a landscape and what is true of them."""

    def __init__(self) -> None:
        frames, self.depth, cameras = procedural_views(5, [0, 0.25, 0.5, 0.75, 1], (HEIGHT, WIDTH), kind="landscape")
        self.images, self.cameras = frames.float() / 255, cameras


@pytest.fixture(scope="module")
def views() -> Views:
    return Views()


@pytest.fixture(scope="module")
def other() -> Tensor:  # [1, 3, H, W] of another scene
    return procedural_views(8, [0.5], (HEIGHT, WIDTH), kind="room")[0].float() / 255


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_cameras_are_found_up_to_a_similarity(views: Views, temporary: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = ColmapEstimator().estimate(views.images)
    output = capfd.readouterr()
    assert output.out == output.err == "" and list(temporary.iterdir()) == []  # COLMAP neither talks nor leaves files
    _, quality = align(found, views.cameras)
    assert max(quality.rotation_degrees) < 0.3 and max(quality.translation_percent) < 0.5
    focal = found.cameras.intrinsics[:, 0, 0] / views.cameras.intrinsics[:, 0, 0]
    assert (focal - 1).abs().max() < 0.03
    pixels, depth = project(found.cloud.points, found.cameras)
    assert (depth > 0).all()
    assert len(found.cloud) > 300 and found.cloud.confidence.min() > 1
    assert found.point_map.points.shape == (5, HEIGHT, WIDTH, 3)
    assert 0.01 < found.point_map.valid.float().mean() < 1
    covered = found.point_map.valid
    seen, _ = project(found.point_map.points[0][covered[0]], found.cameras[0])
    rows, columns = covered[0].nonzero(as_tuple=True)
    torch.testing.assert_close(seen[0], torch.stack([columns, rows], -1) + 0.5, atol=1e-2, rtol=0)


def test_known_cameras_are_kept_and_points_lie_on_the_surfaces(views: Views) -> None:
    far = Cameras(views.cameras.world_to_camera.clone(), views.cameras.intrinsics.clone(), HEIGHT, WIDTH)
    far.world_to_camera[:, :3, 3] *= 40  # another unit: the world is the data set's, not COLMAP's
    found = ColmapEstimator().estimate(views.images, far)
    assert found.cameras is far
    pixels, depth = project(found.cloud.points, far)
    for view in (0, 4):
        x, y = pixels[view].floor().long().unbind(-1)
        inside = (x >= 0) & (y >= 0) & (x < WIDTH) & (y < HEIGHT)
        true = 40 * views.depth[view][y[inside], x[inside]]
        close = (depth[view][inside] - true).abs() < 0.05 * true
        sure = found.cloud.confidence[inside] > 2  # seen by three views at least
        assert close[true > 0].float().mean() > 0.8 and len(close) > 300  # others lie on edges, or are hidden here
        assert close[sure & (true > 0)].float().mean() > 0.88
        color = views.images[view][:, y[inside], x[inside]].T
        assert (color - found.cloud.colors[inside]).abs().mean() < 0.1
    assert torch.equal(found.cloud[:50].points, ColmapEstimator(points=50).estimate(views.images, far).cloud.points)


def test_two_views_of_known_focal_length_suffice(views: Views) -> None:
    focal = float(views.cameras.intrinsics[0, 0, 0])
    found = ColmapEstimator(focal=focal).estimate(views.images[[1, 3]])
    assert (found.cameras.intrinsics[:, [0, 1], [0, 1]] == torch.tensor(focal)).all()
    _, quality = align(found, views.cameras[[1, 3]])
    assert max(quality.rotation_degrees) < 1 and max(quality.translation_percent) < 2


def test_the_same_images_give_the_same_result(views: Views) -> None:
    one, two = (ColmapEstimator(seed=3).estimate(views.images) for _ in range(2))
    assert torch.equal(one.cloud.points, two.cloud.points) and torch.equal(one.cloud.confidence, two.cloud.confidence)
    assert torch.equal(one.cameras.world_to_camera, two.cameras.world_to_camera)


def test_a_sequence_is_matched_in_its_order(views: Views, tmp_path: Path) -> None:
    matches = ImageMatches(tmp_path, views.images, seed=0, threads=1)
    matches.extract(2048, "SIMPLE_PINHOLE")
    matches.match("sequential", overlap=1)
    assert {j - i for i, j in matches.verified()} == {1}
    assert groups(5, matches.verified()) == [[0, 1, 2, 3, 4]]


def test_features_stand_in_pixels_with_the_corner_at_zero(tmp_path: Path) -> None:
    """COLMAP's pixel convention is ours: a blob around (x, y) has its feature there, not half a pixel beside."""
    centers = torch.tensor([[40.0, 40.0], [100.5, 50.25], [60.75, 90.5]])
    rows, columns = torch.arange(128) + 0.5, torch.arange(160) + 0.5
    image = torch.zeros(128, 160)
    for x, y in centers:
        image += torch.exp(-0.5 * ((columns - x) ** 2 + (rows[:, None] - y) ** 2) / 4**2)
    matches = ImageMatches(tmp_path, image.expand(1, 3, 128, 160), seed=0, threads=1)
    matches.extract(100, "SIMPLE_PINHOLE")
    with matches.opened() as database:
        found = torch.from_numpy(database.read_keypoints(1)[:, :2])
    assert torch.cdist(centers, found).amin(1).max() < 0.1


def test_distance_to_an_epipolar_line_is_in_pixels(views: Views) -> None:
    """Two cameras side by side: lines are rows, and half of a shift across them is laid to either image."""
    pose = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    pose[1, 0, 3] = -1.0
    pair = Cameras(pose, views.cameras.intrinsics[:2].double(), HEIGHT, WIDTH)
    x = torch.tensor([[50.0, 60.0], [80.0, 90.0]])
    y = torch.tensor([[20.0, 60.0], [90.0, 93.0], [7.0, 90.0]])
    expected = torch.tensor([[0.0, 33.0, 30.0], [30.0, 3.0, 0.0]]) / 2**0.5
    torch.testing.assert_close(sampson_distances(fundamental_matrix(pair, 0, 1), x, y), expected, atol=1e-4, rtol=0)


def test_matches_are_mutual_near_and_clear() -> None:
    apart = torch.tensor(
        [
            [0.10, 0.50, 0.60, 0.9],  # with column 0
            [0.30, 0.20, 0.21, 0.9],  # two alike
            [0.20, 0.90, 0.90, 0.9],  # column 0 is nearer to another
            [0.90, 0.90, 0.90, 0.71],  # too far
        ]
    )
    rows, columns = mutual_matches(apart)
    assert (rows.tolist(), columns.tolist()) == ([0], [0])
    apart[1, 2] = torch.inf  # the rival is off the epipolar line; the next one is farther than 0.2 / 0.8
    rows, columns = mutual_matches(apart)
    assert (rows.tolist(), columns.tolist()) == ([0, 1], [0, 1])


def test_poses_give_more_matches_than_images_alone(views: Views, tmp_path: Path) -> None:
    counts = {}
    for name in ("images", "poses"):
        (tmp_path / name).mkdir()
        matches = ImageMatches(tmp_path / name, views.images[[0, 4]], seed=0, threads=1)
        matches.extract(8192, "PINHOLE")
        if name == "images":
            matches.match("exhaustive", overlap=1)
        else:
            assert matches.match_by_poses(views.cameras[[0, 4]], "exhaustive", 1, max_error=2.0) > 0.8
        counts[name] = len(matches.verified()[0, 1])
    assert counts["poses"] > 1.2 * counts["images"]


def test_confidence_grows_with_views_and_falls_with_error() -> None:
    def confidence(track: int, error: float) -> float:
        one = torch.zeros(1, 3).numpy()
        return float(sfm_cloud(one, one, torch.tensor([track]).numpy(), torch.tensor([error]).numpy()).confidence)

    by_track = [confidence(track, 0.5) for track in (2, 3, 5, 20)]
    by_error = [confidence(4, error) for error in (0.0, 0.5, 1.0, 4.0)]
    assert by_track == sorted(by_track) and len(set(by_track)) == 4
    assert by_error == sorted(by_error, reverse=True) and len(set(by_error)) == 4
    assert min(*by_track, *by_error) > 1


def test_points_far_from_all_others_are_left_out(views: Views, monkeypatch: pytest.MonkeyPatch) -> None:
    with_all = colmap_estimator.sfm_cloud

    def with_a_stray(points: np.ndarray, *rest: np.ndarray) -> PointCloud:
        return with_all(np.concatenate([points[:-1], points[-1:] + 1e4]), *rest)

    monkeypatch.setattr(colmap_estimator, "sfm_cloud", with_a_stray)
    cloud = ColmapEstimator().estimate(views.images[:2], views.cameras[:2]).cloud
    assert cloud.points.abs().max() < 1e3 and len(cloud) > 100


# --- what cannot be reconstructed


def error_of(images: Tensor, cameras: Cameras | None = None, **options: object) -> str:
    names = [f"photo{view}.jpg" for view in range(len(images))]
    with pytest.raises(BadSceneError) as raised:
        ColmapEstimator(**options).estimate(images, cameras, names=names)  # type: ignore[arg-type]
    return str(raised.value)


@pytest.mark.parametrize("known", [False, True])
def test_one_image(views: Views, known: bool) -> None:
    assert "photo0.jpg" in error_of(views.images[:1], views.cameras[:1] if known else None)


def test_an_image_of_another_place_is_named(views: Views, other: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    images = torch.cat([views.images[:3], other, views.images[3:]])
    message = error_of(images)
    assert "photo3.jpg" in message and "photo2.jpg" not in message and "photo4.jpg" not in message
    places = torch.cat([views.cameras.world_to_camera[:3], torch.eye(4)[None], views.cameras.world_to_camera[3:]])
    known = Cameras(places, views.cameras.intrinsics[:1].expand(6, 3, 3), HEIGHT, WIDTH)
    with caplog.at_level(logging.WARNING):  # its pose is known, so that the others can be used; but not in silence
        found = ColmapEstimator().estimate(images, known)
    assert len(found.cameras) == 6 and "image 3: fewer than" in caplog.text


@pytest.mark.parametrize("known", [False, True])
def test_images_that_share_nothing(views: Views, other: Tensor, known: bool) -> None:
    message = error_of(torch.cat([views.images[:1], other]), views.cameras[[0, 4]] if known else None)
    assert "photo0.jpg, photo1.jpg" in message and "overlap" in message


def test_identical_images_have_no_baseline(views: Views) -> None:
    twice = views.images[[2, 2]]
    message = error_of(twice)
    assert "same view" in message and "0.00 px" in message and "photo0.jpg, photo1.jpg" in message
    assert "one place" in error_of(twice, views.cameras[[2, 2]])
    assert "same view" in error_of(twice, views.cameras[[1, 2]])  # whatever the poses say


def test_a_camera_that_turns_on_the_spot_has_no_baseline(views: Views) -> None:
    turn = torch.from_numpy(Rotation.from_euler("y", [[-8], [0], [8]], degrees=True).as_matrix()).float()
    pose = views.cameras.world_to_camera[[2, 2, 2]].clone()
    pose[:, :3] = turn @ pose[:, :3]
    cameras = replace(views.cameras[[0, 1, 2]], world_to_camera=pose)
    images = render_scene(procedural_scene(5, "landscape").scene, cameras, 2).frames.float() / 255
    message = error_of(images, focal=float(cameras.intrinsics[0, 0, 0]))
    assert "turned without moving" in message and "photo0.jpg, photo1.jpg, photo2.jpg" in message
    assert "one place" in error_of(images, cameras)


def test_poses_that_do_not_belong_to_the_images_are_doubted(views: Views, caplog: pytest.LogCaptureFixture) -> None:
    ColmapEstimator().estimate(views.images, views.cameras)
    assert "agree with the known poses" not in caplog.text
    shifted = replace(views.cameras, world_to_camera=views.cameras.world_to_camera.roll(2, 0))
    ColmapEstimator().estimate(views.images, shifted)
    assert "agree with the known poses" in caplog.text


def test_an_image_without_texture_is_named(views: Views) -> None:
    images = views.images.clone()
    images[1] = 0.5
    assert "photo1.jpg (0)" in error_of(images) and "photo0.jpg" not in error_of(images)


def test_pixels_that_are_not_numbers(views: Views) -> None:
    images = views.images.clone()
    images[3, 0, 5, 5] = torch.nan
    assert "photo3.jpg" in error_of(images)


def test_known_cameras_must_fit(views: Views) -> None:
    assert "resize" in error_of(views.images, resize_cameras(views.cameras, 120, 160))
    skewed = views.cameras.intrinsics.clone()
    skewed[1, 0, 1] = 3.0
    with pytest.raises(BadCameraError, match="image 1 has skew"):
        ColmapEstimator().estimate(views.images, replace(views.cameras, intrinsics=skewed))


@pytest.mark.parametrize(
    "options",
    [{"focal": 0.0}, {"focal": float("nan")}, {"camera_model": "OPENCV"}, {"matching": "none"}, {"overlap": 0},
     {"points": 0}, {"threads": 0}, {"seed": -1}, {"min_angle": 0.0}, {"max_error": -1.0}],
)  # fmt: skip
def test_options_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        ColmapEstimator(**options)  # type: ignore[arg-type]


def test_without_pycolmap_the_message_installs_it(views: Views, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        ColmapEstimator().estimate(views.images)


def test_as_many_photographs_as_go_into_a_scene_come_in_any_order() -> None:
    assert ColmapEstimator()._matching(MAX_VIEWS) == "exhaustive"
    assert ColmapEstimator()._matching(10 * MAX_VIEWS) == "sequential"
