"""Known poses for the network, and the scale back: two views, views on a line, views in one place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError
from reconx_pl.geometry.da3.poses import centers_of, normalised_poses, scale_of_prediction


def poses_at(*centers: tuple[float, float, float]) -> Tensor:
    poses = torch.eye(4).repeat(len(centers), 1, 1)
    poses[:, :3, 3] = -torch.tensor(centers)
    return poses


def turned(poses: Tensor, scale: float) -> Tensor:
    """The same cameras in another world: turned, moved, of other units."""
    world = torch.eye(4)
    world[:3, :3] = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    world[:3, 3] = torch.tensor([5.0, 1, 2])
    found = poses @ world
    found[:, :3, 3] *= scale
    return found


def test_the_divisor_of_two_views() -> None:
    pair = poses_at((0, 0, 0), (0, 3, 4))
    assert normalised_poses(pair)[1, :3, 3].norm() == pytest.approx(50), "the original: 0.1, whatever the baseline"
    assert normalised_poses(pair, two_view_baseline=True)[1, :3, 3].norm() == pytest.approx(1)
    three = poses_at((0, 0, 0), (2, 0, 0), (0, 6, 0))
    assert normalised_poses(three, two_view_baseline=True)[1, :3, 3].norm() == pytest.approx(1), "the median, 2"


def test_the_first_camera_is_the_world() -> None:
    poses = turned(poses_at((1, 2, 3), (2, 2, 3), (1, 2, 5)), 1.0)
    found = normalised_poses(poses)
    assert torch.allclose(found[0], torch.eye(4), atol=1e-6)
    distances = centers_of(found).norm(dim=-1)
    assert torch.allclose(distances, torch.tensor([0.0, 1.0, 2.0]).double(), atol=1e-5)


@pytest.mark.parametrize(
    "centers",
    [
        [(0, 0, 0), (1, 0, 0)],
        [(0, 0, 0), (1, 1, 0), (2, 2, 0)],  # on a line
        [(0, 0, 0), (1, 0, 0), (0, 1, 1), (2, 1, 0)],
    ],
)
def test_the_scale_of_another_world(centers: list) -> None:
    given = poses_at(*centers)
    assert scale_of_prediction(given, turned(given, 0.3)) == pytest.approx(0.3, rel=1e-5)


def test_a_wrong_pose_among_many_does_not_spoil_the_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    given = poses_at(*torch.randn(12, 3, generator=generator).tolist())
    predicted = turned(given, 0.5)
    predicted[4, :3, 3] += 20
    assert scale_of_prediction(given, predicted) == pytest.approx(0.5, rel=1e-3)


def test_cameras_in_one_place_have_no_scale() -> None:
    apart, together = poses_at((0, 0, 0), (1, 0, 0)), poses_at((3, 0, 0), (3, 0, 0))
    with pytest.raises(BadSceneError, match="the given cameras are all in one place"):
        scale_of_prediction(together, apart)
    with pytest.raises(BadSceneError, match="the network's cameras are all in one place"):
        scale_of_prediction(apart, together)
    assert scale_of_prediction(apart[:1], together[:1]) == 1
