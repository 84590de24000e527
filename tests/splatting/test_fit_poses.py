"""Pose refinement: exact exponential, known poses untouched, a perturbed pose found again."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.spatial.transform import Rotation
from splat_scenes import random_gaussians, ring_cameras

from reconx_pl.data.procedural import procedural_clip
from reconx_pl.errors import ConfigurationError
from reconx_pl.splatting.exposure import ExposureCompensation
from reconx_pl.splatting.fit import FitConfig, fit
from reconx_pl.splatting.fit_parameters import FitOptimizer, SceneParameters
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.splatting.pose_refinement import PoseRefinement, RefinedPoses, pose_changes, se3_exp
from reconx_pl.splatting.renderers.cpu import CpuRenderer
from reconx_pl.splatting.robust_weights import RobustWeights
from reconx_pl.types import Cameras, PointCloud

NO_LPIPS = LossWeights(lpips=0.0)


def _perturbed(cameras: Cameras, view: int, degrees: float, shift: list[float]) -> Cameras:
    twist = torch.tensor([[0.6, -0.8, 0.0, *shift]], dtype=torch.float64)
    twist[:, :3] *= math.radians(degrees)
    poses = cameras.world_to_camera.clone()
    poses[view] = (se3_exp(twist)[0] @ poses[view].double()).to(poses)
    return replace(cameras, world_to_camera=poses)


def test_exponential() -> None:
    twists = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    twists[1, 3:] = 0  # a turn alone
    twists[2, :3] = 0  # a move alone
    twists[3] = 0
    moved = se3_exp(twists)
    turns = torch.from_numpy(Rotation.from_rotvec(twists[:, :3].numpy()).as_matrix())
    torch.testing.assert_close(moved[:, :3, :3], turns)
    torch.testing.assert_close(moved[2, :3, 3], twists[2, 3:])
    assert torch.equal(moved[3], torch.eye(4, dtype=torch.float64)) and not moved[1, :3, 3].any()
    torch.testing.assert_close(moved @ se3_exp(-twists), torch.eye(4, dtype=torch.float64).expand(5, 4, 4))


@pytest.mark.parametrize("size", [0.0, 1e-9, 1.0])
def test_exponential_is_differentiable_everywhere(size: float) -> None:
    twist = size * torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(se3_exp, (twist.requires_grad_(),))


def test_gradient_through_the_renderer() -> None:
    """The loss of a picture by the increment of its pose, against central differences in the pose itself."""
    scene, cameras = random_gaussians(60, seed=5, sh_degree=1), ring_cameras(3, 24)
    scene.log_scales += 0.7  # wide blobs: float32 differences stay clean
    poses = RefinedPoses(cameras, {0, 2}, scene.means, PoseRefinement())
    target = CpuRenderer().render(scene, _perturbed(cameras, 1, 2.0, [0.02, 0.0, 0.0])).color[1:2]

    def loss(picked: Cameras) -> torch.Tensor:
        return (CpuRenderer().render(scene, picked).color - target).square().sum()

    loss(poses.pick([1])).backward()
    gradient = poses.twists["1"].grad
    assert gradient is not None and bool(torch.isfinite(gradient).all())
    units, step = poses.get_buffer("units")[1], 2e-3
    expected = []
    for axis in range(6):
        twist = torch.zeros(6, dtype=torch.float64)
        twist[axis] = step
        sides = [(se3_exp(sign * twist) @ cameras.world_to_camera[1].double()).float()[None] for sign in (1, -1)]
        plus, minus = (float(loss(replace(cameras[1], world_to_camera=side))) for side in sides)
        expected.append((plus - minus) / (2 * step))
    torch.testing.assert_close(gradient / units, torch.tensor(expected), rtol=0.03, atol=0.02 * max(map(abs, expected)))


def test_finds_a_perturbed_pose_again_and_leaves_the_known_ones() -> None:
    """One frame of eight is off by 1.5 degrees and 3 % of the depth: five sixths of both errors go."""
    clip = procedural_clip(2_000_002, frames=8, size=(64, 64), kind="room", points=4096)
    assert clip.cloud is not None
    true = clip.cameras.to(dtype=torch.float32)
    depth = float((clip.cloud.points - true.centers[3]).norm(dim=1).median())
    given = _perturbed(true, 3, 1.5, [0.02 * depth, 0.02 * depth, 0.01 * depth])
    known = (0, 1, 2, 5, 6, -1)
    config = FitConfig(steps=300, loss=NO_LPIPS, sh_degree=1, poses=PoseRefinement(0.35, 7e-3))
    found = fit(clip.images, given, None, clip.cloud, config, input_views=known).cameras
    known_poses = [view % 8 for view in known]
    assert torch.equal(found.world_to_camera[known_poses], given.world_to_camera[known_poses])
    before, after = pose_changes(true, given), pose_changes(true, found)
    for error, less in zip(before, after, strict=True):  # degrees, then world units
        assert float(less[3]) < float(error[3]) / 6
    assert float(after[0][4]) < 0.2  # the frame that was right stays where it was


def test_poses_stay_without_refinement_and_until_it_starts() -> None:
    scene, cameras = random_gaussians(60, sh_degree=0), ring_cameras(3, 24)
    frames = CpuRenderer().render(scene, cameras).color.clamp(0, 1)
    cloud = PointCloud(scene.means, torch.full((60, 3), 0.5), torch.ones(60))
    config = FitConfig(steps=20, loss=NO_LPIPS, sh_degree=0)
    assert torch.equal(fit(frames, cameras, None, cloud, config).cameras.world_to_camera, cameras.world_to_camera)
    late = replace(config, poses=PoseRefinement(start=0.5))
    early = replace(config, poses=PoseRefinement(start=0.0))
    found = [fit(frames, cameras, None, cloud, option, input_views=(0, 2)) for option in (config, late, early)]
    assert found[0].history[:11] == found[1].history[:11] != found[2].history[:11]
    assert not torch.equal(found[1].cameras.world_to_camera[1], cameras.world_to_camera[1])


def test_nothing_before_the_start_enters_the_moments() -> None:
    scene, cameras = random_gaussians(60, sh_degree=0), ring_cameras(3, 24)
    config = FitConfig(steps=10, sh_degree=0, poses=PoseRefinement(start=0.5))
    assert config.poses is not None
    poses = RefinedPoses(cameras, {0, 2}, scene.means, config.poses)
    parameters = SceneParameters(scene, config)
    optimizer = FitOptimizer(parameters, config, 1.0, poses)
    moved = []
    for step in (4, 5):
        loss = CpuRenderer().render(parameters.gaussians(0), poses.pick([1])).color.square().sum()
        optimizer.step(loss, step)
        moved.append((bool(poses.twists["1"].any()), len(optimizer.adam.state[poses.twists["1"]]) > 0))
    assert moved == [(False, False), (True, True)]


def test_where_all_views_are_known_nothing_moves() -> None:
    scene, cameras = random_gaussians(60, sh_degree=0), ring_cameras(3, 24)
    frames = CpuRenderer().render(scene, cameras).color.clamp(0, 1)
    cloud = PointCloud(scene.means, torch.full((60, 3), 0.5), torch.ones(60))
    plain = FitConfig(steps=8, loss=NO_LPIPS, sh_degree=0)
    every = replace(plain, poses=PoseRefinement(), exposure=ExposureCompensation(), robust_weights=RobustWeights())
    one, two = (fit(frames, cameras, None, cloud, config, input_views=range(3)) for config in (plain, every))
    assert one.history == two.history and torch.equal(two.cameras.world_to_camera, cameras.world_to_camera)


def test_changes_are_measured_exactly() -> None:
    cameras = ring_cameras(2, 16)
    angles, distances = pose_changes(cameras, _perturbed(cameras, 1, 1e-4, [0.0, 0.0, 0.0]))
    assert float(angles[1]) == pytest.approx(1e-4, rel=0.05) and float(angles[0]) == 0.0 == float(distances[0])
    angles, _ = pose_changes(cameras, _perturbed(cameras, 1, 179.0, [0.0, 0.0, 0.0]))
    assert float(angles[1]) == pytest.approx(179.0, abs=1e-3)
    _, distances = pose_changes(cameras, _perturbed(cameras, 1, 0.0, [0.3, 0.0, 0.4]))
    assert float(distances[1]) == pytest.approx(0.5, rel=1e-5)


def test_refusals() -> None:
    scene, cameras = random_gaussians(60, sh_degree=0), ring_cameras(3, 24)
    cloud = PointCloud(scene.means, torch.full((60, 3), 0.5), torch.ones(60))
    config = FitConfig(steps=2, loss=NO_LPIPS, poses=PoseRefinement())
    with pytest.raises(ConfigurationError, match="input_views"):
        fit(torch.zeros(3, 3, 24, 24), cameras, None, cloud, config)
    for options in ({"rotation": -1.0}, {"translation": float("nan")}, {"final": 0.0}, {"start": 1.0}):
        with pytest.raises(ConfigurationError):
            PoseRefinement(**options)
