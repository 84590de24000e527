"""Depth and confidence as colours: one scale for a whole clip, so that frames can be compared."""

from __future__ import annotations

import numpy as np
from torch import Tensor

LOWEST, HIGHEST = 0.02, 0.98  # quantiles at the ends of a scale; a few stray values do not stretch it
_SAMPLE = 2_000_000  # values that a quantile is taken of


def depth_colors(depth: Tensor) -> np.ndarray:
    """Matplotlib's turbo over inverse depth: red is near, blue is far, black has no depth.

    Args:
        depth: [T, H, W] along the optical axis, world units; 0 = none.

    Returns:
        uint8 [T, H, W, 3]. The ends are the 2nd and the 98th percentile of 1 / depth over all frames.
    """
    values = depth.detach().float().cpu().numpy()
    there = values > 0
    inverse = np.divide(1.0, values, out=np.zeros_like(values), where=there)
    colors = _mapped(inverse, there, "turbo")
    colors[~there] = 0
    return colors


def confidence_colors(confidence: Tensor) -> np.ndarray:
    """Matplotlib's viridis over the logarithm of confidence: yellow is trusted, dark violet is not.

    Args:
        confidence: [T, H, W] on DUSt3R's scale, >= 1; 0 = ignored, shown as the floor.

    Returns:
        uint8 [T, H, W, 3]. The ends are the 2nd and the 98th percentile of ln C over all frames.
    """
    values = np.log(np.maximum(confidence.detach().float().cpu().numpy(), 1.0))
    return _mapped(values, np.ones_like(values, dtype=bool), "viridis")


def _mapped(values: np.ndarray, counted: np.ndarray, name: str) -> np.ndarray:
    """Colours of ``values`` [T, H, W] between the quantiles of those that count; without a spread, the lower end."""
    from matplotlib import colormaps

    sample = values[counted]
    sample = sample[:: max(1, len(sample) // _SAMPLE)]
    low, high = np.quantile(sample, [LOWEST, HIGHEST]) if len(sample) else (0.0, 0.0)
    table = colormaps[name]
    colors = np.empty((*values.shape, 3), np.uint8)
    for frame, shown in zip(values, colors, strict=True):
        share = (frame - low) / (high - low) if high > low else np.zeros_like(frame)
        shown[:] = table(np.clip(share, 0, 1), bytes=True)[..., :3]
    return colors
