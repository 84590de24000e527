"""LPIPS on crops: where they lie, and that picture, target and confidence are cut alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from splat_scenes import random_gaussians, ring_cameras

from reconx_pl.errors import ConfigurationError
from reconx_pl.metrics import lpips_weights
from reconx_pl.metrics.lpips import LpipsDistance
from reconx_pl.splatting.fit import FitConfig, fit
from reconx_pl.splatting.losses import Crop, LossWeights, confidence_loss
from reconx_pl.splatting.renderers.cpu import CpuRenderer
from reconx_pl.types import PointCloud

ONLY = LossWeights(l1=0.0, ssim=0.0, lpips=1.0)


@pytest.fixture(scope="module")
def distance(tmp_path_factory: pytest.TempPathFactory) -> LpipsDistance:
    """AlexNet with random values: a distance all the same."""
    g = torch.Generator().manual_seed(0)
    shapes = lpips_weights._shapes("alex")
    file = tmp_path_factory.mktemp("weights") / "alex.safetensors"
    save_file({name: 0.05 * torch.randn(shape, generator=g) for name, shape in shapes.items()}, file)
    return LpipsDistance("alex", Path(file))


def test_crops_lie_inside_and_everywhere() -> None:
    g = torch.Generator().manual_seed(0)
    crops = [Crop.random(32, 40, 50, g) for _ in range(400)]
    assert {crop.top for crop in crops} == set(range(9)) and {crop.left for crop in crops} == set(range(19))
    assert all((crop.height, crop.width) == (32, 32) for crop in crops)
    assert Crop.random(64, 40, 50, g) == Crop(0, 0, 40, 50)


def test_picture_target_and_confidence_are_cut_alike(distance: LpipsDistance) -> None:
    g = torch.Generator().manual_seed(1)
    x, y = torch.rand(2, 1, 3, 64, 80, generator=g).unbind(0)
    confidence = torch.rand(1, 64, 80, generator=g)
    x.requires_grad_()
    loss = confidence_loss(x, y, confidence, ONLY, perceptual=distance, perceptual_crop=Crop(8, 24, 40, 36))
    rows, columns = slice(8, 48), slice(24, 60)
    alone = confidence_loss(
        x[..., rows, columns], y[..., rows, columns], confidence[:, rows, columns], ONLY, perceptual=distance
    )
    torch.testing.assert_close(loss, alone)
    loss.backward()
    assert x.grad is not None
    outside = torch.ones(64, 80, dtype=torch.bool)
    outside[rows, columns] = False
    assert not x.grad[..., outside].any() and bool(x.grad[..., ~outside].any())
    both = confidence_loss(
        x, y, confidence, LossWeights(0.8, 0.2, 0.5), perceptual=distance, perceptual_crop=Crop(8, 24, 40, 36)
    )
    plain = confidence_loss(x, y, confidence, LossWeights(0.8, 0.2, 0.0))
    torch.testing.assert_close(both, plain + 0.5 * loss)  # L1 and SSIM still see all of it


def test_fit_on_crops(distance: LpipsDistance) -> None:
    scene, cameras = random_gaussians(100, sh_degree=0), ring_cameras(3, 48)
    frames = CpuRenderer().render(scene, cameras).color.clamp(0, 1)
    cloud = PointCloud(scene.means, torch.full((100, 3), 0.5), torch.ones(100))
    config = FitConfig(steps=6, lpips_net="alex", sh_degree=0, lpips_crop=32)
    one, two = (fit(frames, cameras, None, cloud, config, perceptual=distance).history for _ in range(2))
    other = fit(frames, cameras, None, cloud, replace(config, seed=3), perceptual=distance).history
    assert one == two != other
    whole = replace(config, lpips_crop=48)  # all of the frame: the same as no crop, but for the order of the frames
    full = fit(frames, cameras, None, cloud, replace(whole, steps=1), perceptual=distance).history
    none = fit(frames, cameras, None, cloud, replace(whole, steps=1, lpips_crop=None), perceptual=distance).history
    assert full == pytest.approx(none, rel=1e-5)


def test_crops_that_are_too_small() -> None:
    with pytest.raises(ConfigurationError, match=r"lpips_crop must be at least 31 pixels for LPIPS \(alex\)"):
        FitConfig(lpips_net="alex", lpips_crop=30)
    FitConfig(lpips_net="vgg", lpips_crop=30)
