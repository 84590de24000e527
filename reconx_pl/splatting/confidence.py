"""From DUSt3R's confidence to the weights C_i of the fit."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError

ConfidenceMode = Literal["mean-log", "log", "linear", "none"]
CEILING = 1e4  # confidence above it counts as this: e^9.2, far beyond what DUSt3R gives a real surface


def normalise_confidence(confidence: Tensor, mode: ConfidenceMode = "mean-log") -> Tensor:
    """Weights of the pixels with mean 1 over all frames, so that the loss keeps its scale.

    The paper multiplies each pixel's loss with DUSt3R's confidence, which is 1 + exp(x): it starts at 1 and has no
    upper bound, so that a handful of pixels can outweigh a whole frame. The paper does not say how it is tamed. Ours:

    - ``"mean-log"`` (default): 1 + ln C. No two weights differ by more than a factor of 10.2, the order is kept, and a
      pixel at the floor still counts a little: what the video model generated there is all that is known about it.
    - ``"log"``: ln C. A pixel at the floor does not count at all.
    - ``"linear"``: C itself, the letter of the paper.
    - ``"none"``: ones, the ablation without confidence.

    ``docs/splatting.md`` has what each of them measured.

    Args:
        confidence: [V, H, W], >= 1. Exactly 0 means "ignore this pixel" in every mode but ``"none"``; what lies between
            0 and 1 counts as the floor 1, what exceeds 1e4 as 1e4.
        mode: see above.

    Returns:
        [V, H, W] with mean 1. If every pixel is at the floor, the weights are uniform with ``"mean-log"`` and
        ``"linear"``.

    Raises:
        BadSceneError: NaN, infinite or negative confidence, or no pixel with a weight above 0 (all zero; with ``"log"``
            also all at the floor).
        ConfigurationError: unknown mode.
    """
    if mode == "none":
        return torch.ones_like(confidence)
    if not bool(torch.isfinite(confidence).all()) or bool((confidence < 0).any()):
        raise BadSceneError(
            "the confidence map has NaN, infinite or negative values; re-estimate it or use mode 'none'"
        )
    used = confidence > 0
    clamped = confidence.clamp(1.0, CEILING)
    if mode == "mean-log":
        weights = 1.0 + clamped.log()
    elif mode == "log":
        weights = clamped.log()
    elif mode == "linear":
        weights = clamped
    else:
        raise ConfigurationError(f"unknown confidence mode {mode!r}; choose mean-log, log, linear or none")
    weights = torch.where(used, weights, 0.0)
    mean = weights.double().mean()
    if float(mean) <= 0.0:
        raise BadSceneError(
            f"no pixel has a confidence that counts (mode {mode!r}, highest confidence {float(confidence.max()):g}); "
            "check the geometry of the scene, or fit with confidence mode 'none'"
        )
    return (weights / mean).to(confidence.dtype)
