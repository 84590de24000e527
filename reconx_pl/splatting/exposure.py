"""A colour transform for each frame, so that frames of other brightness or tint do not colour the scene.

The picture that is compared with frame i is A_i c + b_i, with c the rendered colour, A_i [3, 3] and b_i [3]; the scene
itself is never transformed. Where photographs are known they are the reference and their transform is the identity;
elsewhere the mean of all transforms is held at the identity, so that the scene keeps the mean of the frames' colours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from reconx_pl.errors import ConfigurationError


@dataclass(frozen=True)
class ExposureCompensation:
    """How frames may differ in colour from the scene.

    Args:
        transform: ``"channels"`` has a gain and an offset a channel, 6 numbers; ``"affine"`` has 12, which also mixes
            channels.
        rate: about what Adam moves gains and offsets by in each step that draws their frame.
        final: share of it that is left at the last step; it decays exponentially.
    """

    transform: Literal["channels", "affine"] = "channels"
    rate: float = 0.05
    final: float = 0.1

    def __post_init__(self) -> None:
        if self.transform not in ("channels", "affine"):
            raise ConfigurationError(f"exposure transform is channels or affine, not {self.transform!r}")
        if not (0 < self.rate < math.inf and 0 < self.final <= 1):
            raise ConfigurationError(f"exposure needs a positive rate and final within (0, 1], got {self}")

    def factor(self, progress: float) -> float:
        """Of the rate at a share of the steps."""
        return float(self.final**progress)


class Exposures(nn.Module):
    """The transforms [A | b] of V frames, as differences from the identity.

    One parameter a frame: Adam leaves alone the frames that a step does not draw.

    Args:
        views: number of frames.
        input_views: those that keep the identity.
        config: see ``ExposureCompensation``.
    """

    def __init__(self, views: int, input_views: set[int], config: ExposureCompensation) -> None:
        super().__init__()
        self.views = views
        self.anchored = bool(input_views)
        mask = torch.ones(3, 4)
        if config.transform == "channels":
            mask[:, :3] = torch.eye(3)
        self.register_buffer("mask", mask)
        self.register_buffer("identity", torch.eye(3, 4))
        self.differences = nn.ParameterDict(
            {str(view): nn.Parameter(torch.zeros(3, 4)) for view in range(views) if view not in input_views}
        )

    def transforms(self, views: Sequence[int]) -> Tensor:
        """[len(views), 3, 4], differentiable."""
        identity, mask = self.get_buffer("identity"), self.get_buffer("mask")
        return torch.stack(
            [
                identity + mask * self.differences[str(view)] if str(view) in self.differences else identity
                for view in views
            ]
        )

    def apply_to(self, pictures: Tensor, views: Sequence[int]) -> Tensor:
        """Pictures [len(views), 3, H, W] of the scene as those frames would show them."""
        if not any(str(view) in self.differences for view in views):
            return pictures
        matrix = self.transforms(views)
        return torch.einsum("vij,vjhw->vihw", matrix[:, :, :3], pictures) + matrix[:, :, 3, None, None]

    @torch.no_grad()
    def hold_mean(self) -> None:
        """Put the mean of all transforms back to the identity, if no frame is the reference; call it after a step."""
        if not self.anchored:
            differences = list(self.differences.values())
            mean = torch.stack(differences).mean(dim=0)
            torch._foreach_sub_(differences, [mean] * len(differences))

    @torch.no_grad()
    def result(self) -> Tensor:
        """All transforms [V, 3, 4], detached."""
        return self.transforms(range(self.views))
