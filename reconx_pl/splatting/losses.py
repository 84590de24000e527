"""The loss of the fit: L = sum_i C_i (0.8 L1 + 0.2 L_ssim + 0.5 L_lpips), C_i per pixel (ReconX, IV-E, eq. 14)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reconx_pl.errors import ConfigurationError

if TYPE_CHECKING:
    from reconx_pl.metrics.lpips import LpipsDistance, TargetFeatures

WINDOW = 11  # pixels
SIGMA = 1.5  # pixels
_C1, _C2 = 0.01**2, 0.03**2  # for images in [0, 1]


def _blur(images: Tensor) -> Tensor:
    """Gaussian window over [V, C, H, W], zero padding. It is its own adjoint: symmetric kernel, same padding."""
    offsets = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    window = torch.exp(-(offsets**2) / (2.0 * SIGMA**2))
    window = window / window.sum()
    channels = images.shape[1]
    row = window.expand(channels, 1, 1, WINDOW)
    # Depthwise on purpose: with one channel a sample the same convolution is ten times slower on a CPU.
    images = F.conv2d(images, row, padding=(0, WINDOW // 2), groups=channels)
    return F.conv2d(images, row.transpose(2, 3), padding=(WINDOW // 2, 0), groups=channels)


@dataclass(frozen=True)
class TargetStatistics:
    """Local mean and variance of a target, which need computing only once in a fit."""

    mean: Tensor  # [V, 3, H, W]
    variance: Tensor  # [V, 3, H, W]

    @classmethod
    def of(cls, target: Tensor) -> TargetStatistics:
        """Statistics of images [V, 3, H, W] in [0, 1]."""
        parts = []
        for view in target.split(1):  # one by one: of many at once, the blur's copies would be the peak of a fit
            mean, square = _blur(torch.cat([view, view * view], dim=1)).chunk(2, dim=1)
            parts.append((mean, square - mean * mean))
        means, variances = zip(*parts, strict=True)
        return cls(torch.cat(means), torch.cat(variances))

    def __getitem__(self, views: Tensor | slice | list[int]) -> TargetStatistics:
        return TargetStatistics(self.mean[views], self.variance[views])


class _SsimMap(torch.autograd.Function):
    """Per-channel SSIM map with its gradient by the prediction in closed form: three blurs, no saved graph."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        x, y, mean_y, variance_y = inputs
        mean, square, product = _blur(torch.cat([x, x * x, x * y], dim=1)).chunk(3, dim=1)
        a1 = 2.0 * mean * mean_y + _C1
        a2 = 2.0 * (product - mean * mean_y) + _C2
        b1 = mean * mean + mean_y * mean_y + _C1
        b2 = square - mean * mean + variance_y + _C2
        inverse = 1.0 / (b1 * b2)
        ssim = a1 * a2 * inverse
        ctx.save_for_backward(x, y, mean, mean_y, a1, a2, b1, b2, inverse, ssim)
        return ssim

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        x, y, mean, mean_y, a1, a2, b1, b2, inverse, ssim = ctx.saved_tensors
        g = grads[0]
        by_mean = g * (2.0 * mean_y * (a2 - a1) * inverse + 2.0 * mean * ssim * (1.0 / b2 - 1.0 / b1))
        by_square = -g * ssim / b2
        by_product = 2.0 * g * a1 * inverse
        mean_b, square_b, product_b = _blur(torch.cat([by_mean, by_square, by_product], dim=1)).chunk(3, dim=1)
        return mean_b + 2.0 * x * square_b + y * product_b, None, None, None


def ssim_map(prediction: Tensor, target: Tensor, statistics: TargetStatistics | None = None) -> Tensor:  # [V, H, W]
    """Structural similarity at every pixel, mean over the channels (Wang et al. 2004; window and padding of 3DGS).

    Gaussian window of 11 pixels, sigma 1.5, zero padding. This is the loss; the score that is reported comes from
    scikit-image (``evaluation.metrics``), whose definition differs.

    Args:
        prediction: [V, 3, H, W] in [0, 1]; the gradient reaches it.
        target: [V, 3, H, W] in [0, 1]; counts as constant.
        statistics: ``TargetStatistics.of(target)``, if kept from an earlier call.
    """
    target = target.detach()
    known = TargetStatistics.of(target) if statistics is None else statistics
    return _SsimMap.apply(prediction, target, known.mean, known.variance).mean(dim=1)


@dataclass(frozen=True)
class LossWeights:
    """Factors of the three terms (ReconX, V-A). A factor of 0 leaves the term out of the computation."""

    l1: float = 0.8
    ssim: float = 0.2
    lpips: float = 0.5

    def __post_init__(self) -> None:
        if min(self.l1, self.ssim, self.lpips) < 0 or self.l1 + self.ssim + self.lpips <= 0:
            raise ConfigurationError(f"loss weights must be >= 0 and not all 0, got {self}")


@dataclass(frozen=True)
class Crop:
    """A window of an image, pixels."""

    top: int
    left: int
    height: int
    width: int

    @classmethod
    def random(cls, size: int, height: int, width: int, generator: torch.Generator) -> Crop:
        """A square of ``size`` pixels, as much of it as the image has, anywhere in an image of height x width."""
        rows, columns = min(size, height), min(size, width)
        top = int(torch.randint(height - rows + 1, (1,), generator=generator))
        left = int(torch.randint(width - columns + 1, (1,), generator=generator))
        return cls(top, left, rows, columns)

    def of(self, images: Tensor) -> Tensor:  # [*, height, width]
        """The window of images or maps [*, H, W]."""
        return images[..., self.top : self.top + self.height, self.left : self.left + self.width]


def confidence_loss(
    prediction: Tensor,
    target: Tensor,
    confidence: Tensor,
    weights: LossWeights | None = None,
    *,
    perceptual: LpipsDistance | None = None,
    perceptual_factor: float = 1.0,
    perceptual_crop: Crop | None = None,
    statistics: TargetStatistics | None = None,
    features: TargetFeatures | None = None,
) -> Tensor:
    """Mean over all pixels of C (0.8 |x - y| + 0.2 (1 - SSIM) + 0.5 LPIPS), a scalar.

    LPIPS is a sum of distance maps at the resolutions of the network's layers. C weights each of them at its own
    resolution (averaged over the cells), so that a low-confidence region stays quiet in this term too, and C = 1 gives
    exactly the usual LPIPS.

    Args:
        prediction: [V, 3, H, W], may exceed [0, 1]; only LPIPS clamps it, its network expects images.
        target: [V, 3, H, W] in [0, 1].
        confidence: [V, H, W], normalised (``normalise_confidence``).
        weights: factors of the terms; None = the paper's.
        perceptual: the LPIPS network; None leaves the term out (no weights, or not in this step).
        perceptual_factor: multiplies the LPIPS term (k, where it is computed in every k-th step only).
        perceptual_crop: where LPIPS is computed, confidence included; None = on the whole picture. Over random places
            its mean is about that of the whole, but pixels at the border are seen less often.
        statistics: of the target, if kept.
        features: of the target (with a crop: of that crop) by ``perceptual.features``, if kept.
    """
    factors = weights or LossWeights()
    total = prediction.new_zeros(())
    if factors.l1 > 0:
        total = total + factors.l1 * ((prediction - target).abs().mean(dim=1) * confidence).mean()
    if factors.ssim > 0:
        total = total + factors.ssim * ((1.0 - ssim_map(prediction, target, statistics)) * confidence).mean()
    if factors.lpips > 0 and perceptual is not None:
        if perceptual_crop is not None:
            prediction, target, confidence = map(perceptual_crop.of, (prediction, target, confidence))
        reference = perceptual.features(target) if features is None else features
        distance = perceptual(prediction.clamp(0.0, 1.0), reference, weights=confidence).mean()
        total = total + factors.lpips * perceptual_factor * distance
    return total
