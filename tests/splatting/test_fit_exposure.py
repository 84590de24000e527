"""Exposure: frames of another brightness do not tint the scene, and the scene's own colours do not drift."""

from __future__ import annotations

import pytest
import torch
from splat_scenes import random_gaussians, ring_cameras
from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.splatting.exposure import ExposureCompensation, Exposures
from reconx_pl.splatting.fit import FitConfig, FitResult, fit
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.splatting.renderers.cpu import CpuRenderer
from reconx_pl.types import Cameras, PointCloud

GAIN, OFFSET = torch.tensor([0.6, 0.75, 0.9]), torch.tensor([0.02, 0.05, 0.1])


def _scene() -> tuple[Tensor, Cameras, PointCloud]:
    truth, cameras = random_gaussians(300, seed=3, sh_degree=0), ring_cameras(5, 32)
    frames = CpuRenderer().render(truth, cameras, background=torch.zeros(3)).color.clamp(0, 1)
    return frames, cameras, PointCloud(truth.means, torch.full((300, 3), 0.5), torch.ones(300))


def _fitted(frames: Tensor, exposure: ExposureCompensation | None, known: tuple[int, ...]) -> FitResult:
    _, cameras, cloud = _scene()
    config = FitConfig(steps=200, loss=LossWeights(lpips=0.0), sh_degree=0, exposure=exposure)
    return fit(frames, cameras, None, cloud, config, input_views=known)


@pytest.mark.parametrize("transform", ["channels", "affine"])
def test_shifted_frames_do_not_tint_the_scene(transform: str) -> None:
    frames, cameras, _ = _scene()
    shifted = frames.clone()
    shifted[1:4] = frames[1:4] * GAIN[:, None, None] + OFFSET[:, None, None]
    plain = _fitted(shifted, None, (0, 4))
    fitted = _fitted(shifted, ExposureCompensation(transform), (0, 4))
    assert plain.exposure is None and fitted.exposure is not None
    tints = []
    for result in (plain, fitted):
        pictures = CpuRenderer().render(result.gaussians, cameras).color[2]
        tints.append(float((pictures.mean(dim=(1, 2)) - frames[2].mean(dim=(1, 2))).abs().max()))
    assert tints[1] < 0.25 * tints[0]
    assert torch.equal(fitted.exposure[[0, 4]], torch.eye(3, 4).expand(2, 3, 4))
    if transform == "channels":
        assert torch.equal(fitted.exposure[:, [0, 1, 2], [1, 2, 0]], torch.zeros(5, 3))
        # gain and offset make up for each other; what a middle grey becomes is well determined
        grey = 0.4 * fitted.exposure[2, :, :3].diagonal() + fitted.exposure[2, :, 3]
        torch.testing.assert_close(grey, 0.4 * GAIN + OFFSET, atol=0.03, rtol=0)


def test_without_known_views_the_mean_stays() -> None:
    frames, _, _ = _scene()
    shifted = frames.clone()
    shifted[1] = frames[1] * 0.5
    exposure = _fitted(shifted, ExposureCompensation("affine"), ()).exposure
    assert exposure is not None
    torch.testing.assert_close(exposure.mean(dim=0), torch.eye(3, 4), atol=1e-5, rtol=0)
    gains = exposure[:, :, :3].diagonal(dim1=1, dim2=2).mean(dim=1)
    assert float(gains[1]) < 0.75 * float(gains[[0, 2, 3, 4]].min())


def test_transform_by_hand() -> None:
    exposures = Exposures(2, {0}, ExposureCompensation("affine"))
    with torch.no_grad():
        exposures.differences["1"].copy_(torch.tensor([[1.0, 0, 0, 0.5], [0, 0, 2.0, 0], [0, 0, 0, 0]]))
    pictures = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1).repeat(2, 1, 2, 2)
    seen = exposures.apply_to(pictures, [0, 1])
    assert torch.equal(seen[0], pictures[0])
    torch.testing.assert_close(seen[1, :, 0, 0], torch.tensor([0.7, 0.8, 0.3]))  # 2r + .5, g + 2b, b


@pytest.mark.parametrize("options", [{"transform": "gamma"}, {"rate": 0.0}, {"final": 2.0}])
def test_unusable_options(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError):
        ExposureCompensation(**options)
