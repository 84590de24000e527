"""LPIPS with real weights: the `lpips` package's heads on a backbone loaded from a file.

Zhang et al. 2018. Images are [V, 3, H, W] in [0, 1] and are scaled to [-1, 1] inside, as the benchmark papers do.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reconx_pl.errors import BadWeightsError, ConfigurationError, MissingDependencyError
from reconx_pl.metrics.lpips_weights import Net, find_backbone, load_backbone

_LOG = logging.getLogger(__name__)
MIN_SIZE = {"vgg": 16, "alex": 31}  # pixels a side; below it a pooling layer has nothing left


@dataclass(frozen=True)
class TargetFeatures:
    """What LPIPS needs to know about a target: unit-length features of each layer [V, C_l, h_l, w_l], and its size."""

    layers: tuple[Tensor, ...]
    height: int
    width: int

    def __getitem__(self, views: Tensor | slice | list[int]) -> TargetFeatures:
        return TargetFeatures(tuple(layer[views] for layer in self.layers), self.height, self.width)

    @property
    def bytes(self) -> int:
        return sum(layer.numel() * layer.element_size() for layer in self.layers)


class LpipsDistance(nn.Module):
    """Learned perceptual distance between images in [0, 1]; frozen, differentiable by the prediction.

    Args:
        net: ``"vgg"`` (the score that the field reports) or ``"alex"`` (twelve times cheaper, good for a loss).
        weights: file or folder of the backbone; None = searched as ``find_backbone`` says.

    Raises:
        MissingWeightsError: no backbone found; the message has the command that gets it.
        BadWeightsError: a file that does not fit, with the keys that are missing or unexpected.
    """

    def __init__(self, net: Net = "vgg", weights: str | Path | None = None) -> None:
        super().__init__()
        if net not in MIN_SIZE:
            raise ConfigurationError(f"LPIPS net must be 'vgg' or 'alex', got {net!r}")
        path = find_backbone(net, weights)
        self.net = net
        self.lpips: Any = _build(net, load_backbone(net, path), path)
        _LOG.info("LPIPS (%s) uses %s", net, path)

    def features(self, images: Tensor) -> TargetFeatures:
        """Features of images [V, 3, H, W] in [0, 1]; keep them for targets that are compared again and again.

        Raises:
            ConfigurationError: the images are too small for the network.
        """
        with torch.no_grad():
            return TargetFeatures(self._layers(images), images.shape[-2], images.shape[-1])

    def forward(
        self,
        prediction: Tensor,
        target: Tensor | TargetFeatures,
        *,
        weights: Tensor | None = None,
        spatial: bool = False,
    ) -> Tensor:
        """Distance of every pair.

        Args:
            prediction: [V, 3, H, W] in [0, 1].
            target: [V, 3, H, W] in [0, 1], or ``features`` of it.
            weights: [V, H, W], multiplies each layer's distance map at that layer's resolution.
            spatial: return a map instead of its mean.

        Returns:
            [V]; with ``spatial`` [V, 1, H, W], each layer's map enlarged bilinearly and summed, as ``lpips`` does.

        Raises:
            ConfigurationError: the sizes differ, or are too small for the network.
        """
        maps = self._maps(prediction, target)
        if weights is not None:
            maps = [m * F.adaptive_avg_pool2d(weights[:, None], (m.shape[-2], m.shape[-1])) for m in maps]
        return _enlarged(maps, prediction) if spatial else _mean(maps)

    def with_map(self, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Distance [V] and map [V, 1, H, W] of every pair, as two calls would give them, of one pass of the network.

        Args:
            prediction, target: [V, 3, H, W] in [0, 1].
        """
        maps = self._maps(prediction, target)
        return _mean(maps), _enlarged(maps, prediction)

    def _maps(self, prediction: Tensor, target: Tensor | TargetFeatures) -> list[Tensor]:
        """Distances of each layer: [V, 1, h, w]."""
        known = target if isinstance(target, TargetFeatures) else self.features(target)
        size = (prediction.shape[-2], prediction.shape[-1])
        if size != (known.height, known.width):
            raise ConfigurationError(f"LPIPS of images of different sizes: {size} and {(known.height, known.width)}")
        return [
            head((layer - reference) ** 2)
            for head, layer, reference in zip(self.lpips.lins, self._layers(prediction), known.layers, strict=True)
        ]

    def _layers(self, images: Tensor) -> tuple[Tensor, ...]:
        smallest = MIN_SIZE[self.net]
        if min(images.shape[-2:]) < smallest:
            raise ConfigurationError(
                f"LPIPS ({self.net}) needs images of at least {smallest} x {smallest} pixels, got {tuple(images.shape)}"
            )
        outputs = self.lpips.net(self.lpips.scaling_layer(2.0 * images - 1.0))
        # The floor under the root keeps its slope finite where a feature vector is exactly zero.
        norms = [x.square().sum(dim=1, keepdim=True).clamp(min=1e-20).sqrt() for x in outputs]
        return tuple(x / (norm + 1e-10) for x, norm in zip(outputs, norms, strict=True))

    def train(self, mode: bool = True) -> LpipsDistance:
        """Stay in evaluation mode: the heads contain dropout, and a distance that is random is none."""
        return super().train(False)


def _mean(maps: list[Tensor]) -> Tensor:  # [V]
    return torch.stack([m.mean(dim=(1, 2, 3)) for m in maps]).sum(dim=0)


def _enlarged(maps: list[Tensor], images: Tensor) -> Tensor:  # [V, 1, H, W]
    enlarged = [F.interpolate(m, size=images.shape[-2:], mode="bilinear", align_corners=False) for m in maps]
    return torch.stack(enlarged).sum(dim=0)


def _build(net: Literal["vgg", "alex"], backbone: dict[str, Tensor], path: Path) -> nn.Module:
    """The package's module on the meta device (no random initialisation, no download), filled from the two files.

    Raises:
        MissingDependencyError: lpips or torchvision is not installed.
        BadWeightsError: keys or shapes do not fit.
    """
    try:
        import lpips
    except ImportError as error:
        raise MissingDependencyError(
            f"LPIPS needs lpips and torchvision ({error}): pip install lpips torchvision"
        ) from error
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the package calls torchvision in its old way
        module = lpips.LPIPS(pretrained=False, net=net, pnet_rand=True, verbose=False)
    module.scaling_layer = lpips.ScalingLayer()  # constants, which meta tensors do not hold
    heads_file = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    state: dict[str, Tensor] = torch.load(heads_file, map_location="cpu", weights_only=True)
    state |= {f"scaling_layer.{name}": value for name, value in module.scaling_layer.state_dict().items()}
    for name in module.net.state_dict():  # sliceK.N.weight, N as in torchvision's features.N.weight
        source = "features." + name.split(".", 1)[1]
        if source not in backbone:
            raise BadWeightsError(
                f"{path}: key {source} is missing; fetch the backbone anew with `reconx weights fetch lpips`"
            )
        state[f"net.{name}"] = backbone[source]
    # The package registers every head twice, as an attribute and in a list.
    state |= {f"lins.{name[3]}.{name[5:]}": value for name, value in state.items() if name.startswith("lin")}
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise BadWeightsError(f"{path} or {heads_file} does not fit LPIPS ({net}): {error}") from error
    return module.requires_grad_(False).eval()
