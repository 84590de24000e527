"""Closed paths: every photograph has a frame with its own camera, and nothing jumps."""

from __future__ import annotations

import math

import pytest
import torch

from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.camera_paths import orbit_path
from reconx_pl.geometry.closed_paths import closed_loop, path_through
from reconx_pl.types import Cameras


def around(degrees: list[float], radius: float = 3.0, height: float = 0.4) -> Cameras:
    """Cameras on a circle about the y axis that look at the origin, 30 pixels high."""
    poses = []
    for angle in map(math.radians, degrees):
        center = torch.tensor([radius * math.sin(angle), -height, -radius * math.cos(angle)], dtype=torch.float64)
        forward = -center / center.norm()
        right = torch.linalg.cross(torch.tensor([0.0, 1, 0], dtype=torch.float64), forward)
        right = right / right.norm()
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3] = torch.stack([right, torch.linalg.cross(forward, right), forward])
        pose[:3, 3] = -pose[:3, :3] @ center
        poses.append(pose)
    intrinsics = torch.tensor([[40.0, 0, 20], [0, 40.0, 15], [0, 0, 1]]).expand(len(degrees), 3, 3)
    return Cameras(torch.stack(poses).float(), intrinsics, 30, 40)


def steps(path: Cameras) -> torch.Tensor:
    """Way of the centre from each frame to the next, around."""
    return (path.centers.roll(-1, 0) - path.centers).norm(dim=1)


@pytest.mark.parametrize("degrees", [[0.0, 25.0], [0.0, -25.0], [0.0, -25.0, -70.0], [10.0, 100.0, 200.0, 300.0]])
def test_an_orbit_is_bent_through_the_photographs_in_their_order(degrees: list[float]) -> None:
    cameras = around(degrees)
    off = cameras.world_to_camera.clone()
    off[1, 1, 3] += 0.2  # one stands off the orbit
    cameras = Cameras(off, cameras.intrinsics.clone(), 30, 40)
    cameras.intrinsics[1, 0, 0] = 44.0
    path, places = path_through(orbit_path(around(degrees), 72), cameras)
    assert len(path) == 72 and places[0] == 0 and places == sorted(set(places))
    assert torch.equal(path.world_to_camera[places], cameras.world_to_camera)
    assert torch.equal(path.intrinsics[places], cameras.intrinsics)
    way = 2 * math.pi * 3 / 72
    assert steps(path).max() < 1.25 * way and steps(path).min() > 0.75 * way  # the offset is spread, no jump
    assert path.check("the path") is path
    turned = [(b - a) * 72 / 360 for a, b in zip(degrees, degrees[1:], strict=False)]
    assert [b - a for a, b in zip(places, places[1:], strict=False)] == [round(abs(turn)) for turn in turned]


@pytest.mark.parametrize(
    ("degrees", "words"), [((0, 120, 60, 200), "order"), ((0, 1), "more frames"), ((0,), "two photographs")]
)
def test_photographs_that_are_not_along_the_path_are_refused(degrees: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        path_through(orbit_path(around([0.0, 20.0]), 36), around([float(degree) for degree in degrees]))


def test_a_loop_goes_from_neighbour_to_neighbour_and_home() -> None:
    cameras = around([0.0, 90.0, 200.0])
    path, places = closed_loop(cameras, 5)
    assert places == [0, 4, 8] and len(path) == 12
    assert torch.equal(path.world_to_camera[places], cameras.world_to_camera)
    torch.testing.assert_close(path.centers[10], (cameras.centers[2] + cameras.centers[0]) / 2)
    with pytest.raises(ConfigurationError, match="3 photographs"):
        closed_loop(cameras[[0, 1]], 5)
