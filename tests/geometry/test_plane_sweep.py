"""Plane-sweep stereo on procedural scenes, whose depth is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reconx_pl.data.procedural import procedural_views
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import crop_cameras, unproject
from reconx_pl.geometry.estimator import Reconstruction, has_dense_maps
from reconx_pl.geometry.plane_sweep import DenseDepth, PlaneSweepOptions, agreement, dense_depth
from reconx_pl.geometry.plane_sweep_estimator import PlaneSweepEstimator, unexplained
from reconx_pl.geometry.plane_sweep_matching import box, neighbours, smoothed
from reconx_pl.geometry.point_maps import point_map_from_depth
from reconx_pl.types import Cameras, PointCloud

TOP, LEFT, HEIGHT, WIDTH = 6, 30, 96, 128
OPTIONS = PlaneSweepOptions(planes=96)


class Scene:
    """Three views of a seed, cropped so that no principal point is in the centre, and a few exact points."""

    def __init__(self, seed: int, kind: str = "landscape", every: int = 97) -> None:
        frames, depth, cameras = procedural_views(seed, [0.2, 0.4, 0.6], (HEIGHT + 24, WIDTH + 40), kind=kind)
        rows, columns = slice(TOP, TOP + HEIGHT), slice(LEFT, LEFT + WIDTH)
        self.images, self.depth = frames[..., rows, columns].float() / 255, depth[..., rows, columns]
        self.cameras = crop_cameras(cameras, TOP, LEFT, HEIGHT, WIDTH)
        points = unproject(self.depth, self.cameras)[self.depth > 0][::every].float()
        self.cloud = PointCloud(points, torch.full_like(points, 0.5), torch.full((len(points),), 2.0))

    def errors(self, found: DenseDepth) -> tuple[Tensor, float]:
        """Relative errors where there is depth, and the share of the pixels that have some."""
        both = (found.depth > 0) & (self.depth > 0)
        error = ((found.depth - self.depth).abs() / self.depth)[both]
        return error, float(both.sum() / (self.depth > 0).sum())


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(5)


@pytest.fixture(scope="module")
def found(scene: Scene) -> DenseDepth:
    return dense_depth(scene.images, scene.cameras, scene.cloud, OPTIONS)


@pytest.mark.parametrize(("seed", "kind"), [(5, "landscape"), (3, "room")])
def test_depth_is_that_of_the_scene(seed: int, kind: str) -> None:
    """The median error is a fraction of a pixel; half a pixel of shift or swapped axes would be far beyond."""
    scene = Scene(seed, kind)
    found = dense_depth(scene.images, scene.cameras, scene.cloud, OPTIONS)
    error, complete = scene.errors(found)
    assert float(error.median()) < 0.02 and float(error.quantile(0.9)) < 0.15
    assert complete > 0.75
    assert found.depth.shape == found.confidence.shape == (3, HEIGHT, WIDTH)
    assert torch.equal(found.confidence > 1, found.depth > 0) and 1 <= float(found.confidence.max()) <= 3


def test_no_shift_of_half_a_pixel(scene: Scene, found: DenseDepth) -> None:
    """Where depth was found, what it predicts in another view is off by less than a quarter of a pixel in the median.

    The depth is signed: neither nearer nor farther in the median by more than a hundredth.
    """
    for view in range(3):
        both = (found.depth[view] > 0) & (scene.depth[view] > 0)
        assert abs(float((found.depth[view] / scene.depth[view] - 1)[both].median())) < 0.01


def test_twice_the_same_numbers(scene: Scene, found: DenseDepth) -> None:
    again = dense_depth(scene.images, scene.cameras, scene.cloud, OPTIONS)
    assert torch.equal(again.depth, found.depth) and torch.equal(again.confidence, found.confidence)
