"""Matches of SIFT features between views whose poses are known roughly, or well."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reconx_pl.geometry.cameras import fundamental_matrix
from reconx_pl.geometry.estimators.colmap_matches import (
    MIN_MATCHES,
    ImageMatches,
    descriptor_distances,
    load_pycolmap,
    mutual_matches,
    sampson_distances,
)
from reconx_pl.geometry.view_order import pair_costs
from reconx_pl.types import Cameras, PointCloud, Progress

Matches = dict[tuple[int, int], np.ndarray]  # views (i, j), i < j -> [M, 2] numbers of features in i and in j
# (ours) Of matches in a band around the lines. Chance puts about one in ten near the epipolar lines of one motion, and
# more where that motion is the best of many.
_LEAST_SHARE = 0.25


@dataclass(frozen=True)
class Features:
    """SIFT features of V views: pixels [N, 2] each, corner of the image at (0, 0), and descriptors [N, 128]."""

    pixels: list[Tensor]
    descriptors: list[Tensor]


def find_features(images: Tensor, most: int, folder: Path, seed: int) -> Features:
    """Features of images [V, 3, H, W] in [0, 1], at most so many in each; files go to an empty ``folder``."""
    found = ImageMatches(folder, images, seed, threads=1)
    found.extract(most, "PINHOLE")
    return Features(*found.features())


def likely_pairs(cameras: Cameras, cloud: PointCloud, neighbours: int) -> list[tuple[int, int]]:
    """Every view with those that are nearest to it (``pair_costs``), each pair once, in order."""
    costs = pair_costs(cameras, cloud)
    costs.fill_diagonal_(torch.inf)
    nearest = costs.argsort(dim=1, stable=True)[:, : min(neighbours, len(cameras) - 1)].tolist()
    return sorted({(min(i, j), max(i, j)) for i, others in enumerate(nearest) for j in others})


def rough_matches(
    features: Features,
    cameras: Cameras,
    pairs: Sequence[tuple[int, int]],
    degrees: float,
    seed: int,
    progress: Progress | None = None,
) -> Matches:
    """Matches in a wide band around the epipolar lines of rough cameras that agree with one exact motion.

    The band leaves a feature fewer rivals than the whole image; the motion is found by RANSAC (COLMAP's two-view
    geometry), whatever the rough poses say.

    Args:
        features: of V views.
        cameras: V views, roughly.
        pairs: of views to match.
        degrees: half the width of the band.
        seed: of RANSAC.
        progress: counts the pairs.
    """
    colmap = load_pycolmap()
    options = colmap.TwoViewGeometryOptions()
    options.ransac.random_seed, options.min_inlier_ratio = seed, _LEAST_SHARE
    pinholes = [pinhole(cameras, view, view + 1) for view in range(len(cameras))]
    points = [pixels.double().numpy() for pixels in features.pixels]
    found: Matches = {}
    for done, (i, j) in enumerate(pairs, start=1):
        focal = float(cameras.intrinsics[[i, j], [0, 0], [0, 0]].mean())
        _, along = _along_lines(features, cameras, i, j, focal * math.tan(math.radians(degrees)))
        geometry = colmap.estimate_calibrated_two_view_geometry(
            pinholes[i], points[i], pinholes[j], points[j], along.astype(np.uint32), options
        )
        if len(geometry.inlier_matches) >= MIN_MATCHES:
            found[i, j] = geometry.inlier_matches.astype(np.int64)
        if progress is not None:
            progress("matching photographs", done, len(pairs))
    return found


def close_matches(features: Features, cameras: Cameras, pairs: Iterable[tuple[int, int]], max_error: float) -> Matches:
    """Matches along the epipolar lines of good cameras, as ``ImageMatches.match_by_poses`` finds them.

    Args:
        features: of V views.
        cameras: V views.
        pairs: of views to match; left out where fewer than MIN_MATCHES of the matches found anywhere lie on the lines.
        max_error: Sampson distance of a match, pixels.
    """
    found: Matches = {}
    for i, j in pairs:
        agreeing, along = _along_lines(features, cameras, i, j, max_error)
        if agreeing >= MIN_MATCHES:
            found[i, j] = along
    return found


def pinhole(cameras: Cameras, view: int, number: int) -> object:
    """COLMAP's camera of a view, under a number."""
    matrix = cameras.intrinsics[view].double()
    return load_pycolmap().Camera(
        model="PINHOLE", width=cameras.width, height=cameras.height, camera_id=number,
        params=[float(matrix[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2))],
    )  # fmt: skip


def _along_lines(features: Features, cameras: Cameras, i: int, j: int, pixels: float) -> tuple[int, np.ndarray]:
    """How many matches found anywhere lie near the epipolar lines, and the matches [M, 2] found there."""
    apart = descriptor_distances(features.descriptors[i], features.descriptors[j])
    matrix = fundamental_matrix(cameras, i, j)
    beside = sampson_distances(matrix, features.pixels[i], features.pixels[j]) > pixels
    x, y = mutual_matches(apart)
    agreeing = int((~beside[x, y]).sum())
    return agreeing, torch.stack(mutual_matches(apart.masked_fill_(beside, torch.inf)), 1).numpy()
