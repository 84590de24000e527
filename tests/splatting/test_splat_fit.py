"""The fit: it recovers a scene whose geometry is known, repeats bit by bit, and refuses what cannot work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from splat_scenes import random_gaussians, ring_cameras
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.splatting.fit import FitConfig, LearningRates, fit
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.splatting.renderers.cpu import CpuRenderer
from reconx_pl.types import Cameras, PointCloud

NO_LPIPS = LossWeights(lpips=0.0)


def _scene(count: int = 400, views: int = 7, size: int = 48) -> tuple[Tensor, Cameras, PointCloud]:
    """Frames of random blobs, and a cloud that knows where they are but not how large, how opaque or which colour."""
    truth, cameras = random_gaussians(count, seed=3, sh_degree=1), ring_cameras(views, size)
    truth.log_scales -= 0.5
    frames = CpuRenderer().render(truth, cameras, background=torch.zeros(3)).color.clamp(0, 1)
    return frames, cameras, PointCloud(truth.means, torch.full((count, 3), 0.5), torch.ones(count))


def _psnr(x: Tensor, y: Tensor) -> float:
    return float(-10.0 * torch.log10((x.clamp(0, 1) - y).square().mean()))


def test_recovers_a_scene_on_views_it_never_saw() -> None:
    frames, cameras, cloud = _scene()
    seen, held_out = [0, 1, 2, 4, 5, 6], 3
    calls: list[tuple[str, int, int | None]] = []
    result = fit(
        frames[seen],
        cameras[seen],
        None,
        cloud,
        FitConfig(steps=300, loss=NO_LPIPS),
        progress=lambda *call: calls.append(call),
    )
    render = CpuRenderer().render(result.gaussians, cameras).color
    assert _psnr(render[held_out], frames[held_out]) > 28.0
    assert len(result.history) == 300 and result.final_loss < 0.2 * result.history[0]
    assert [call[1:] for call in calls] == [(step, 300) for step in range(10, 301, 10)]
    assert calls[-1][0] == f"fit, loss {result.history[-1]:.3f}"
    assert result.gaussians.sh_degree == 3 and not result.gaussians.means.requires_grad


def test_one_view_is_fitted_from_its_points() -> None:
    frames, cameras, cloud = _scene(300, 1, 32)
    result = fit(frames, cameras, None, cloud, FitConfig(steps=100, loss=NO_LPIPS, sh_degree=1), input_views=[0])
    assert _psnr(CpuRenderer().render(result.gaussians, cameras).color, frames) > 28.0
    moved = (result.gaussians.means - cloud.points).norm(dim=1)
    assert float(moved.median()) < 0.1, "nothing but its points tells depth, and they stay about where they were"


def test_same_seed_same_scene() -> None:
    frames, cameras, cloud = _scene(100, 3, 24)
    config = FitConfig(steps=12, loss=NO_LPIPS, sh_degree=1)
    one, two = (fit(frames, cameras, None, cloud, config) for _ in range(2))
    other = fit(frames, cameras, None, cloud, replace(config, seed=1))
    assert one.history == two.history and torch.equal(one.gaussians.means, two.gaussians.means)
    assert one.history != other.history


def test_harmonics_join_by_and_by() -> None:
    frames, cameras, cloud = _scene(100, 3, 24)
    early = fit(frames, cameras, None, cloud, FitConfig(steps=8, loss=NO_LPIPS, sh_interval=0.5)).gaussians.sh
    assert bool(early[:, 1:4].any()) and not early[:, 4:].any()


def test_confidence_zero_pixels_do_not_pull() -> None:
    """A frame generated wrong on one half, with confidence 0 there, leaves the fit as if that half were not there."""
    frames, cameras, cloud = _scene(300, 5, 40)
    confidence = torch.full((5, 40, 40), 10.0)
    wrong = frames.clone()
    wrong[2, :, :, 20:] = 1.0
    config = FitConfig(steps=150, loss=NO_LPIPS, sh_degree=1)
    trusting = fit(wrong, cameras, confidence, cloud, config)
    confidence[2, :, 20:] = 0.0
    careful = fit(wrong, cameras, confidence, cloud, config)
    scores = [
        _psnr(CpuRenderer().render(result.gaussians, cameras).color[2, :, :, 26:], frames[2, :, :, 26:])
        for result in (trusting, careful)
    ]
    assert scores[1] > scores[0] + 3.0


def test_a_known_view_weight_of_zero_leaves_the_known_views_out() -> None:
    frames, cameras, cloud = _scene(100, 3, 24)
    wrong = frames.clone()
    wrong[0] = 0.0
    config = FitConfig(steps=20, loss=NO_LPIPS, sh_degree=0, input_view_weight=0.0)
    one, two = (fit(images, cameras, None, cloud, config, input_views=(0,)) for images in (frames, wrong))
    assert one.history == two.history
    with pytest.raises(ConfigurationError, match="ever be drawn"):
        fit(frames, cameras, None, cloud, config, input_views=(0, 1, 2))


def test_known_views_weigh_more() -> None:
    frames, cameras, cloud = _scene(150, 4, 24)
    generated = frames.clone()
    generated[1:3] = generated[1:3].mean(dim=(2, 3), keepdim=True)
    scores = []
    for weight in (0.2, 5.0):
        config = FitConfig(steps=60, loss=NO_LPIPS, sh_degree=0, input_view_weight=weight)
        scene = fit(generated, cameras, None, cloud, config, input_views=(0, -1)).gaussians
        scores.append(_psnr(CpuRenderer().render(scene, cameras).color[[0, 3]], frames[[0, 3]]))
    assert scores[1] > scores[0] + 1.0


def test_several_frames_a_step_and_a_background() -> None:
    frames, cameras, cloud = _scene(100, 3, 24)
    config = FitConfig(steps=10, frames_per_step=2, loss=NO_LPIPS, background=(0.0, 0.5, 1.0))
    result = fit(frames, cameras, None, cloud, config)
    assert torch.equal(result.gaussians.background, torch.tensor([0.0, 0.5, 1.0]))
    assert result.history[-1] < result.history[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda frames, cameras, cloud: {"frames": [*frames[:2], frames[2, :, :, :12]]}, r"different sizes.*3, 16, 12"),
        (lambda frames, cameras, cloud: {"frames": frames[:2]}, "do not go with cameras"),
        (lambda frames, cameras, cloud: {"frames": (frames * 255).byte()}, "divide uint8"),
        (lambda frames, cameras, cloud: {"frames": frames * torch.nan}, "NaN"),
        (lambda frames, cameras, cloud: {"cameras": cameras[[1, 1, 1]]}, "parallax"),
        (lambda frames, cameras, cloud: {"frames": frames[:0], "cameras": cameras[[]]}, "no frames to fit"),
        (lambda frames, cameras, cloud: {"confidence": torch.zeros(3, 16, 16)}, "no pixel has a confidence"),
        (lambda frames, cameras, cloud: {"confidence": torch.ones(3, 8, 8)}, "does not go with frames"),
        (lambda frames, cameras, cloud: {"points": cloud[:0]}, "cloud is empty"),
        (lambda frames, cameras, cloud: {"points": with_nan(cloud)}, "1 of 50 points have NaN"),
    ],
)
def test_scenes_that_cannot_be_fitted(change: Callable[..., dict[str, Any]], words: str) -> None:
    frames, cameras, cloud = _scene(50, 3, 16)
    given = {"frames": frames, "cameras": cameras, "confidence": None, "points": cloud}
    with pytest.raises(BadSceneError, match=words):
        fit(**given | change(frames, cameras, cloud), config=FitConfig(steps=2, loss=NO_LPIPS))


def with_nan(cloud: PointCloud) -> PointCloud:
    return replace(cloud, points=cloud.points.index_fill(0, torch.tensor([7]), torch.nan))


def test_an_input_view_that_is_no_frame() -> None:
    frames, cameras, cloud = _scene(50, 3, 16)
    with pytest.raises(ConfigurationError, match="input_views"):
        fit(frames, cameras, None, cloud, FitConfig(steps=2, loss=NO_LPIPS), input_views=(3,))


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (FitConfig, {"steps": 0}, "steps"),
        (FitConfig, {"sh_degree": 4}, "sh_degree"),
        (FitConfig, {"lpips_every": 0}, "lpips_every"),
        (FitConfig, {"input_view_weight": -1.0}, "input_view_weight"),
        (FitConfig, {"input_view_weight": float("inf")}, "input_view_weight"),
        (FitConfig, {"sh_interval": 0.0}, "sh_interval"),
        (FitConfig, {"max_memory": 0.0}, "max_memory"),
        (FitConfig, {"background": (0.0, 0.0, 2.0)}, "background"),
        (LearningRates, {"means": -1.0}, "means"),
    ],
)
def test_unusable_options(kind: type, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        kind(**options)
