"""Tiny scenes, a painter and settings that the tests of the runner share."""

from __future__ import annotations

import torch

from reconx_pl.data.procedural import procedural_clip
from reconx_pl.evaluation.runner import EvaluationConfig
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.types import Clip

QUICK = FitConfig(steps=20, loss=LossWeights(lpips=0.0))
CONFIG = EvaluationConfig(fit=QUICK, metrics=("psnr", "ssim"), media=False)
MODEL = "test painter 1"


def tiny_clip(seed: int, frames: int = 5) -> Clip:
    return procedural_clip(seed, frames=frames, size=(32, 32), points=600, kind="room")


class CrossFade:
    """Paints by blending the two views; counts its calls and remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[Clip] = []

    def paint(self, clip: Clip, generator: torch.Generator) -> torch.Tensor:
        self.seen.append(clip)
        first, last = clip.images[0], clip.images[-1]
        share = torch.linspace(0, 1, len(clip.cameras))[:, None, None, None]
        return first * (1 - share) + last * share
