"""PSNR, SSIM and LPIPS as pixelSplat, MVSplat and DepthSplat compute them (ReconX, V-A).

SSIM differs between libraries in the third digit and more, so this module pins one call and one library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError, MissingDependencyError, MissingWeightsError

if TYPE_CHECKING:
    from reconx_pl.metrics.lpips import LpipsDistance

METRICS = ("psnr", "ssim", "lpips")
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "lpips": False}
HEADINGS = {"psnr": "PSNR, dB ↑", "ssim": "SSIM ↑", "lpips": "LPIPS ↓"}
DIGITS = {"psnr": 2, "ssim": 3, "lpips": 3}  # after the point, in reports and tables
SSIM_WINDOW = 11
# Two images that are equal to the last bit would have an infinite PSNR and make every mean infinite.
SMALLEST_ERROR = 1e-10  # 100 dB
LPIPS_REMEDY = "get them with: reconx weights fetch lpips"


def _check_pair(prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape or prediction.ndim != 4 or prediction.shape[1] != 3:
        raise ConfigurationError(
            f"metrics compare images [V, 3, H, W] of one size, got {tuple(prediction.shape)} and {tuple(target.shape)}"
        )


def psnr(prediction: Tensor, target: Tensor, masks: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio of each image: -10 log10 of the mean squared error, values clipped to [0, 1].

    Args:
        prediction: [V, 3, H, W].
        target: [V, 3, H, W].
        masks: [V, H, W] bool; the mean is over their pixels.

    Returns:
        [V] decibels; at most 100 (equal images).
    """
    _check_pair(prediction, target)
    squares = _squares(prediction, target)
    error = squares.mean(dim=(1, 2, 3)) if masks is None else _masked_mean(squares.mean(dim=1), masks)  # [V]
    return _decibels(error)


def _squares(prediction: Tensor, target: Tensor) -> Tensor:  # [V, 3, H, W] float64
    difference = prediction.double().clamp(0, 1) - target.double().clamp(0, 1)  # double: a mean of 200,000 squares
    return difference.square()


def _decibels(error: Tensor) -> Tensor:
    return -10 * error.clamp_min(SMALLEST_ERROR).log10()


def _masked_mean(maps: Tensor, masks: Tensor) -> Tensor:  # [V] of [V, H, W] and bool [V, H, W]; NaN for an empty mask
    return (maps * masks).sum(dim=(1, 2)) / masks.sum(dim=(1, 2))


def ssim(prediction: Tensor, target: Tensor, masks: Tensor | None = None) -> Tensor:
    """Structural similarity of each image: scikit-image with an 11 x 11 Gaussian window on the three channels.

    Args:
        prediction: [V, 3, H, W], values as they are (the field does not clip here).
        target: [V, 3, H, W] in [0, 1].
        masks: [V, H, W] bool; the mean of the map of SSIM is over their pixels, but for the 5 at the border, which
            scikit-image leaves out of any mean.

    Returns:
        [V], 1 for equal images.

    Raises:
        ConfigurationError: an image smaller than the window.
        BadSceneError: a mask without a pixel off the border.
    """
    return _ssim_and_map(prediction, target, masks)[0]


def _ssim_and_map(prediction: Tensor, target: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
    """SSIM [V], and its map [V, H, W] up to the border, where scikit-image mirrors the image."""
    from skimage.metrics import structural_similarity

    _check_pair(prediction, target)
    if min(prediction.shape[-2:]) < SSIM_WINDOW:
        raise ConfigurationError(
            f"SSIM needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, got {tuple(prediction.shape[-2:])}"
        )
    pairs = zip(target.detach().float().cpu().numpy(), prediction.detach().float().cpu().numpy(), strict=True)
    call = {"win_size": SSIM_WINDOW, "gaussian_weights": True, "channel_axis": 0, "data_range": 1.0, "full": True}
    means, maps = zip(*(structural_similarity(*pair, **call) for pair in pairs), strict=True)
    whole = torch.stack([torch.from_numpy(one) for one in maps]).double().mean(dim=1)  # [V, H, W]
    if masks is None:
        return torch.tensor(means, dtype=torch.float64), whole
    edge = SSIM_WINDOW // 2
    inner = masks.cpu()[:, edge:-edge, edge:-edge]
    if not bool(inner.any(dim=2).any(dim=1).all()):
        raise BadSceneError(f"a mask has no pixel that is {edge} pixels or more off the border, where SSIM is measured")
    return _masked_mean(whole[:, edge:-edge, edge:-edge], inner), whole


def lpips(
    prediction: Tensor, target: Tensor, distance: LpipsDistance, batch: int = 4, masks: Tensor | None = None
) -> Tensor:
    """Perceptual distance of each image (Zhang et al. 2018).

    Args:
        prediction: [V, 3, H, W] in [0, 1]; ``distance`` scales it to [-1, 1].
        target: [V, 3, H, W] in [0, 1].
        distance: the field reports VGG.
        batch: images a pass, against memory.
        masks: [V, H, W] bool; the mean of the map of distances (each layer's enlarged bilinearly) is over their pixels.

    Returns:
        [V], 0 for equal images.
    """
    return _lpips_and_map(prediction, target, distance, masks, masks is not None, batch)[0]


def _lpips_and_map(
    prediction: Tensor, target: Tensor, distance: LpipsDistance, masks: Tensor | None, mapped: bool, batch: int = 4
) -> tuple[Tensor, Tensor]:
    """LPIPS [V], and its map [V, H, W] if that is wanted, of one pass of the network."""
    _check_pair(prediction, target)
    pairs = zip(prediction.float().split(batch), target.float().split(batch), strict=True)
    with torch.no_grad():
        if not mapped:
            return torch.cat([distance(image, truth) for image, truth in pairs]), prediction.new_zeros(0)
        values, maps = zip(*(distance.with_map(image, truth) for image, truth in pairs), strict=True)
    found = torch.cat(maps)[:, 0]
    return torch.cat(values) if masks is None else _masked_mean(found, masks), found


class MetricSuite:
    """The chosen metrics, ready to score images.

    A metric that cannot be computed here (LPIPS without its pretrained weights) is left out and listed in ``absent``
    with the reason and the remedy; there is never a number from random weights.

    Args:
        names: any of "psnr", "ssim", "lpips".
        device: where LPIPS runs.
        lpips_weights: backbone file for LPIPS; None looks in the documented places.

    Masks come in two ways. "targets" measures the masked pixels and nothing else: outside, the prediction is replaced
    by the truth, and PSNR, the map of SSIM and the map of LPIPS are averaged over the mask. "white" is how RegNeRF
    (Niemeyer et al. 2022) scores DTU, and the papers that compare with it: PSNR over the mask; SSIM and LPIPS of whole
    images that are white outside, which a small object raises.

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
        self._lpips: LpipsDistance | None = None
        self._maps: dict[str, Tensor] | None = None  # of the images that are being scored, while ``split`` wants them
        if "lpips" in names:
            from reconx_pl.metrics.lpips import LpipsDistance

            try:
                self._lpips = (
                    LpipsDistance(net="vgg", weights=lpips_weights).to(self._device).eval().requires_grad_(False)
                )
            except (MissingWeightsError, MissingDependencyError) as error:
                reason = str(error).replace(str(Path.home()), "~")  # it goes into reports that are passed on
                self.absent["lpips"] = reason if "reconx weights fetch lpips" in reason else f"{reason}; {LPIPS_REMEDY}"
        self.names = tuple(name for name in METRICS if name in names and name not in self.absent)

    def __call__(
        self, prediction: Tensor, target: Tensor, masks: Tensor | None = None, way: str = "targets"
    ) -> dict[str, Tensor]:
        """Scores of each image: metric name to [V] float64 on the CPU.

        Args:
            prediction: [V, 3, H, W].
            target: [V, 3, H, W] in [0, 1].
            masks: [V, H, W] bool, True where a target is scored; None scores all of it.
            way: "targets" or "white", see the class.

        Raises:
            BadSceneError: an image with NaN or infinite values, which no metric can judge, or an empty mask.
        """
        for what, images in (("prediction", prediction), ("target", target)):
            if not torch.isfinite(images).all():
                raise BadSceneError(f"a {what} to be scored has NaN or infinite values; nothing to measure")
        prediction, target = prediction.detach().to(self._device), target.detach().to(self._device)
        if masks is not None:
            masks = _checked_masks(masks, target).to(self._device)
            if way == "white":
                target = torch.where(masks[:, None], target, 1.0)
            prediction = torch.where(masks[:, None], prediction, target)
        averaged = masks if way == "targets" else None
        scores: dict[str, Tensor] = {}
        mapped = self._maps is not None
        for name in self.names:
            if name == "psnr":
                value, maps = psnr(prediction, target, masks), _squares(prediction, target).mean(dim=1)
            elif name == "ssim":
                value, maps = _ssim_and_map(prediction, target, averaged)
            else:
                assert self._lpips is not None
                value, maps = _lpips_and_map(prediction, target, self._lpips, averaged, mapped or averaged is not None)
            scores[name] = value.double().cpu()
            if self._maps is not None:
                self._maps[name] = maps.double().cpu()
        return scores

    def split(
        self,
        prediction: Tensor,
        target: Tensor,
        parts: Mapping[str, Tensor],
        masks: Tensor | None = None,
        way: str = "targets",
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """The scores of each image, and beside them those of parts of it.

        A part is scored with the maps of the whole image: the squared error, the map of SSIM (up to the border, where
        scikit-image mirrors the image) and the map of LPIPS are averaged over its pixels. What a window or a receptive
        field sees beyond the part counts too. What a subclass adds to the scores has no parts.

        Args:
            prediction, target, masks, way: see ``__call__``.
            parts: name to [V, H, W] bool; of a part the pixels within ``masks`` count.

        Returns:
            what ``__call__`` returns, and name to the same for each part: [V] float64, NaN where a part is empty.

        Raises:
            BadSceneError: as ``__call__``.
        """
        if not parts:
            return self(prediction, target, masks, way), {}
        maps: dict[str, Tensor] = {}
        self._maps = maps  # filled by ``__call__``: one pass of LPIPS serves both
        try:
            scores = self(prediction, target, masks, way)
        finally:
            self._maps = None
        found: dict[str, dict[str, Tensor]] = {}
        for part, pixels in parts.items():
            counted = pixels.cpu() if masks is None else pixels.cpu() & masks.cpu()
            means = {name: _masked_mean(values, counted) for name, values in maps.items()}
            found[part] = {name: _decibels(mean) if name == "psnr" else mean for name, mean in means.items()}
        return scores, found


def _checked_masks(masks: Tensor, target: Tensor) -> Tensor:
    if masks.dtype != torch.bool or masks.shape != target[:, 0].shape:
        raise ConfigurationError(
            f"masks {masks.dtype} {tuple(masks.shape)} do not go with {tuple(target.shape)} images"
        )
    if empty := [view for view in range(len(masks)) if not bool(masks[view].any())]:
        raise BadSceneError(f"the masks of targets {empty} are empty; nothing to measure")
    return masks
