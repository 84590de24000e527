"""Camera paths of clips: through their views to the bit, with the timing that each names."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.clip_paths import path_cameras, viewcrafter_path
from reconx_pl.types import Cameras


def views_of(turns: list[list[float]], centers: list[list[float]], dtype: torch.dtype = torch.float64) -> Cameras:
    """Cameras of these rotation vectors (camera to world, radians) and centres; the focal length grows by 10 px."""
    rotation = torch.from_numpy(Rotation.from_rotvec(turns).as_matrix()).transpose(1, 2)
    pose = torch.eye(4, dtype=torch.float64).repeat(len(turns), 1, 1)
    pose[:, :3, :3] = rotation
    pose[:, :3, 3] = -(rotation @ torch.tensor(centers, dtype=torch.float64)[..., None])[..., 0]
    lens = torch.tensor([[80.0, 0, 32], [0, 90, 24], [0, 0, 1]], dtype=torch.float64).repeat(len(turns), 1, 1)
    lens[:, 0, 0] += 10 * torch.arange(len(turns))
    return Cameras(pose.to(dtype), lens.to(dtype), 48, 64)


def three(dtype: torch.dtype = torch.float64) -> Cameras:
    return views_of([[0.1, 0, 0], [0.2, 0.9, -0.1], [0, 0, 0.4]], [[0, 0, 0], [1, 0, 2], [5, 5, 5]], dtype)


@pytest.mark.parametrize("make", [path_cameras, viewcrafter_path])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("frames", [2, 3, 9])
def test_every_view_is_at_its_place_to_the_bit(make, dtype: torch.dtype, frames: int) -> None:
    views = three(dtype)
    path = make(views, frames)
    assert len(path) == 2 * (frames - 1) + 1 and path.world_to_camera.dtype == dtype
    at = path[[0, frames - 1, 2 * (frames - 1)]]
    assert torch.equal(at.world_to_camera, views.world_to_camera)
    assert torch.equal(at.intrinsics, views.intrinsics)
    path.check("path")


def test_viewcrafter_doubles_the_last_step_and_its_lens_arrives_one_frame_early() -> None:
    views, frames = three(), 9
    path = viewcrafter_path(views, frames)
    steps = path.centers.diff(dim=0).norm(dim=1)
    for segment in (steps[:8], steps[8:]):
        torch.testing.assert_close(segment, segment.sum() * torch.tensor([1.0] * 7 + [2.0]).double() / 9)
    expected = 80 + 10 * torch.tensor([*(j / 7 for j in range(8)), *(1 + j / 7 for j in range(8)), 2]).double()
    torch.testing.assert_close(path.intrinsics[:, 0, 0], expected)
    even = path_cameras(views, frames).centers.diff(dim=0).norm(dim=1)
    torch.testing.assert_close(even[:8], even[:1].expand(8))


def test_viewcrafter_interpolates_axes_and_no_angles() -> None:
    """A quarter turn: the angle at which a chord is cut at its share, not that share of the angle.

    About x, y and z by turns: each axis sees the other two of the camera move.
    """
    for axis in range(3):
        turn = [0.0, 0.0, 0.0]
        turn[axis] = math.pi / 2
        path = viewcrafter_path(views_of([[0.0, 0, 0], turn], [[0.0, 0, 0], [1, 0, 0]]), 8)
        share = torch.arange(7).double() / 8
        expected = torch.atan2(share, 1 - share)  # on the chord between two perpendicular axes
        found = Rotation.from_matrix(path.camera_to_world[:7, :3, :3].numpy()).as_rotvec()
        torch.testing.assert_close(torch.from_numpy(found[:, axis]), expected)
        assert abs(found[:, [other for other in range(3) if other != axis]]).max() < 1e-12


def test_viewcrafter_keeps_the_forward_axis_of_two_that_move() -> None:
    """Where both axes turn, forward stays on its chord, and down gives way."""
    views = three()
    path = viewcrafter_path(views, 5)
    first, second = views.world_to_camera[:2, 2, :3]
    chord = 0.6 * first + 0.4 * second
    torch.testing.assert_close(path.world_to_camera[2, 2, :3], chord / chord.norm())


def test_a_turn_on_the_spot_is_a_path_and_standing_still_is_none() -> None:
    here = [[3.0, 1, 2], [3, 1, 2]]
    path = viewcrafter_path(views_of([[0.0, 0, 0], [0, 0.5, 0]], here), 6)
    torch.testing.assert_close(path.centers, torch.tensor(here[:1]).double().expand(6, 3))
    with pytest.raises(ConfigurationError, match="views 1 and 2 have one and the same pose"):
        viewcrafter_path(three()[[0, 1, 1, 2]], 6)


@pytest.mark.parametrize("turn", [[0, math.pi, 0], [0, 0, math.pi]])
def test_opposite_views_are_refused_where_an_axis_vanishes(turn: list[float]) -> None:
    views = views_of([[0.3, 0, 0], [0, 0, 0], turn], [[0, 0, 0], [1, 0, 0], [2, 0, 0]])
    with pytest.raises(ConfigurationError, match="views 1 and 2 look in opposite directions"):
        viewcrafter_path(views, 8)  # camera 4 of 8 stands half way


def test_too_few_views_or_frames() -> None:
    for views, frames in ((three()[0], 5), (three(), 1)):
        with pytest.raises(ConfigurationError, match="at least 2 views and clips of 2 frames"):
            viewcrafter_path(views, frames)
