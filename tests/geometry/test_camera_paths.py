"""Camera paths: through their knots, around their focus, smooth, level, closed."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.camera_paths import PATHS, focus_point, interpolated_path, orbit_path, spiral_path, up_axis
from reconx_pl.geometry.cameras import project
from reconx_pl.types import Cameras

# a world whose up is no axis, as reconstructions have it
WORLD = torch.from_numpy(Rotation.from_rotvec([0.4, -0.9, 0.3]).as_matrix())
UP = WORLD @ torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
FOCUS = WORLD @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def looking(centers: Tensor, targets: Tensor, up: Tensor) -> Cameras:
    forward = torch.nn.functional.normalize(targets - centers, dim=-1)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up.expand_as(forward)), dim=-1)
    pose = torch.eye(4, dtype=torch.float64).repeat(len(centers), 1, 1)
    pose[:, :3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
    pose[:, :3, 3] = -(pose[:, :3, :3] @ centers[:, :, None])[..., 0]
    k = torch.tensor([[80.0, 0, 32], [0, 80, 24], [0, 0, 1]], dtype=torch.float64).repeat(len(centers), 1, 1)
    return Cameras(pose, k, 48, 64)


def inward(views: int = 7, sweep: float = 2 * math.pi, height: float = 1.2, radius: float = 4.0) -> Cameras:
    """Cameras around the focus that look at it from above."""
    angle = torch.linspace(0.3, 0.3 + sweep * (views - 1) / views, views, dtype=torch.float64)
    local = torch.stack([radius * angle.cos(), radius * angle.sin(), torch.full_like(angle, height)], dim=1)
    centers = FOCUS + local @ WORLD.T
    return looking(centers, FOCUS.expand_as(centers), UP)


def forward_facing(views: int = 9) -> Cameras:
    """Cameras on a grid that look the same way, along x of the world."""
    y, z = torch.meshgrid(torch.linspace(-0.4, 0.4, 3), torch.linspace(-0.2, 0.2, 3), indexing="ij")
    local = torch.stack([torch.zeros(9), y.flatten(), z.flatten()], dim=1).double()[:views]
    centers = local @ WORLD.T
    ahead = WORLD @ torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    return looking(centers, centers + ahead, UP)


def wall(depth: float = 5.0) -> Tensor:
    """Points at that distance in front of the forward-facing cameras."""
    local = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)).double() - 0.5
    return (local + torch.tensor([depth, 0.0, 0.0])) @ WORLD.T


def turns(path: Cameras, closed: bool = False) -> np.ndarray:
    """Angles between neighbours, radians."""
    rotation = Rotation.from_matrix(path.world_to_camera[:, :3, :3].numpy())
    following = Rotation.concatenate([rotation[1:], rotation[:1]]) if closed else rotation[1:]
    return (following * rotation[: len(following)].inv()).magnitude()


def steps(path: Cameras, closed: bool = False) -> Tensor:
    centers = torch.cat([path.centers, path.centers[:1]]) if closed else path.centers
    return centers.diff(dim=0).norm(dim=1)


def assert_level(path: Cameras) -> None:
    assert (path.world_to_camera[:, 0, :3] @ UP).abs().max() < 1e-9  # the x axis is horizontal
    assert (path.world_to_camera[:, 1, :3] @ UP).max() < 0  # y points down


def assert_looks_at(path: Cameras, point: Tensor) -> None:
    pixels, depth = project(point[None], path)
    assert (depth > 0).all()
    torch.testing.assert_close(pixels[:, 0], torch.tensor([32.0, 24.0]).double().expand(len(path), 2))


@pytest.mark.parametrize("cameras", [inward(), inward(3, sweep=0.5), forward_facing(), forward_facing(2)])
def test_up_is_found(cameras: Cameras) -> None:
    assert up_axis(cameras) @ UP > math.cos(math.radians(2))


def test_up_of_cameras_that_look_straight_down() -> None:
    centers = FOCUS + torch.tensor([[0.0, 0, 5], [1, 0, 5], [1, 1, 5], [0, 1, 5]]).double() @ WORLD.T
    aside = torch.tensor([[1.0, 0.2, 0], [0, 1, 0], [-1, 0, 0], [0.3, -1, 0]]).double() @ WORLD.T
    poses = []
    for center, right in zip(centers, aside, strict=True):
        poses.append(looking(center[None], (center - UP)[None], right).world_to_camera[0])
    cameras = Cameras(torch.stack(poses), inward(4).intrinsics, 48, 64)
    assert up_axis(cameras) @ UP > 0.99


def test_up_of_a_flight_forth_and_back() -> None:
    """Downward cameras turned by 180 degrees: the images' upward directions cancel."""
    centers = FOCUS + torch.tensor([[0.0, 0, 5], [1, 0, 5], [1, 1, 5], [0, 1, 5]]).double() @ WORLD.T
    aside = torch.tensor([[1.0, 0, 0], [1, 0, 0], [-1, 0, 0], [-1, 0, 0]]).double() @ WORLD.T
    poses = [looking(c[None], (c - UP)[None], r).world_to_camera[0] for c, r in zip(centers, aside, strict=True)]
    assert up_axis(Cameras(torch.stack(poses), inward(4).intrinsics, 48, 64)) @ UP > 0.999


def test_focus_of_cameras_around_a_point_needs_no_points() -> None:
    torch.testing.assert_close(focus_point(inward()), FOCUS)
    torch.testing.assert_close(focus_point(inward(3, sweep=1.5), wall()), FOCUS)


def test_focus_of_parallel_cameras_is_at_the_depth_of_the_points() -> None:
    found = focus_point(forward_facing(), wall(5.0)) @ WORLD
    torch.testing.assert_close(found, torch.tensor([5.0, 0, 0]).double(), atol=0.05, rtol=0)
    with pytest.raises(ConfigurationError, match="no common point"):
        focus_point(forward_facing())
    with pytest.raises(ConfigurationError, match="no common point"):
        focus_point(forward_facing(), -wall(5.0))


def test_orbit_is_a_level_circle_around_the_focus() -> None:
    cameras = inward(7, sweep=2.0)
    path = orbit_path(cameras, 40)
    assert len(path) == 40
    assert_level(path)
    assert_looks_at(path, FOCUS)
    offset = path.centers - FOCUS
    torch.testing.assert_close(offset @ UP, torch.full((40,), 1.2, dtype=torch.float64))
    torch.testing.assert_close(offset.norm(dim=1), torch.full((40,), math.hypot(4.0, 1.2), dtype=torch.float64))
    torch.testing.assert_close(path.centers[0], cameras.centers[0])  # it starts at the first camera
    way, turn = steps(path, closed=True), turns(path, closed=True)
    assert (way.max() - way.min()) < 1e-9 and np.ptp(turn) < 1e-6  # closed: the last step is like the others


def test_orbit_of_parallel_cameras_goes_around_the_points() -> None:
    path = orbit_path(forward_facing(), 12, wall(5.0))
    assert_level(path)
    centre = focus_point(forward_facing(), wall(5.0))
    assert_looks_at(path, centre)
    torch.testing.assert_close((path.centers - centre).norm(dim=1), torch.full((12,), 5.0).double(), atol=0.1, rtol=0)


def test_spiral_stays_among_forward_facing_cameras_and_looks_at_the_depth_of_interest() -> None:
    cameras = forward_facing()
    path = spiral_path(cameras, 60, wall(5.0))
    assert_level(path)
    assert_looks_at(path, focus_point(cameras, wall(5.0)))
    local = path.centers @ WORLD
    assert local[:, 1].abs().max() == pytest.approx(0.4, abs=0.01)
    assert local[:, 2].abs().max() == pytest.approx(0.2, abs=0.01)
    assert local[:, 0].abs().max() < 0.05
    way = steps(path, closed=True)
    assert way.max() < 3 * way.mean() and way[-1] < 3 * way.mean()


def test_spiral_of_cameras_around_an_object_goes_around_one_of_them() -> None:
    cameras = inward()
    path = spiral_path(cameras, 30)
    assert_level(path)
    assert_looks_at(path, FOCUS)
    distance = math.hypot(4.0, 1.2)
    assert (path.centers - cameras.centers[3]).norm(dim=1).max() < 0.2 * distance


def test_interpolation_passes_through_every_camera_in_order() -> None:
    cameras = inward(5, sweep=3.0)
    path = interpolated_path(cameras, 401)
    distance = torch.cdist(path.centers, cameras.centers)
    nearest = distance.argmin(dim=0)
    assert distance.min(dim=0).values.max() < 0.02 and (nearest.diff() > 0).all()
    torch.testing.assert_close(path.world_to_camera[[0, -1]], cameras.world_to_camera[[0, -1]], atol=1e-9, rtol=0)
    for knot, index in enumerate(nearest.tolist()):
        relative = path.world_to_camera[index, :3, :3] @ cameras.world_to_camera[knot, :3, :3].T
        assert Rotation.from_matrix(relative.numpy()).magnitude() < 0.01


def test_interpolation_is_smooth() -> None:
    """No corner at the knots: speed and angular speed change little from frame to frame."""
    path = interpolated_path(inward(6, sweep=3.0), 300)
    way, turn = steps(path).numpy(), turns(path)
    assert np.abs(np.diff(way)).max() < 0.02 * way.mean()
    assert np.abs(np.diff(turn)).max() < 0.02 * turn.mean()
    direction = torch.nn.functional.normalize(path.centers.diff(dim=0), dim=1)
    assert (direction[1:] * direction[:-1]).sum(1).min() > math.cos(math.radians(1.5))
    assert way.max() < 1.5 * way.mean() and turn.max() < 1.5 * turn.mean()


def test_interpolation_is_even_where_cameras_are_not() -> None:
    cameras = inward(24, sweep=3.0)[[0, 1, 2, 3, 12, 23]]
    way = steps(interpolated_path(cameras, 200))
    assert way.max() < 1.6 * way.min()


def test_interpolation_of_two_cameras_and_of_a_turn_on_the_spot() -> None:
    way = steps(interpolated_path(forward_facing(2), 9))
    torch.testing.assert_close(way, way.mean().expand(8))
    cameras = inward(4, sweep=1.0)
    pose = cameras.world_to_camera.clone()
    pose[:, :3, 3] = 0  # all at the origin
    path = interpolated_path(Cameras(pose, cameras.intrinsics, 48, 64), 50)
    assert path.centers.abs().max() < 1e-12 and turns(path).max() < 2 * turns(path).mean()


def test_interpolation_skips_a_camera_that_is_there_twice() -> None:
    cameras = inward(4, sweep=1.0)
    twice = interpolated_path(cameras[[0, 1, 1, 2, 3]], 30)
    torch.testing.assert_close(twice.world_to_camera, interpolated_path(cameras, 30).world_to_camera, atol=1e-6, rtol=0)
    with pytest.raises(ConfigurationError, match="one and the same"):
        interpolated_path(cameras[[1, 1, 1]], 30)


def test_intrinsics_follow_the_cameras() -> None:
    cameras = forward_facing(3)
    cameras.intrinsics[:, 0, 0] = torch.tensor([60.0, 80.0, 100.0])
    focal = interpolated_path(cameras, 5).intrinsics[:, 0, 0]
    torch.testing.assert_close(focal, torch.tensor([60.0, 70, 80, 90, 100]).double())
    assert spiral_path(cameras, 5, wall()).intrinsics[2, 0, 0] == 80


def test_outward_cameras_have_no_orbit() -> None:
    cameras = inward()
    forward = cameras.world_to_camera[:, 2, :3]
    outward = looking(cameras.centers, cameras.centers - forward, UP)
    for path in (orbit_path, spiral_path):
        with pytest.raises(ConfigurationError, match="no common point"):
            path(outward, 10, FOCUS[None] + 0.1)
    assert len(interpolated_path(outward, 10)) == 10


@pytest.mark.parametrize("name", PATHS)
def test_every_path_keeps_type_and_refuses_too_little(name: str) -> None:
    path = PATHS[name](inward().to(dtype=torch.float32), 6, None)
    assert path.world_to_camera.dtype == path.intrinsics.dtype == torch.float32 and len(path) == 6
    path.check("path")
    least = 2 if name == "interpolated" else 1
    for cameras, frames in ((inward()[: least - 1], 6), (inward(), 1)):
        with pytest.raises(ConfigurationError, match=f"at least {least} cameras and 2 frames"):
            PATHS[name](cameras, frames, None)


def test_orbit_of_one_camera_is_a_small_loop_around_the_median_depth() -> None:
    camera, points = forward_facing(1), wall(5.0)
    path = orbit_path(camera, 40, points)
    torch.testing.assert_close(path.world_to_camera[0], camera.world_to_camera[0], atol=1e-9, rtol=0)
    focus = focus_point(camera, points)
    assert float(((focus - camera.centers[0]) @ WORLD)[0]) == pytest.approx(5.0, abs=0.1)
    assert_level(path)
    assert_looks_at(path, focus)
    local = (path.centers - focus) @ WORLD
    aside = torch.atan2(local[:, 1], -local[:, 0]).rad2deg()
    assert float(aside.max()) == pytest.approx(10, abs=0.1) and float(aside.min()) == pytest.approx(-10, abs=0.1)
    above = torch.atan2(local[:, 2], local[:, :2].norm(dim=1)).rad2deg()
    assert float(above.min()) == pytest.approx(0, abs=1e-6) and float(above.max()) == pytest.approx(5, abs=0.1)
    apart = torch.cdist(path.centers, path.centers) + torch.eye(40)
    assert float(apart.min()) > 0.4 * float(steps(path, closed=True).min()), "no camera is there twice"
    assert steps(path, closed=True)[-1] < 1.5 * steps(path).mean(), "closed"


def test_spiral_of_one_camera_stays_within_a_tenth_of_the_depth() -> None:
    camera, points = forward_facing(1), wall(5.0)
    path = spiral_path(camera, 40, points)
    assert_level(path)
    assert_looks_at(path, focus_point(camera, points))
    way = (path.centers - camera.centers).norm(dim=1) / 5.0
    assert 0.1 <= float(way.max()) < 0.16 and float(way.min()) > 0.05


def test_one_camera_without_points_has_nothing_to_go_around() -> None:
    for path in (orbit_path, spiral_path):
        with pytest.raises(ConfigurationError, match="give points that the camera sees"):
            path(forward_facing(1), 10, -wall(5.0))
