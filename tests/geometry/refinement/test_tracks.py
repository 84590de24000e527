"""Tracks of matches, and where their points are."""

from __future__ import annotations

import numpy as np
import torch

from reconx_pl.geometry.cameras import project
from reconx_pl.geometry.refinement.bundle import adjust
from reconx_pl.geometry.refinement.matching import Features
from reconx_pl.geometry.refinement.tracks import (
    Tracks,
    parallax,
    points_of_depth,
    reprojection,
    tracks_of,
    triangulated,
)
from reconx_pl.types import Cameras

HEIGHT, WIDTH, FOCAL = 60, 80, 70.0
POINTS = torch.tensor([[0.0, 0.0, 4.0], [0.5, -0.3, 5.0], [-0.6, 0.4, 6.0]], dtype=torch.float64)


def row_of_cameras() -> Cameras:
    """Three, side by side, one unit apart."""
    poses = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    poses[:, 0, 3] = torch.tensor([0.5, 0.0, -0.5])
    intrinsics = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64)
    return Cameras(poses, intrinsics.repeat(3, 1, 1), HEIGHT, WIDTH)


def seen_by_all(cameras: Cameras) -> Tracks:
    pixels, _ = project(POINTS, cameras)
    return Tracks(np.tile(np.arange(3), 3), np.repeat(np.arange(3), 3), pixels.transpose(0, 1).reshape(-1, 2).numpy())


def test_matches_in_a_chain_are_one_point_and_contradictions_none() -> None:
    pixels = [torch.arange(2 * count, dtype=torch.float32).view(count, 2) + 100 * view
              for view, count in enumerate((4, 3, 4))]  # fmt: skip
    features = Features(pixels, [torch.zeros(len(one), 128) for one in pixels])
    matches = {
        (0, 1): np.array([[0, 1], [2, 0], [3, 2]]),
        (1, 2): np.array([[1, 3], [2, 1]]),
        (0, 2): np.array([[1, 1]]),  # with the last two above: features 1 and 3 of view 0 as one point
    }
    tracks = tracks_of(matches, features)
    assert len(tracks) == 2
    found = {
        tuple((int(view), tuple(pixel)) for view, pixel, point in zip(tracks.views, tracks.pixels, tracks.points,
                                                                      strict=True) if point == number)
        for number in range(2)
    }  # fmt: skip
    chain = ((0, (0.0, 1.0)), (1, (102.0, 103.0)), (2, (206.0, 207.0)))
    assert found == {chain, ((0, (4.0, 5.0)), (1, (100.0, 101.0)))}


def test_points_are_where_rays_meet_and_where_depth_says() -> None:
    cameras = row_of_cameras()
    tracks = seen_by_all(cameras)
    np.testing.assert_allclose(triangulated(tracks, cameras), POINTS.numpy(), atol=1e-9)
    depth = torch.zeros(3, HEIGHT, WIDTH)
    for view, point, (x, y) in zip(tracks.views, tracks.points, tracks.pixels, strict=True):
        if point != 2:
            depth[view, int(y), int(x)] = POINTS[point, 2]
    depth[0, int(tracks.pixels[0][1]), int(tracks.pixels[0][0])] = torch.inf  # none
    found = points_of_depth(tracks, cameras, depth)
    np.testing.assert_allclose(found[:2], POINTS[:2].numpy(), atol=1e-6)
    assert np.isnan(found[2]).all(), "no view has depth there"


def test_errors_are_in_pixels_and_infinite_behind_a_camera() -> None:
    cameras = row_of_cameras()
    tracks = seen_by_all(cameras)
    points = POINTS.numpy().copy()
    points[1, 0] += 5.0 / FOCAL  # at depth 5: one pixel
    points[2, 2] = -1
    error, depth = reprojection(tracks, cameras, points)
    np.testing.assert_allclose(error[:6], [0, 0, 0, 1, 1, 1], atol=1e-9)
    assert np.isinf(error[6:]).all() and (depth[6:] == 0).all() and np.allclose(depth[:3], 4)


def test_parallax_is_the_angle_between_the_outer_rays() -> None:
    cameras = row_of_cameras()
    found = parallax(seen_by_all(cameras), cameras, POINTS.numpy())
    assert abs(found[0] - 2 * np.degrees(np.arctan(0.5 / 4))) < 1e-6
    assert found[0] > found[1] > found[2]


def test_observations_left_alone_go_with_their_point() -> None:
    tracks = seen_by_all(row_of_cameras())
    keep = np.ones(9, dtype=bool)
    keep[[3, 4, 8]] = False  # of point 1 one is left, of point 2 two are
    left, numbers = tracks.kept(keep)
    assert numbers.tolist() == [0, 2] and left.points.tolist() == [0, 0, 0, 1, 1] and len(left) == 2
    assert np.array_equal(left.pixels, tracks.pixels[[0, 1, 2, 6, 7]])


def test_bundle_adjustment_finds_cameras_and_leaves_out_what_is_wrong() -> None:
    cameras, draw = row_of_cameras(), torch.Generator().manual_seed(0)
    points = torch.rand(60, 3, generator=draw, dtype=torch.float64) * torch.tensor([3.0, 2.0, 3.0]) - torch.tensor(
        [1.5, 1.0, -4.0]
    )
    pixels, _ = project(points, cameras)
    observed = pixels.transpose(0, 1).reshape(-1, 2).numpy().copy()
    observed[30] += (9, -7)  # view 0 of point 10
    tracks = Tracks(np.tile(np.arange(3), 60), np.repeat(np.arange(60), 3), observed)
    poses = cameras.world_to_camera.clone()
    poses[1, :3, 3] += torch.tensor([0.02, -0.03, 0.04])
    rough = Cameras(poses, cameras.intrinsics, HEIGHT, WIDTH)
    found = adjust(rough, tracks, points.numpy() * 1.02, (4.0, 1.0), 1.0, [0, 0, 0])
    assert 175 <= len(found.errors) < 180 and found.errors.max() < 0.2
    assert not ((found.tracks.points == 10) & (found.tracks.views == 0)).any()
    held = adjust(rough, tracks, points.numpy(), (4.0, 1.0), 1.0, [0, 0, 0], fixed_poses=True)
    assert torch.equal(held.cameras.world_to_camera, poses)
    assert found.agreement(1.0, 0.5) > held.agreement(1.0, 0.5)
