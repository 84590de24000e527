"""The one option that names a path, and the places of the input views on it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.spatial.transform import Rotation

from reconx_pl.data.formats.camera_path_file import write_camera_path
from reconx_pl.errors import BadDataError, ConfigurationError
from reconx_pl.geometry.camera_paths import orbit_path, spiral_path
from reconx_pl.geometry.clip_paths import path_cameras, viewcrafter_path
from reconx_pl.reconstruction.camera_path import PATH_WORDS, CameraPath, PathConfig, path_of
from reconx_pl.types import Cameras

STEP = 7  # from one view to the next in clips of 8 frames


def around(views: int = 4, sweep: float = 2 * math.pi, dtype: torch.dtype = torch.float32) -> Cameras:
    """Level cameras on a circle of radius 3 about (10, 0, 0), one lens."""
    angle = torch.arange(views, dtype=torch.float64) * sweep / views
    out = torch.stack([angle.cos(), torch.zeros(views), angle.sin()], dim=1).double()
    down = torch.tensor([0.0, 1, 0]).double().expand(views, 3)
    pose = torch.eye(4, dtype=torch.float64).repeat(views, 1, 1)
    pose[:, :3, :3] = torch.stack([torch.linalg.cross(down, -out), down, -out], dim=1)
    centers = 3 * out + torch.tensor([10.0, 0, 0]).double()
    pose[:, :3, 3] = -(pose[:, :3, :3] @ centers[..., None])[..., 0]
    lens = torch.tensor([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]], dtype=torch.float64).repeat(views, 1, 1)
    return Cameras(pose.to(dtype), lens.to(dtype), 48, 64)


def assert_exact(path: CameraPath, views: Cameras) -> None:
    """At its places a path has the cameras of the views to the bit."""
    met = [view for view, place in enumerate(path.places) if place is not None]
    at = path.cameras[[place for place in path.places if place is not None]]
    assert torch.equal(at.world_to_camera, views.world_to_camera[met])
    assert torch.equal(at.intrinsics, views.intrinsics[met])
    assert at.world_to_camera.dtype == views.world_to_camera.dtype
    path.cameras.check("path")


@pytest.mark.parametrize("kind", ["interpolated", "viewcrafter"])
def test_a_path_through_the_views_has_them_a_clip_apart(kind: str) -> None:
    views = around(4, sweep=3.0)
    path = path_of(PathConfig.parse(kind), views, STEP + 1)
    assert len(path) == 3 * STEP + 1 and path.places == (0, STEP, 2 * STEP, 3 * STEP) and not path.closed
    assert_exact(path, views)
    make = {"interpolated": path_cameras, "viewcrafter": viewcrafter_path}[kind]
    assert torch.equal(path.cameras.world_to_camera, make(views, STEP + 1).world_to_camera)


@pytest.mark.parametrize("kind", ["interpolated", "viewcrafter"])
def test_a_closed_path_has_its_first_view_once(kind: str) -> None:
    views = around(4)
    path = path_of(PathConfig(kind), views, STEP + 1, closed=True)  # type: ignore[arg-type]
    assert len(path) == 4 * STEP and path.places == (0, STEP, 2 * STEP, 3 * STEP) and path.closed
    assert_exact(path, views)
    # the last camera stands between the last view and the first, nearer to the first
    last, first = path.cameras.centers[-1], views.centers
    assert 0.01 < (last - first[0]).norm() < (last - first[3]).norm()


def test_an_orbit_meets_the_views_that_stand_on_it() -> None:
    """Every third of 12 frames; of 10, every fifth meets two. Where one view is raised, the circle meets none."""
    views = around(4)
    path = path_of(PathConfig("orbit", frames=12), views, STEP + 1)
    assert len(path) == 12 and path.closed
    assert path.places[0] == 0 and sorted(path.places) == [0, 3, 6, 9] and path.places[2] == 6
    assert_exact(path, views)
    assert path_of(PathConfig("orbit", frames=10), views, STEP + 1).places[1::2] == (None, None)
    raised = torch.eye(4)
    raised[1, 3] = 1.0
    pose = views.world_to_camera.clone()
    pose[1] = raised @ pose[1]
    off = replace(views, world_to_camera=pose)
    path = path_of(PathConfig("orbit", frames=12), off, STEP + 1)
    assert path.places == (None,) * 4  # its height is the mean one
    assert torch.equal(path.cameras.world_to_camera, orbit_path(off, 12).world_to_camera)


def test_orbit_and_spiral_have_as_many_frames_as_a_path_through_the_views() -> None:
    views = around(4, sweep=1.5)
    for kind in ("orbit", "spiral"):
        config = PathConfig.parse(kind)
        assert len(path_of(config, views, STEP + 1)) == 3 * STEP + 1
        assert len(path_of(config, views, STEP + 1, closed=True)) == 4 * STEP
        assert len(path_of(PathConfig.parse(kind, frames=5), views, STEP + 1)) == 5
    spiral = path_of(PathConfig("spiral", 9), views, STEP + 1)
    assert torch.equal(spiral.cameras.world_to_camera, spiral_path(views, 9).world_to_camera)


def test_points_reach_the_paths_that_need_them() -> None:
    parallel = around(1)[[0, 0, 0]]
    pose = parallel.world_to_camera.clone()
    pose[:, 0, 3] += torch.tensor([0.0, 0.5, 1.0])
    views = replace(parallel, world_to_camera=pose)
    points = views.centers[0] + 5 * views.world_to_camera[0, 2, :3] + torch.zeros(10, 3)
    with pytest.raises(ConfigurationError, match="no common point"):
        path_of(PathConfig("orbit"), views, 8)
    assert len(path_of(PathConfig("orbit"), views, 8, points)) == 15


def test_a_file_meets_the_views_whose_cameras_it_has(tmp_path: Path) -> None:
    views = around(4)
    order = [2, 0, 3]
    write_camera_path(around(4, dtype=torch.float64)[order], 8.0, tmp_path / "cameras.json")
    config = PathConfig.parse(str(tmp_path / "cameras.json"))
    path = path_of(config, views, STEP + 1)
    assert path.places == (1, None, 0, 2) and not path.closed and len(path) == 3
    assert_exact(path, views)
    wider = replace(views, height=96, width=96, intrinsics=views.intrinsics * torch.tensor([2.0, 2.0, 1.0])[:, None])
    found = path_of(config, wider, STEP + 1)  # brought to the size of the views: twice as large, then cropped
    assert (found.cameras.height, found.cameras.width) == (96, 96)
    assert found.cameras.intrinsics[0, :2, 2].tolist() == [48, 48]
    (tmp_path / "cameras.json").write_text("{}")
    with pytest.raises(BadDataError, match=r"cameras\.json: it has no list of cameras"):
        path_of(config, views, STEP + 1)


@pytest.mark.parametrize(
    ("way", "degrees", "pixels", "met"),
    [
        (0.0, 0.0, 0.0, True),
        (0.8e-4, 0.0, 0.0, True),
        (1.5e-4, 0.0, 0.0, False),
        (0.0, 0.04, 0.0, True),
        (0.0, 0.06, 0.0, False),
        (0.0, 0.0, 0.4, True),
        (0.0, 0.0, 0.6, False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_how_near_a_camera_has_to_be(
    tmp_path: Path, way: float, degrees: float, pixels: float, met: bool, dtype: torch.dtype
) -> None:
    """Way as a share of 3, the extent of these views; a turn about a crooked axis; corners moved by a longer lens."""
    views = around(4, dtype=dtype)
    near = around(4, dtype=torch.float64)
    small = torch.eye(4, dtype=torch.float64)
    axis = torch.tensor([0.6, 0.0, 0.8]).double()
    small[:3, :3] = torch.from_numpy(Rotation.from_rotvec(math.radians(degrees) * axis.numpy()).as_matrix())
    small[:3, 3] = 3 * way * torch.tensor([0.48, 0.6, 0.64])
    near.world_to_camera[2] = small @ near.world_to_camera[2]
    near.intrinsics[2, [0, 1], [0, 1]] *= 1 + pixels / 40  # a corner is 40 px from the principal point
    write_camera_path(near, 8.0, tmp_path / "path.json")
    path = path_of(PathConfig.parse(str(tmp_path / "path.json")), views, STEP + 1)
    assert path.places == (0, 1, 2 if met else None, 3)
    assert_exact(path, views)


def test_the_nearest_of_several_is_the_place(tmp_path: Path) -> None:
    views = around(3, dtype=torch.float64)
    pose = views.world_to_camera[[0, 1, 1, 1, 2]].clone()
    pose[1:4, 0, 3] += 3 * torch.tensor([6e-5, 2e-5, -4e-5])
    path = Cameras(pose, views.intrinsics[[0, 1, 1, 1, 2]], 48, 64)
    write_camera_path(path, 8.0, tmp_path / "path.json")
    assert path_of(PathConfig.parse(str(tmp_path / "path.json")), views, STEP + 1).places == (0, 2, 4)


def test_one_word_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "path.json"
    file.write_text("{}")
    for word in PATH_WORDS:
        assert PathConfig.parse(word) == PathConfig(word) and str(PathConfig.parse(word)) == word  # type: ignore
    assert PathConfig.parse(str(file)) == PathConfig("file", file=file) and str(PathConfig.parse(str(file))) == str(
        file
    )
    for unknown in ("circle", "file", "", str(tmp_path), str(tmp_path / "none.json")):
        with pytest.raises(ConfigurationError, match=r"interpolated, viewcrafter, orbit, spiral, or a file"):
            PathConfig.parse(unknown)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "file"}, "kind file does not go with the file None"),
        ({"kind": "orbit", "file": Path("a.json")}, "kind orbit does not go with the file"),
        ({"kind": "interpolated", "frames": 10}, "say no number of frames"),
        ({"kind": "viewcrafter", "frames": 10}, "say no number of frames"),
        ({"kind": "file", "file": Path("a.json"), "frames": 10}, "say no number of frames"),
        ({"kind": "spiral", "frames": 1}, "at least 2 frames, got 1"),
    ],
)
def test_options_that_contradict_each_other(options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        PathConfig(**options)


def test_one_view_or_one_frame_is_no_path() -> None:
    for views, frames in ((around()[0], 8), (around(), 1)):
        with pytest.raises(ConfigurationError, match="2 views and clips of 2 frames"):
            path_of(PathConfig(), views, frames)


def test_around_one_view_a_path_has_the_frames_of_two_clips() -> None:
    """The orbit starts with the view, and is closed; the spiral goes around it."""
    view, points = around()[0], torch.tensor([[10.0, 0.0, 0.0]])
    orbit = path_of(PathConfig("orbit"), view, STEP + 1, points)
    assert len(orbit) == 2 * STEP and orbit.closed and orbit.places == (0,)
    assert_exact(orbit, view)
    spiral = path_of(PathConfig("spiral"), view, STEP + 1, points)
    assert len(spiral) == 2 * STEP and spiral.places == (None,)
    assert len(path_of(PathConfig("orbit", frames=9), view, STEP + 1, points)) == 9
