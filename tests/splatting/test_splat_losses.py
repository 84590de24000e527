"""Confidence weights and the loss of the fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.splatting.confidence import normalise_confidence
from reconx_pl.splatting.losses import LossWeights, TargetStatistics, confidence_loss, ssim_map


def _images(seed: int, views: int = 2, size: int = 24, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(views, 3, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("mode", ["mean-log", "log", "linear"])
def test_confidence_has_mean_one_and_keeps_the_order(mode: str) -> None:
    raw = 1.0 + torch.exp(4.0 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1)))
    weights = normalise_confidence(raw, mode)
    assert float(weights.mean()) == pytest.approx(1.0, abs=1e-5)
    order = raw.clamp(max=1e4).flatten().argsort()
    assert (weights.flatten()[order].diff() >= 0).all() and bool((weights >= 0).all())


def test_default_confidence_is_bounded_however_large_the_input() -> None:
    raw = torch.ones(1, 4, 4)
    raw[0, 0, 0] = 3.4e38
    weights = normalise_confidence(raw)
    assert float(weights.max() / weights.min()) == pytest.approx(1.0 + math.log(1e4), rel=1e-5)


def test_confidence_by_hand() -> None:
    raw = torch.tensor([[[1.0, math.e], [math.e**2, 0.0]]])  # 1 + ln C = 1, 2, 3, and one pixel to ignore
    torch.testing.assert_close(normalise_confidence(raw), torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]) * 4 / 6)
    torch.testing.assert_close(normalise_confidence(raw, "log"), torch.tensor([[[0.0, 1.0], [2.0, 0.0]]]) * 4 / 3)
    assert torch.equal(normalise_confidence(raw, "none"), torch.ones(1, 2, 2))


def test_confidence_at_the_floor() -> None:
    floor = torch.ones(2, 3, 3)
    assert torch.equal(normalise_confidence(floor), floor)
    assert torch.equal(normalise_confidence(floor, "linear"), floor)
    with pytest.raises(BadSceneError, match="mode 'none'"):
        normalise_confidence(floor, "log")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_unusable_confidence(value: float) -> None:
    with pytest.raises(BadSceneError, match="confidence"):
        normalise_confidence(torch.full((1, 2, 2), value))
    with pytest.raises(ConfigurationError, match="unknown confidence mode"):
        normalise_confidence(torch.ones(1, 2, 2), "square")


def test_ssim_map_agrees_with_scikit_image_inside() -> None:
    from skimage.metrics import structural_similarity

    x, y = _images(1, 1, 40)[0], _images(2, 1, 40)[0]
    y = 0.7 * x + 0.3 * y
    _, full = structural_similarity(
        x.numpy().astype(np.float64),
        y.numpy().astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=0,
        data_range=1.0,
        full=True,
        truncate=5 / 1.5,  # 11 pixels
    )
    inside = slice(6, -6)
    ours = ssim_map(x[None], y[None])[0]
    np.testing.assert_allclose(ours[inside, inside], full.mean(0)[inside, inside], atol=1e-4)


def test_ssim_of_equal_images_is_one() -> None:
    x = _images(3)
    torch.testing.assert_close(ssim_map(x, x), torch.ones(2, 24, 24))


def test_ssim_gradient() -> None:
    x, y = _images(4, 1, 9, torch.float64).requires_grad_(), _images(5, 1, 9, torch.float64)
    assert torch.autograd.gradcheck(lambda image: ssim_map(image, y), (x,), atol=1e-6)
    statistics = TargetStatistics.of(y)
    assert torch.equal(ssim_map(x, y), ssim_map(x, y, statistics))


def test_loss_of_the_paper_by_hand() -> None:
    x, y = _images(6), _images(7)
    confidence = torch.rand(2, 24, 24, generator=torch.Generator().manual_seed(8))
    expected = 0.8 * (x - y).abs().mean(1) + 0.2 * (1 - ssim_map(x, y))
    actual = confidence_loss(x, y, confidence)
    torch.testing.assert_close(actual, (confidence * expected).mean())


def test_confidence_acts_per_pixel() -> None:
    x, y = _images(9).requires_grad_(), _images(10)
    confidence = torch.ones(2, 24, 24)
    confidence[:, :, :12] = 0.0
    confidence_loss(x, y, confidence, LossWeights(l1=1.0, ssim=0.0)).backward()
    assert not x.grad[..., :12].any() and bool(x.grad[..., 12:].all())
    x.grad = None
    confidence_loss(x, y, confidence, LossWeights(l1=0.0, ssim=1.0)).backward()
    assert not x.grad[..., :7].any()  # half a window further than the border
    assert bool(x.grad[..., 7:].any(dim=1).all())


def test_bad_loss_weights() -> None:
    with pytest.raises(ConfigurationError, match="loss weights"):
        LossWeights(0.0, 0.0, 0.0)
    with pytest.raises(ConfigurationError, match="loss weights"):
        LossWeights(l1=-1.0)
