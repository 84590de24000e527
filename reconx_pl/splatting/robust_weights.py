"""Weights for generated pixels from their agreement with the scene that all frames make together.

A mistake that one frame makes is outvoted by the others: the scene does not follow it, and the frame's structural
similarity with its own rendering stays low there. Such pixels then count less, as in iteratively reweighted least
squares. The scale is what the photographs leave over themselves, as every frame differs somewhat from its rendering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reconx_pl.errors import ConfigurationError


@dataclass(frozen=True)
class RobustWeights:
    """When generated frames are judged by the scene so far, and how strictly.

    Args:
        start: share of the steps before the first judgement.
        every: share of the steps between two.
        tolerance: times the mean of 1 - SSIM of the known views, which is where a weight has fallen to 1/e.
        floor: the least factor of a weight.
    """

    start: float = 0.3
    every: float = 0.1
    tolerance: float = 2.0
    floor: float = 0.02

    def __post_init__(self) -> None:
        if not (0 <= self.start < 1 and 0 < self.every <= 1):
            raise ConfigurationError(f"agreement needs start within [0, 1) and every within (0, 1], got {self}")
        if not (self.tolerance > 0 and 0 <= self.floor < 1):
            raise ConfigurationError(f"agreement needs a positive tolerance and a floor within [0, 1), got {self}")

    def due(self, step: int, steps: int) -> bool:
        """Whether frames are judged before this step."""
        since = step - round(self.start * steps)
        return since >= 0 and since % max(1, round(self.every * steps)) == 0

    def factors(self, similarity: Tensor, input_views: Sequence[int]) -> Tensor:
        """Factors of the weights [V, H, W] in [floor, 1]: exp(-((1 - SSIM) / scale)^2), and 1 for known views.

        Args:
            similarity: [V, H, W], SSIM of the frames with the scene as it is rendered now (``losses.ssim_map``).
            input_views: the photographs; without any, all frames give the scale.
        """
        off = 1.0 - similarity
        scale = self.tolerance * (off[list(input_views)] if input_views else off).mean().clamp(min=1e-3)
        factors = self.floor + (1.0 - self.floor) * torch.exp(-((off / scale) ** 2))
        factors[list(input_views)] = 1.0
        return factors
