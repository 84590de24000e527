"""RobustWeights: what one frame says against all others stops counting."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from splat_scenes import random_gaussians, ring_cameras

from reconx_pl.errors import ConfigurationError
from reconx_pl.splatting.fit import FitConfig, fit
from reconx_pl.splatting.losses import LossWeights, ssim_map
from reconx_pl.splatting.renderers.cpu import CpuRenderer
from reconx_pl.splatting.robust_weights import RobustWeights
from reconx_pl.types import PointCloud


def test_factors() -> None:
    pictures = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(3, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    targets = (pictures + 0.1 * noise).clamp(0, 1)
    targets[2, :, :, 20:] = 1 - targets[2, :, :, 20:]
    similarity = ssim_map(pictures, targets)
    factors = RobustWeights(floor=0.1).factors(similarity, [0])
    assert torch.equal(factors[0], torch.ones(40, 40))
    assert float(factors[1].mean()) > 0.7  # as noisy as the known view
    assert float(factors[2, :, :14].mean()) > 0.7 and float(factors[2, :, 26:].mean()) < 0.15
    assert float(factors.min()) >= 0.1
    assert float(RobustWeights().factors(similarity, [])[0].max()) < 1.0  # nobody is trusted blindly


def test_when_it_is_due() -> None:
    robust_weights = RobustWeights(start=0.3, every=0.25)
    assert [step for step in range(20) if robust_weights.due(step, 20)] == [6, 11, 16]


def test_a_lie_does_not_stay_in_the_scene() -> None:
    """Two frames of seven have a white square in the middle; the known ones show what is there."""
    truth, cameras = random_gaussians(400, seed=3, sh_degree=0), ring_cameras(7, 40)
    truth.log_scales -= 0.5
    frames = CpuRenderer().render(truth, cameras, background=torch.zeros(3)).color.clamp(0, 1)
    cloud = PointCloud(truth.means, torch.full((400, 3), 0.5), torch.ones(400))
    generated = frames.clone()
    generated[[2, 4], :, 8:32, 8:32] = 1.0
    config = FitConfig(steps=200, loss=LossWeights(lpips=0.0), sh_degree=0)
    errors = []
    for option in (config, replace(config, robust_weights=RobustWeights())):
        scene = fit(generated, cameras, None, cloud, option, input_views=(0, 1, 3, 5, 6)).gaussians
        errors.append(float((CpuRenderer().render(scene, cameras).color - frames).square().mean()))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("options", [{"start": 1.0}, {"every": 0.0}, {"tolerance": 0.0}, {"floor": 1.0}])
def test_unusable_options(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        RobustWeights(**options)
