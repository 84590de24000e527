"""The extent that the learning rate of the means is measured in."""

from __future__ import annotations

import pytest
import torch

from reconx_pl.splatting.fit_parameters import scene_extent
from reconx_pl.types import Cameras


@pytest.fixture
def cameras() -> Cameras:
    """Two views a tenth of a unit apart."""
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[:, 0, 3] = torch.tensor([0.05, -0.05])
    return Cameras(poses, torch.eye(3).repeat(2, 1, 1), 8, 8)


def along(*depths: float) -> torch.Tensor:
    return torch.tensor(depths)[:, None] * torch.tensor([0.0, 0.0, 1.0])


def test_sky_does_not_count_however_much_of_it_there_is(cameras: Cameras) -> None:
    near = torch.linspace(2, 6, 21).tolist()
    assert scene_extent(cameras, along(*near)) == pytest.approx(0.4)
    for count in (1, 20, 100):
        assert scene_extent(cameras, along(*near, *[300.0] * count)) == pytest.approx(0.4)
    assert scene_extent(cameras, along(*near, *[300.0] * 30, 1e6)) == pytest.approx(0.4)  # an outlier behind it


def test_a_lone_point_at_the_cameras_is_not_the_scene(cameras: Cameras) -> None:
    assert scene_extent(cameras, along(1e-3, *torch.linspace(2, 6, 21).tolist())) == pytest.approx(0.38)


def test_cameras_that_move_far_set_the_extent(cameras: Cameras) -> None:
    assert scene_extent(cameras, along(0.1, 0.1, 0.1)) == pytest.approx(1.1 * 0.05)
