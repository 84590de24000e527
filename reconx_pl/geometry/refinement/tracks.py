"""Matches to tracks, and tracks to points: what a bundle adjustment starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from reconx_pl.geometry.refinement.matching import Features, Matches
from reconx_pl.types import Cameras


@dataclass(frozen=True)
class Tracks:
    """M observations of P points in V views, in the order of the points.

    Args:
        views: [M] view of each observation.
        points: [M] its point, ascending from 0 to P - 1.
        pixels: [M, 2] where it is seen, corner of the image at (0, 0).
    """

    views: np.ndarray
    points: np.ndarray
    pixels: np.ndarray

    def __len__(self) -> int:
        return int(self.points[-1]) + 1 if len(self.points) else 0

    def kept(self, keep: np.ndarray) -> tuple[Tracks, np.ndarray]:
        """Those observations [M] bool whose point keeps two at least, and the old numbers of the points left."""
        keep = keep & (np.bincount(self.points, keep, len(self)) >= 2)[self.points]
        left, numbers = np.unique(self.points[keep], return_inverse=True)
        return replace(self, views=self.views[keep], points=numbers, pixels=self.pixels[keep]), left


def tracks_of(matches: Matches, features: Features) -> Tracks:
    """Features that match each other, directly or through others, as observations of one point.

    A point that would be at two places in one view holds a wrong match, and is left out.
    """
    views = len(features.pixels)
    first = np.cumsum([0] + [len(pixels) for pixels in features.pixels])
    edges = np.concatenate([found + (first[i], first[j]) for (i, j), found in matches.items()])
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(first[-1], first[-1]))
    part = connected_components(graph, directed=False)[1]
    nodes = np.unique(edges)
    nodes = nodes[np.argsort(part[nodes], kind="stable")]
    of_view = np.searchsorted(first, nodes, side="right") - 1
    _, points = np.unique(part[nodes], return_inverse=True)
    place, times = np.unique(points * views + of_view, return_counts=True)
    twice = np.unique(place[times > 1] // views)
    all_pixels = np.concatenate([pixels.double().numpy() for pixels in features.pixels])
    return Tracks(of_view, points, all_pixels[nodes]).kept(~np.isin(points, twice))[0]


def points_of_depth(tracks: Tracks, cameras: Cameras, depth: Tensor) -> np.ndarray:
    """World points [P, 3]: the mean of where the depth of the views puts them; NaN where none has depth.

    Args:
        tracks: of V views.
        cameras: V views of H x W pixels.
        depth: [V, H, W] along the optical axis, world units; 0 = none.
    """
    z = depth_at(tracks, depth)
    pose = cameras.world_to_camera.double().numpy()[tracks.views]
    in_camera = _rays(tracks, cameras) * z[:, None]
    world = np.einsum("mji,mj->mi", pose[:, :3, :3], in_camera - pose[:, :3, 3])
    total = np.zeros((len(tracks), 3))
    np.add.at(total, tracks.points[z > 0], world[z > 0])
    count = np.bincount(tracks.points, z > 0, len(tracks))
    return total / np.where(count > 0, count, np.nan)[:, None]


def triangulated(tracks: Tracks, cameras: Cameras) -> np.ndarray:
    """World points [P, 3] by the direct linear transform (Hartley and Zisserman, 12.2), on rays of equal weight."""
    pose = cameras.world_to_camera.double().numpy()[tracks.views]
    rays = _rays(tracks, cameras)
    rows = pose[:, :2] - rays[:, :2, None] * pose[:, 2:3]  # [M, 2, 4], zero against the homogeneous point
    normal = np.zeros((len(tracks), 4, 4))
    np.add.at(normal, tracks.points, np.einsum("mra,mrb->mab", rows, rows))
    smallest = np.linalg.eigh(normal)[1][:, :, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        return smallest[:, :3] / smallest[:, 3:]


def depth_at(tracks: Tracks, depth: Tensor) -> np.ndarray:
    """Depth [M] of maps [V, H, W] at the pixel of each observation, 0 where there is none."""
    height, width = depth.shape[1:]
    column, row = (np.clip(tracks.pixels[:, at].astype(int), 0, size - 1) for at, size in enumerate((width, height)))
    found = depth.double().numpy()[tracks.views, row, column]
    return np.where(np.isfinite(found), found, 0.0)


def reprojection(tracks: Tracks, cameras: Cameras, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each observation the distance of its point in pixels, infinite behind the camera, and the depth: [M] both."""
    pose = cameras.world_to_camera.double().numpy()[tracks.views]
    seen = np.einsum("mij,mj->mi", pose[:, :3, :3], points[tracks.points]) + pose[:, :3, 3]
    there = np.einsum("mij,mj->mi", cameras.intrinsics.double().numpy()[tracks.views], seen)
    before = seen[:, 2] > 0  # not where NaN
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.linalg.norm(there[:, :2] / there[:, 2:] - tracks.pixels, axis=1)
    return np.where(before, error, np.inf), np.where(before, seen[:, 2], 0.0)


def parallax(tracks: Tracks, cameras: Cameras, points: np.ndarray) -> np.ndarray:
    """The largest angle between two rays of each point, roughly: twice the largest from their mean; [P] degrees."""
    centers = cameras.centers.double().numpy()[tracks.views]
    toward = centers - points[tracks.points]
    toward /= np.linalg.norm(toward, axis=1, keepdims=True)
    mean = np.zeros((len(tracks), 3))
    np.add.at(mean, tracks.points, toward)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    angle = np.degrees(np.arccos(np.clip((toward * mean[tracks.points]).sum(1), -1, 1)))
    widest = np.zeros(len(tracks))
    np.maximum.at(widest, tracks.points, angle)
    return 2 * widest


def _rays(tracks: Tracks, cameras: Cameras) -> np.ndarray:  # [M, 3] in camera axes, z = 1
    inverse = np.linalg.inv(cameras.intrinsics.double().numpy())[tracks.views]
    pixels = np.concatenate([tracks.pixels, np.ones((len(tracks.pixels), 1))], axis=1)
    rays = np.einsum("mij,mj->mi", inverse, pixels)
    return rays / rays[:, 2:]
