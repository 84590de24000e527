"""Which points of maps and clouds a fit starts from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.splatting.points import PointsConfig, fill, points_from_maps, select_points, thin
from reconx_pl.types import PointCloud, PointMap


def _maps(views: int = 3, size: int = 4) -> tuple[PointMap, torch.Tensor]:
    """Point (view, row, column) everywhere; confidence 1 + column; the first pixel of each view is not valid."""
    grid = torch.stack(
        torch.meshgrid(torch.arange(views), torch.arange(size), torch.arange(size), indexing="ij"), -1
    ).float()
    valid = torch.ones(views, size, size, dtype=torch.bool)
    valid[:, 0, 0] = False
    images = grid.permute(0, 3, 1, 2) / 10
    return PointMap(grid, 1 + grid[..., 2], valid), images


def _cloud(count: int, seed: int = 0) -> PointCloud:
    g = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 3, generator=g)
    return PointCloud(points, torch.rand(count, 3, generator=g), 1 + torch.rand(count, generator=g))


def test_the_ends_give_the_points_of_the_first_and_the_last_frame() -> None:
    maps, images = _maps()
    cloud = points_from_maps(maps, images)
    assert sorted(set(cloud.points[:, 0].tolist())) == [0.0, 2.0]
    assert len(cloud) == 2 * 15
    assert torch.equal(cloud.colors, cloud.points / 10)
    assert torch.equal(cloud.confidence, 1 + cloud.points[:, 2])


def test_all_frames_give_their_points() -> None:
    maps, images = _maps()
    assert len(points_from_maps(maps, images, PointsConfig(views="all"))) == 3 * 15


def test_doubtful_points_are_left_out() -> None:
    maps, images = _maps()
    cloud = points_from_maps(maps, images, PointsConfig(min_confidence=3.0))
    assert sorted(set(cloud.points[:, 2].tolist())) == [2.0, 3.0]


def test_random_thinning_keeps_exactly_the_budget_in_order_and_is_seeded() -> None:
    cloud = _cloud(1000)
    one, two = thin(cloud, 100), thin(cloud, 100)
    assert len(one) == 100
    assert torch.equal(one.points, two.points)
    rows = [int((cloud.points == point).all(dim=1).nonzero()) for point in one.points]
    assert rows == sorted(set(rows))
    other = thin(cloud, 100, generator=torch.Generator().manual_seed(7))
    assert not torch.equal(one.points, other.points)


def test_voxels_keep_the_most_confident_point_of_every_cell() -> None:
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)  # 8 clusters far apart
    points = corners.repeat_interleave(10, dim=0) + 1e-3 * torch.rand(80, 3, generator=torch.Generator().manual_seed(0))
    confidence = torch.arange(80.0) % 10 + 1
    thinned = thin(PointCloud(points, points.clamp(0, 1), confidence), 8, "voxel")
    assert len(thinned) == 8
    assert torch.equal(thinned.confidence, torch.full((8,), 10.0))
    assert torch.equal(thinned.points.round(), corners)


def test_voxels_use_most_of_the_budget_and_spread_points_more_evenly_than_chance() -> None:
    near = torch.randn(9000, 3, generator=torch.Generator().manual_seed(0)) * 0.05
    far = torch.randn(1000, 3, generator=torch.Generator().manual_seed(1)) * 2 + 10
    cloud = PointCloud(torch.cat([near, far]), torch.zeros(10000, 3), torch.ones(10000))
    voxel, random = thin(cloud, 500, "voxel"), thin(cloud, 500)
    assert 450 <= len(voxel) <= 500

    def share_far(part: PointCloud) -> float:
        return float((part.points[:, 0] > 3).float().mean())

    assert share_far(random) < 0.2 < 0.8 < share_far(voxel)


def test_coinciding_points_are_one_voxel() -> None:
    same = PointCloud(torch.ones(50, 3), torch.ones(50, 3), torch.ones(50))
    assert len(thin(same, 10, "voxel")) == 1


def test_filling_puts_points_between_near_neighbours_and_not_across_a_gap() -> None:
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0))
    plane = torch.cat([grid, torch.zeros(25, 1)], dim=1)
    xyz = torch.cat([plane, plane + torch.tensor([0.0, 0.0, 40.0])])  # two walls, far apart
    colors = torch.cat([torch.zeros(25, 3), torch.ones(25, 3)])
    cloud = PointCloud(xyz, colors, torch.arange(50.0) + 1)
    filled = fill(cloud, 120)
    assert len(filled) == 120
    assert torch.equal(filled.points[:50], xyz)
    added = filled.points[50:]
    assert set(added[:, 2].tolist()) == {0.0, 40.0}  # on the walls, none between
    assert torch.equal(filled.colors[50:], (added[:, 2:] / 40).expand(-1, 3))
    nearest = torch.cdist(added, xyz).amin(dim=1)
    assert float(nearest.max()) <= 0.75 and float(nearest.min()) > 0.2
    assert float(filled.confidence[50:].max()) < 50.0  # the lower one of a pair


def test_what_cannot_be_filled_stays_as_it_is() -> None:
    cloud = _cloud(100)
    assert len(fill(cloud, 100)) == 100
    same = PointCloud(torch.ones(5, 3), torch.ones(5, 3), torch.ones(5))
    assert len(fill(same, 10)) == 5
    assert len(select_points(_cloud(40), PointsConfig(at_least=90))) == 90


def test_bad_clouds_are_refused_with_the_remedy() -> None:
    cloud = _cloud(10)
    with pytest.raises(BadSceneError, match="no points"):
        select_points(cloud[:0])
    broken = cloud.points.clone()
    broken[3, 1] = float("nan")
    with pytest.raises(BadSceneError, match="1 of 10 points have NaN"):
        select_points(PointCloud(broken, cloud.colors, cloud.confidence))
    with pytest.raises(BadSceneError, match="lower min_confidence"):
        select_points(cloud, PointsConfig(min_confidence=50.0))
    maps, images = _maps()
    with pytest.raises(ConfigurationError, match="do not go with point maps"):
        points_from_maps(maps, images[:2])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"views": "some"}, "views"),
        ({"thinning": "grid"}, "thinning"),
        ({"budget": 3}, "budget"),
        ({"at_least": 300_000}, "at_least"),
        ({"min_confidence": float("nan")}, "min_confidence"),
    ],
)
def test_contradicting_settings_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        PointsConfig(**options)
