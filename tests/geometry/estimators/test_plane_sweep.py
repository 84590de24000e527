"""Plane-sweep stereo on procedural scenes, whose depth is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reconx_pl.data.procedural import procedural_views
from reconx_pl.data.procedural.clip import Kind
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import crop_cameras, unproject
from reconx_pl.geometry.estimators.base import Reconstruction, has_dense_maps
from reconx_pl.geometry.estimators.plane_sweep import (
    DenseDepth,
    PlaneSweepOptions,
    agreement,
    company,
    dense_depth,
)
from reconx_pl.geometry.estimators.plane_sweep_estimator import PlaneSweepEstimator
from reconx_pl.geometry.estimators.plane_sweep_matching import box, neighbours, smoothed
from reconx_pl.geometry.point_maps import point_map_from_depth, unexplained
from reconx_pl.types import Cameras, PointCloud

TOP, LEFT, HEIGHT, WIDTH = 6, 30, 96, 128
OPTIONS = PlaneSweepOptions(planes=96)


class Scene:
    """Three views of a seed, cropped so that no principal point is in the centre, and a few exact points."""

    def __init__(self, seed: int, kind: Kind = "landscape", every: int = 97) -> None:
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
def room() -> Scene:
    return Scene(3, "room")


@pytest.fixture(scope="module")
def found(scene: Scene) -> DenseDepth:
    return dense_depth(scene.images, scene.cameras, scene.cloud, OPTIONS)


def test_depth_is_that_of_the_scene(scene: Scene, found: DenseDepth) -> None:
    error, complete = scene.errors(found)
    assert float(error.median()) < 0.025 and float(error.quantile(0.9)) < 0.2
    assert complete > 0.8
    assert found.depth.shape == found.confidence.shape == (3, HEIGHT, WIDTH)
    assert torch.equal(found.confidence > 1, found.depth > 0) and 1 <= float(found.confidence.max()) <= 3


def test_depth_is_neither_too_near_nor_too_far(room: Scene) -> None:
    """A neighbour that is sampled half a pixel aside makes everything nearer or farther, by far more than this."""
    found = dense_depth(room.images, room.cameras, room.cloud, OPTIONS)
    error, complete = room.errors(found)
    assert float(error.median()) < 0.01 and complete > 0.8
    for view in range(3):
        both = (found.depth[view] > 0) & (room.depth[view] > 0)
        assert abs(float((found.depth[view] / room.depth[view] - 1)[both].median())) < 0.004


def test_twice_the_same_numbers(scene: Scene, found: DenseDepth) -> None:
    again = dense_depth(scene.images, scene.cameras, scene.cloud, OPTIONS)
    assert torch.equal(again.depth, found.depth) and torch.equal(again.confidence, found.confidence)


def test_a_wall_in_front_of_another_camera_confirms_nothing() -> None:
    """Two cameras side by side: what the second sees is nearer than what the first claims, or half a pixel aside."""
    pose = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    pose[1, 0, 3] = -0.5
    intrinsics = torch.tensor([[20.0, 0, 13.5], [0, 24.0, 6.5], [0, 0, 1]], dtype=torch.float64).repeat(2, 1, 1)
    pair = Cameras(pose, intrinsics, 12, 24)
    depth = torch.full((2, 12, 24), 5.0)  # disparity: 20 * 0.5 / 5 = 2 pixels
    support, agreeing = agreement(depth, pair, pixels=0.5, relative=0.01)
    assert torch.equal(agreeing[0, :, 2:], torch.ones(12, 22, dtype=torch.long)) and not agreeing[0, :, :2].any()
    assert float(support[0, 5, 10]) == pytest.approx(1.0) and not agreeing[1, :, 22:].any()
    depth[1, 4, 6:10] = 2.5  # something that the first camera does not know of
    _, agreeing = agreement(depth, pair, pixels=0.5, relative=0.01)
    assert agreeing[0, 4].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0] + [1] * 12
    depth[1, 4, 6:10] = 4.9  # by 2 % wrong, 0.04 pixels: the share rules, not the pixels
    assert not agreement(depth, pair, pixels=0.5, relative=0.01)[1][0, 4, 8:12].any()
    assert agreement(depth, pair, pixels=0.5, relative=0.03)[1][0, 4, 8:12].all()
    assert not agreement(depth, pair, pixels=0.02, relative=0.03)[1][0, 4, 8:12].any()


def test_what_no_other_view_sees_has_no_depth(room: Scene) -> None:
    """Pixels whose true surface is hidden from, or outside of, every other view: without the filter nearly all have it.

    What remains are seams of the width of the window, at the edges of what hides them.
    """
    _, seen = agreement(room.depth, room.cameras.to(dtype=torch.float64), pixels=3.0, relative=0.1)
    hidden = (room.depth > 0) & (seen == 0)
    assert int(hidden.sum()) > 2000
    kept, before = (
        float((dense_depth(room.images, room.cameras, room.cloud, options).depth[hidden] > 0).float().mean())
        for options in (replace(OPTIONS, company=0), replace(OPTIONS, company=0, agreeing=0))
    )
    assert kept < 0.25 and before > 0.9


def test_a_pixel_alone_has_no_company() -> None:
    depth = torch.zeros(1, 9, 12)
    depth[0, 2, 3] = 5.0
    depth[0, 4:9, 6:11] = 4.0
    depth[0, 6, 8] = 2.0  # in the middle of a surface, and not of it
    share = company(depth, 5, 0.05)[0]
    assert float(share[2, 3]) == pytest.approx(1 / 25) and float(share[6, 8]) == pytest.approx(1 / 25)
    assert float(share[6, 9]) == pytest.approx(19 / 25) and float(share[4, 6]) == pytest.approx(9 / 25 - 1 / 25)


def test_images_without_texture_have_no_depth(scene: Scene) -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.full_like(scene.images, 0.5) + torch.randn(scene.images.shape, generator=generator) * 0.2 / 255
    plain = dense_depth(flat, scene.cameras, scene.cloud, OPTIONS)
    assert float((plain.depth > 0).float().mean()) < 0.005


def test_larger_images_get_maps_of_their_size(room: Scene) -> None:
    small = dense_depth(room.images, room.cameras, room.cloud, replace(OPTIONS, short_side=72))
    assert small.depth.shape == (3, HEIGHT, WIDTH)
    error, complete = room.errors(small)
    assert float(error.median()) < 0.0125 and complete > 0.8


def test_the_better_half_of_the_neighbours_counts(scene: Scene, found: DenseDepth) -> None:
    """One neighbour that shows something else changes little."""
    spoilt = scene.images.clone()
    spoilt[2] = spoilt[2].flip(-1)
    other = dense_depth(spoilt, scene.cameras, scene.cloud, OPTIONS)
    both = (other.depth[1] > 0) & (scene.depth[1] > 0)
    error = ((other.depth[1] - scene.depth[1]).abs() / scene.depth[1])[both]
    assert float(error.median()) < 0.03 and float(both.float().mean()) > 0.4


def test_neighbours_share_points_and_have_a_baseline(scene: Scene) -> None:
    poses = scene.cameras.world_to_camera[[0, 0, 1, 0]].clone()
    away = torch.diag(torch.tensor([-1.0, 1, -1, 1], dtype=poses.dtype))
    poses[3] = away @ poses[3]  # looks the other way
    cameras = replace(scene.cameras, world_to_camera=poses, intrinsics=scene.cameras.intrinsics[[0] * 4])
    chosen = neighbours(scene.cloud.points.to(poses), cameras, 0, 3)
    assert chosen[0] == 2 and 3 not in chosen


def test_sums_over_windows() -> None:
    values = torch.rand(2, 9, 13, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(values, (2, 2, 2, 2))
    torch.testing.assert_close(box(values, 5), padded.unfold(1, 5, 1).unfold(2, 5, 1).sum((-1, -2)))


def test_smoothing_carries_a_sure_plane_into_doubt_and_stops_at_edges() -> None:
    cost = torch.full((6, 5, 20), 0.5)
    cost[1, :, 0], cost[4, :, 19] = 0.0, 0.0  # each end of the rows is sure of its plane, between is no texture
    grey = torch.zeros(5, 20)
    grey[:, 7:] = 1.0
    at = smoothed(cost, grey, small=0.1, large=0.4, edge=0.05).argmin(0)
    assert (at[:, :7] == 1).all() and (at[:, 7:] == 4).all()


class Sparse:
    """An estimator that has points already; it takes names, and no lenses."""

    dense_maps = False

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.names: Sequence[str] | None = None

    def estimate(
        self, images: Tensor, cameras: Cameras | None = None, names: Sequence[str] | None = None
    ) -> Reconstruction:
        self.names = names
        empty = point_map_from_depth(torch.zeros_like(self.scene.depth), self.scene.cameras)
        return Reconstruction(self.scene.cameras, empty, self.scene.cloud)


def test_the_estimator_makes_another_one_dense(scene: Scene, found: DenseDepth) -> None:
    sparse = Sparse(scene)
    estimator = PlaneSweepEstimator(sparse, OPTIONS, points=2000, device="cpu")
    dense = estimator.estimate(scene.images, names=["a", "b", "c"])
    assert sparse.names == ["a", "b", "c"] and dense.cameras is scene.cameras
    assert has_dense_maps(estimator) and not has_dense_maps(sparse)
    assert torch.equal(dense.point_map.valid, found.depth > 0)
    assert torch.equal(dense.point_map.confidence, found.confidence)
    assert len(dense.cloud) == 2000
    assert "planes=96" in estimator.identity and "Sparse" in estimator.identity


def test_sparse_points_stay_where_nothing_dense_is() -> None:
    camera = Cameras(torch.eye(4)[None], torch.tensor([[[10.0, 0, 6], [0, 10.0, 4], [0, 0, 1]]]), 8, 12)
    depth = torch.full((1, 8, 12), 2.0)
    depth[..., 6:] = 0
    maps = point_map_from_depth(depth, camera)
    points = torch.tensor([[-0.5, 0, 2.02], [-0.5, 0, 1.0], [-0.9, 0, 3.0], [0.5, 0, 2.0], [0, 0, -1.0]])
    # on the surface; in the air before it; hidden behind it; beside it; behind the camera
    assert unexplained(points, maps, camera).tolist() == [False, False, True, True, True]


def test_one_view(scene: Scene) -> None:
    with pytest.raises(BadSceneError, match="two views at least, got 1"):
        dense_depth(scene.images[:1], scene.cameras[0], scene.cloud)


def test_a_cloud_behind_the_cameras(scene: Scene) -> None:
    center = scene.cameras.centers.mean(0).to(scene.cloud.points)
    behind = replace(scene.cloud, points=2 * center - scene.cloud.points)
    with pytest.raises(BadSceneError, match="see sparse points in common .* share one coordinate system"):
        dense_depth(scene.images, scene.cameras, behind, OPTIONS)


def test_cameras_of_another_size(scene: Scene) -> None:
    with pytest.raises(BadSceneError, match="96 x 128 pixels do not go with images"):
        dense_depth(scene.images.transpose(-1, -2), scene.cameras, scene.cloud)


def test_options_out_of_range() -> None:
    for wrong in ({"window": 4}, {"step": 0.0}, {"planes": 2}, {"quantile": 0.5}, {"margin": 0.9}):
        with pytest.raises(ConfigurationError):
            PlaneSweepOptions(**wrong)
