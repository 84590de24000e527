import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from reconx_pl.errors import BadCameraError, ConfigurationError
from reconx_pl.geometry.cameras import (
    crop_cameras,
    fundamental_matrix,
    interpolate_cameras,
    project,
    relative_to_first,
    resize_and_crop,
    resize_cameras,
    unproject,
)
from reconx_pl.types import Cameras


def rotation(axis: list[float], angle: float) -> torch.Tensor:
    x, y, z = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0).tolist()
    skew = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.matrix_exp(skew * angle)


def make_cameras(views: int = 3, height: int = 24, width: int = 40) -> Cameras:
    generator = torch.Generator().manual_seed(0)
    poses, intrinsics = [], []
    for view in range(views):
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3] = rotation(torch.randn(3, generator=generator).tolist(), 0.2 + 0.1 * view)
        pose[:3, 3] = torch.randn(3, generator=generator, dtype=torch.float64) * 0.5 + torch.tensor([0.0, 0.0, 4.0])
        poses.append(pose)
        intrinsics.append(
            torch.tensor([[30.0 + view, 0.0, 19.0], [0.0, 33.0, 13.0 + view], [0.0, 0.0, 1.0]], dtype=torch.float64)
        )
    return Cameras(torch.stack(poses), torch.stack(intrinsics), height, width)


def test_unproject_then_project_returns_the_pixel_centres() -> None:
    cameras = make_cameras()
    depth = torch.rand(3, 24, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 5 + 1
    pixels, again = project(unproject(depth, cameras).flatten(1, 2), cameras)
    y, x = torch.meshgrid(torch.arange(24) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    expected = torch.stack([x, y], -1).double().view(1, -1, 2).expand(3, -1, -1)
    torch.testing.assert_close(pixels, expected)
    torch.testing.assert_close(again, depth.flatten(1))


def test_project_follows_the_pinhole_equation_by_hand() -> None:
    cameras = Cameras(
        torch.eye(4)[None], torch.tensor([[[100.0, 0.0, 32.0], [0.0, 50.0, 16.0], [0.0, 0.0, 1.0]]]), 32, 64
    )
    pixels, depth = project(torch.tensor([[1.0, -1.0, 4.0], [0.0, 0.0, 0.0]]), cameras)
    assert pixels.shape == (1, 2, 2)
    assert pixels[0, 0].tolist() == [57.0, 3.5]
    assert depth[0].tolist() == [4.0, 0.0]
    assert torch.isfinite(pixels).all()  # a point at the camera's centre must not poison a sum


def test_unproject_refuses_depth_of_another_size() -> None:
    with pytest.raises(ConfigurationError, match="resize_cameras"):
        unproject(torch.ones(3, 12, 20), make_cameras())


@pytest.mark.parametrize("size", [(360, 640), (640, 360), (100, 100), (361, 639)])
@pytest.mark.parametrize("wanted", [(256, 256), (320, 512), (64, 48)])
def test_resize_and_crop_moves_projections_as_it_moves_pixels(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    cameras = resize_cameras(make_cameras(), *size)
    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    before, depth = project(points, cameras)
    cut, resized, (top, left) = resize_and_crop(cameras, *wanted)
    after, same = project(points, cut)
    assert (cut.height, cut.width) == wanted
    assert resized[0] >= wanted[0] and resized[1] >= wanted[1]
    assert resized[0] == wanted[0] or resized[1] == wanted[1]
    factor = torch.tensor([resized[1] / size[1], resized[0] / size[0]], dtype=torch.float64)
    torch.testing.assert_close(after, before * factor - torch.tensor([left, top], dtype=torch.float64))
    torch.testing.assert_close(same, depth)


def test_resize_and_crop_of_the_benchmark_frames() -> None:
    cut, resized, offset = resize_and_crop(resize_cameras(make_cameras(), 360, 640), 256, 256)
    assert resized == (256, 455)
    assert offset == (0, 99)  # (455 - 256) / 2 floored
    assert cut.intrinsics.shape == (3, 3, 3)


def test_crop_outside_of_the_image_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="leaves an image"):
        crop_cameras(make_cameras(), 10, 0, 20, 20)


def test_crop_leaves_its_argument_alone() -> None:
    cameras = make_cameras()
    before = cameras.intrinsics.clone()
    crop_cameras(cameras, 2, 3, 10, 10)
    assert torch.equal(cameras.intrinsics, before)


def test_interpolation_meets_the_knots_and_is_rigid_between() -> None:
    cameras = make_cameras(4)
    knots = interpolate_cameras(cameras, [0.0, 1.0, 2.0, 3.0])
    torch.testing.assert_close(knots.world_to_camera, cameras.world_to_camera)
    torch.testing.assert_close(knots.intrinsics, cameras.intrinsics)
    between = interpolate_cameras(cameras, torch.linspace(0, 3, 13)).check("between")
    torch.testing.assert_close(between.centers[2], cameras.centers[:2].mean(0))


def test_interpolation_turns_at_constant_speed() -> None:
    poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    poses[1, :3, :3] = rotation([0, 1, 0], 1.2)
    cameras = Cameras(poses, make_cameras(2).intrinsics, 24, 40)
    third = interpolate_cameras(cameras, [1 / 3]).world_to_camera[0, :3, :3]
    torch.testing.assert_close(third, rotation([0, 1, 0], 0.4))


@pytest.mark.parametrize("bad", [[-0.1], [2.1], [math.nan]])
def test_interpolation_refuses_to_extrapolate(bad: list[float]) -> None:
    with pytest.raises(ConfigurationError, match="within"):
        interpolate_cameras(make_cameras(3), bad)


def test_a_single_view_interpolates_to_itself() -> None:
    one = make_cameras(1)
    torch.testing.assert_close(interpolate_cameras(one, [0.0, 0.0]).world_to_camera[1], one.world_to_camera[0])


def test_fundamental_matrix_annihilates_matching_pixels() -> None:
    cameras = make_cameras()
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    pixels, _ = project(points, cameras)
    pixels = torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1)
    matrix = fundamental_matrix(cameras, 0, 2)
    residual = torch.einsum("ni,ij,nj->n", pixels[2], matrix, pixels[0])
    line = pixels[0] @ matrix.T
    distance = residual.abs() / line[:, :2].norm(dim=-1)
    assert distance.max() < 1e-9
    # the order of the arguments matters: the transposed question has a large answer
    assert torch.einsum("ni,ij,nj->n", pixels[0], matrix, pixels[2]).abs().max() > 1e-3
    assert torch.linalg.matrix_rank(matrix, rtol=1e-9) == 2


def test_relative_to_first_batched() -> None:
    cameras = make_cameras()
    points = torch.randn(3, 7, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    moved = relative_to_first(points, cameras.world_to_camera)
    by_hand = cameras.world_to_camera[2] @ torch.cat([points[2, 5], torch.ones(1, dtype=torch.float64)])
    torch.testing.assert_close(moved[2, 5], by_hand[:3])
    torch.testing.assert_close(moved[..., 2], project(points, cameras)[1])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda cameras: cameras.world_to_camera[1, 0, 3].fill_(math.nan), "camera 1 has NaN"),
        (lambda cameras: cameras.intrinsics[2, 0, 0].zero_(), "camera 2 has focal length"),
        (lambda cameras: cameras.world_to_camera[0, :3, 0].neg_(), "camera 0 is not a rigid transform"),
    ],
)
def test_cameras_that_cannot_be_used_are_named(spoil: Callable[[Cameras], Any], words: str) -> None:
    cameras = make_cameras()
    spoil(cameras)
    with pytest.raises(BadCameraError, match=rf"clip-7\.json: .*{words}"):
        cameras.check("clip-7.json")


def test_mixed_precision_does_not_round_the_points_of_a_clip() -> None:
    points = torch.rand(2, 50, 3, generator=torch.Generator().manual_seed(3)) * 5
    pose = torch.eye(4).repeat(2, 1, 1)
    pose[:, :3, 3] = torch.tensor([0.123, -2.0, 4.0])
    exact = relative_to_first(points, pose)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(relative_to_first(points, pose), exact)
    assert relative_to_first(points.to("meta"), pose.to("meta")).shape == (2, 50, 3)
