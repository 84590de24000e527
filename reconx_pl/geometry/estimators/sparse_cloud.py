"""Clouds of structure from motion, and how far their points are trusted."""

from __future__ import annotations

import numpy as np
import torch

from reconx_pl.types import PointCloud


def sfm_cloud(points: np.ndarray, colors: np.ndarray, track: np.ndarray, error: np.ndarray) -> PointCloud:
    """Cloud of a structure-from-motion model: points [N, 3], colors [N, 3] uint8, views a point [N], error [N] pixels.

    Confidence is 1 + (track - 1) / (1 + error^2): a point gains with every view after its first, weighed by Cauchy's
    robust weight of its mean reprojection error, and never falls below DUSt3R's floor of 1. (ours) It is DUSt3R's
    1 + exp(x) with x = log(track - 1) - log(1 + error^2).
    """
    views = np.maximum(np.asarray(track, dtype=np.float64) - 1.0, 0.0)
    residual = np.nan_to_num(np.asarray(error, dtype=np.float64), nan=np.inf, posinf=np.inf)
    confidence = 1.0 + views / (1.0 + np.where(np.isfinite(residual), residual, 1e6) ** 2)
    keep = np.isfinite(points).all(axis=1)
    return PointCloud(
        torch.from_numpy(np.ascontiguousarray(points[keep], dtype=np.float32)),
        torch.from_numpy(np.ascontiguousarray(colors[keep], dtype=np.float32) / 255.0),
        torch.from_numpy(confidence[keep].astype(np.float32)),
    )
