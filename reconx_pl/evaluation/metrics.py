"""PSNR, SSIM and LPIPS as pixelSplat, MVSplat and DepthSplat compute them (PAPER: "Protocols"), and means over scenes.

SSIM differs between libraries in the third digit and more, so this module pins one call and one library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from reconx_pl.errors import BadSceneError, ConfigurationError, MissingDependencyError, MissingWeightsError

METRICS = ("psnr", "ssim", "lpips")
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "lpips": False}
SSIM_WINDOW = 11
# Two images that are equal to the last bit would have an infinite PSNR and make every mean infinite.
SMALLEST_ERROR = 1e-10  # 100 dB
LPIPS_REMEDY = "get them with: reconx weights fetch lpips"


def _check_pair(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape or prediction.ndim != 4 or prediction.shape[1] != 3:
        raise ConfigurationError(
            f"metrics compare images [V, 3, H, W] of one size, got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image: -10 log10 of the mean squared error, values clipped to [0, 1].

    Args:
        prediction: [V, 3, H, W].
        target: [V, 3, H, W].

    Returns:
        [V] decibels; at most 100 (equal images).
    """
    _check_pair(prediction, target)
    difference = prediction.double().clamp(0, 1) - target.double().clamp(0, 1)  # double: a mean of 200,000 squares
    error = difference.square().mean(dim=(1, 2, 3))  # [V]
    return -10 * error.clamp_min(SMALLEST_ERROR).log10()


def ssim(prediction: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each image: scikit-image with an 11 x 11 Gaussian window on the three channels.

    Args:
        prediction: [V, 3, H, W], values as they are (the field does not clip here).
        target: [V, 3, H, W] in [0, 1].

    Returns:
        [V], 1 for equal images.

    Raises:
        ConfigurationError: an image smaller than the window.
    """
    from skimage.metrics import structural_similarity

    _check_pair(prediction, target)
    if min(prediction.shape[-2:]) < SSIM_WINDOW:
        raise ConfigurationError(
            f"SSIM needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, got {tuple(prediction.shape[-2:])}"
        )
    pairs = zip(target.detach().float().cpu().numpy(), prediction.detach().float().cpu().numpy(), strict=True)
    values = [
        structural_similarity(truth, image, win_size=SSIM_WINDOW, gaussian_weights=True, channel_axis=0, data_range=1.0)
        for truth, image in pairs
    ]
    return torch.tensor(values, dtype=torch.float64)


def lpips(prediction: Tensor, target: Tensor, distance: nn.Module, batch: int = 4) -> Tensor:
    """Perceptual distance of each image (Zhang et al. 2018).

    Args:
        prediction: [V, 3, H, W] in [0, 1]; ``distance`` scales it to [-1, 1].
        target: [V, 3, H, W] in [0, 1].
        distance: a ``splatting.perceptual.LpipsDistance``; the field reports VGG.
        batch: images a pass, against memory.

    Returns:
        [V], 0 for equal images.
    """
    _check_pair(prediction, target)
    with torch.no_grad():
        parts = [
            distance(image, truth)
            for image, truth in zip(prediction.float().split(batch), target.float().split(batch), strict=True)
        ]
    return torch.cat(parts)


class MetricSuite:
    """The chosen metrics, ready to score images.

    A metric that cannot be computed here (LPIPS without its pretrained weights) is left out and listed in ``absent``
    with the reason and the remedy; there is never a number from random weights.

    Args:
        names: any of "psnr", "ssim", "lpips".
        device: where LPIPS runs.
        lpips_weights: backbone file for LPIPS; None looks in the documented places.

    Raises:
        ConfigurationError: an unknown name.
    """

    def __init__(
        self, names: Sequence[str] = METRICS, device: torch.device | str = "cpu", lpips_weights: str | None = None
    ) -> None:
        unknown = sorted(set(names) - set(METRICS))
        if unknown or not names:
            raise ConfigurationError(f"unknown metrics {unknown}; choose from {', '.join(METRICS)}")
        self.absent: dict[str, str] = {}
        self._device = torch.device(device)
        self._lpips: nn.Module | None = None
        if "lpips" in names:
            from reconx_pl.splatting.perceptual import LpipsDistance

            try:
                self._lpips = (
                    LpipsDistance(net="vgg", weights=lpips_weights).to(self._device).eval().requires_grad_(False)
                )
            except (MissingWeightsError, MissingDependencyError) as error:
                reason = str(error).replace(str(Path.home()), "~")  # it goes into reports that are passed on
                self.absent["lpips"] = reason if "reconx weights fetch lpips" in reason else f"{reason}; {LPIPS_REMEDY}"
        self.names = tuple(name for name in METRICS if name in names and name not in self.absent)

    def __call__(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Scores of each image: metric name to [V] float64 on the CPU.

        Raises:
            BadSceneError: an image with NaN or infinite values, which no metric can judge.
        """
        for what, images in (("prediction", prediction), ("target", target)):
            if not torch.isfinite(images).all():
                raise BadSceneError(f"a {what} to be scored has NaN or infinite values; nothing to measure")
        prediction, target = prediction.detach().to(self._device), target.detach().to(self._device)
        scores: dict[str, Tensor] = {}
        for name in self.names:
            if name == "psnr":
                value = psnr(prediction, target)
            elif name == "ssim":
                value = ssim(prediction, target)
            else:
                assert self._lpips is not None
                value = lpips(prediction, target, self._lpips)
            scores[name] = value.double().cpu()
        return scores


class SceneMetrics(Metric):
    """Means of scores over scenes, each scene counted once however many targets it has; gathers over ranks.

    Call ``update`` once a scene with the scores of its targets. States are sums, so that the result does not depend
    on how the scenes are spread over ranks (given the order of addition; float64).

    Args:
        names: metrics to keep; a metric that some scene lacks is not reported, because its mean would be of other
            scenes.
        **kwargs: of ``torchmetrics.Metric``.
    """

    full_state_update = False
    scenes: Tensor
    counts: Tensor
    totals: Tensor

    def __init__(self, names: Sequence[str] = METRICS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        size = len(self.names)
        self.add_state("scenes", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")  # scenes per metric
        self.add_state("totals", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def set_dtype(self, dst_type: torch.dtype | str) -> SceneMetrics:
        """Keep float64 states: a trainer in half precision must not round the sums."""
        return self

    def update(self, scores: Mapping[str, Tensor | Sequence[float]]) -> None:
        """Add one scene.

        Args:
            scores: metric name to the scores [targets] of this scene.
        """
        self.scenes += 1
        for index, name in enumerate(self.names):
            if name in scores:
                values = torch.as_tensor(scores[name], dtype=torch.float64)
                if values.numel() == 0:
                    raise ConfigurationError(f"a scene without targets has no {name}")
                self.totals[index] += values.mean().to(self.totals.device)
                self.counts[index] += 1

    def compute(self) -> dict[str, Tensor]:
        """Metric name to its mean over scenes; empty before the first scene."""
        return {
            name: self.totals[index] / self.counts[index]
            for index, name in enumerate(self.names)
            if self.counts[index] > 0 and self.counts[index] == self.scenes
        }
