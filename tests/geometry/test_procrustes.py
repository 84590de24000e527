"""Fitting a similarity: exact recovery, weights, no mirror images, batches, cameras, degenerate points."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.transform import Rotation

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import project
from reconx_pl.geometry.procrustes import Similarity, fit_similarity
from reconx_pl.types import Cameras


def points(count: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def similarity(scale: float = 2.5, seed: int = 0) -> Similarity:
    rotation = torch.from_numpy(Rotation.random(random_state=seed).as_matrix())
    return Similarity(torch.tensor(scale).double(), rotation, torch.tensor([1.0, -4.0, 0.3]).double())


def assert_same(found: Similarity, wanted: Similarity, tolerance: float = 1e-9) -> None:
    for name in ("scale", "rotation", "translation"):
        assert torch.allclose(getattr(found, name), getattr(wanted, name), atol=tolerance), name


@pytest.mark.parametrize("seed", range(4))
def test_recovers_what_moved_the_points(seed: int) -> None:
    wanted = similarity(0.1 + seed, seed)
    assert_same(fit_similarity(points(), wanted.apply(points())), wanted)
    flat = points() * torch.tensor([1.0, 1.0, 0.0]).double()
    assert_same(fit_similarity(flat, wanted.apply(flat)), wanted)


def test_weights_leave_out_and_balance() -> None:
    wanted, source = similarity(), points()
    target = wanted.apply(source)
    target[:5] += 100
    weights = torch.ones(40)
    weights[:5] = 0
    assert_same(fit_similarity(source, target, weights), wanted)
    # a point of weight 2 is that point twice
    noisy = wanted.apply(source) + 0.1 * points(seed=1)
    weights = torch.ones(40)
    weights[3] = 2
    twice = fit_similarity(torch.cat([source, source[3:4]]), torch.cat([noisy, noisy[3:4]]))
    assert_same(fit_similarity(source, noisy, weights), twice)


def test_scale_is_least_squares_and_can_be_held() -> None:
    source, wanted = points(), similarity()
    target = wanted.apply(source) + 0.3 * points(seed=1)
    found = fit_similarity(source, target)

    def cost(scale: float) -> float:
        moved = Similarity(found.scale * scale, found.rotation, found.translation)
        centred = moved.apply(source - source.mean(0)) - moved.translation - (target - target.mean(0))
        return centred.square().sum().item()

    assert cost(1.0) < min(cost(0.999), cost(1.001))
    assert fit_similarity(source, target, with_scale=False).scale == 1


def test_no_mirror_image() -> None:
    source = points()
    found = fit_similarity(source, source * torch.tensor([1.0, 1.0, -1.0]).double())
    assert torch.linalg.det(found.rotation).item() == pytest.approx(1)


def test_batch_is_each_by_itself() -> None:
    source = torch.stack([points(seed=seed) for seed in range(3)])
    target = torch.stack([similarity(1.0 + seed, seed).apply(points(seed=seed)) for seed in range(3)])
    found = fit_similarity(source, target, torch.rand(3, 40) + 0.1)
    for seed in range(3):
        one = Similarity(found.scale[seed], found.rotation[seed], found.translation[seed])
        assert_same(one, similarity(1.0 + seed, seed))
    assert torch.allclose(found.apply(source), target)
    assert torch.allclose(found.inverse().apply(target), source)


def test_cameras_see_the_moved_points_in_the_same_pixels() -> None:
    pose = torch.eye(4).repeat(2, 1, 1)
    pose[1, :3, :3] = torch.from_numpy(Rotation.from_rotvec([0.1, 0.4, -0.2]).as_matrix())
    pose[:, :3, 3] = torch.tensor([[0.0, 0.0, 6.0], [0.5, -1.0, 5.0]])
    intrinsics = torch.tensor([[50.0, 0, 32], [0, 60, 24], [0, 0, 1]]).repeat(2, 1, 1)
    cameras, wanted, source = Cameras(pose, intrinsics, 48, 64), similarity(), points().float()
    pixels, depth = project(source, cameras)
    moved, farther = project(wanted.apply(source), wanted.transform_cameras(cameras))
    assert torch.allclose(moved, pixels, atol=1e-3)
    assert torch.allclose(farther, depth * 2.5, atol=1e-4)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.arange(4.0)[:, None] * torch.tensor([1.0, 2.0, 3.0]), "line"),
        (torch.zeros(5, 3), "line"),
        (torch.full((5, 3), torch.nan), "finite"),
    ],
)
def test_degenerate_points_are_refused(source: torch.Tensor, message: str) -> None:
    with pytest.raises(BadSceneError, match=message):
        fit_similarity(source, source)
    with pytest.raises(BadSceneError, match="weights are zero"):
        fit_similarity(points(), points(), torch.zeros(40))


def test_shapes_must_agree() -> None:
    with pytest.raises(ConfigurationError, match=r"\[N, 3\]"):
        fit_similarity(torch.zeros(3, 3), torch.zeros(4, 3))
    with pytest.raises(ConfigurationError, match="weights"):
        fit_similarity(torch.zeros(3, 3), torch.zeros(3, 3), torch.zeros(4))
