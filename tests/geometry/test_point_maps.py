import pytest
import torch

from reconx_pl.data.procedural import procedural_clip
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import unproject
from reconx_pl.geometry.estimators.base import KnownDepth, KnownPoints, reprojection_confidence
from reconx_pl.geometry.farthest_point import farthest_point_order
from reconx_pl.geometry.point_maps import cloud_from_maps, neighbour_distance
from reconx_pl.geometry.rendering.cloud_view import view_cloud
from reconx_pl.types import Clip, PointCloud, PointMap


@pytest.fixture(scope="module")
def clip() -> Clip:
    return procedural_clip(3, frames=5, size=(96, 96), kind="room")


def flat_map(views: int = 2, size: int = 20) -> tuple[PointMap, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(views, size, size, 3, generator=generator)
    confidence = 1 + 9 * torch.rand(views, size, size, generator=generator)
    images = points.permute(0, 3, 1, 2).clone()  # colour = position, so that a mix-up shows
    return PointMap(points, confidence, torch.ones(views, size, size, dtype=torch.bool)), images


def test_cloud_keeps_points_colours_and_confidence_together() -> None:
    point_map, images = flat_map()
    cloud = cloud_from_maps(point_map, images, 150, generator=torch.Generator().manual_seed(1))
    assert len(cloud) == 150
    assert torch.equal(cloud.points, cloud.colors)
    match = (cloud.points[:, None] == point_map.points.reshape(1, -1, 3)).all(-1).nonzero()[:, 1]
    assert torch.equal(cloud.confidence, point_map.confidence.flatten()[match])
    assert torch.equal(farthest_point_order(cloud.points, 150), torch.arange(150))


def test_cloud_leaves_out_invalid_and_doubtful_pixels() -> None:
    point_map, images = flat_map()
    point_map.valid[0] = False
    cloud = cloud_from_maps(point_map, images, 1000, min_confidence=4.0)
    assert len(cloud) == int((point_map.confidence[1] >= 4).sum())  # fewer than asked for, never padded
    assert cloud.confidence.min() >= 4


def test_cloud_thins_by_its_generator_alone() -> None:
    point_map, images = flat_map()
    a = cloud_from_maps(point_map, images, 50, generator=torch.Generator().manual_seed(1))
    b = cloud_from_maps(point_map, images, 50, generator=torch.Generator().manual_seed(1))
    c = cloud_from_maps(point_map, images, 50, generator=torch.Generator().manual_seed(2))
    assert torch.equal(a.points, b.points) and not torch.equal(a.points, c.points)


def test_cloud_of_nothing_is_an_error() -> None:
    point_map, images = flat_map()
    with pytest.raises(BadSceneError, match="lower min_confidence"):
        cloud_from_maps(point_map, images, 10, min_confidence=100.0)
    with pytest.raises(ConfigurationError, match="do not go with"):
        cloud_from_maps(point_map, images[:1], 10)


def test_neighbour_distance_of_a_lattice() -> None:
    axis = torch.arange(4.0) * 0.5
    lattice = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    torch.testing.assert_close(neighbour_distance(lattice), torch.full((64,), 0.5))
    assert neighbour_distance(lattice[:1]).tolist() == [0.0]


def test_known_depth_gives_back_depth_and_a_cloud(clip: Clip) -> None:
    assert clip.depth is not None
    ends, images = clip.cameras[[0, 4]], clip.images[[0, 4]]
    depth = clip.depth.clone()
    depth[0, :10] = 0
    depth[1, 0, 0] = float("nan")
    result = KnownDepth(depth, points=300).estimate(images, ends)
    assert not result.point_map.valid[0, :10].any() and not result.point_map.valid[1, 0, 0]
    assert (result.point_map.points[~result.point_map.valid] == 0).all()
    assert (result.point_map.confidence[~result.point_map.valid] == 1).all()
    assert torch.isfinite(result.point_map.points).all()
    torch.testing.assert_close(result.point_map.points[1, 5:], unproject(clip.depth, ends)[1, 5:])
    assert len(result.cloud) == 300


def test_known_points_gives_maps_near_the_true_ones(clip: Clip) -> None:
    assert clip.depth is not None and clip.cloud is not None
    ends, images = clip.cameras[[0, 4]], clip.images[[0, 4]]
    result = KnownPoints(clip.cloud).estimate(images, ends)
    valid = result.point_map.valid
    assert valid.float().mean() > 0.95
    error = (result.point_map.points - unproject(clip.depth, ends)).norm(dim=-1)[valid]
    assert error.median() < 0.02  # metres, in a room of about 8
    assert result.cloud is clip.cloud


def test_estimators_name_the_remedy(clip: Clip) -> None:
    assert clip.depth is not None and clip.cloud is not None
    images = clip.images[[0, 4]]
    with pytest.raises(BadSceneError, match="pass cameras"):
        KnownDepth(clip.depth).estimate(images)
    with pytest.raises(BadSceneError, match="pass cameras"):
        KnownPoints(clip.cloud).estimate(images)
    with pytest.raises(BadSceneError, match="resize or crop both"):
        KnownDepth(clip.depth).estimate(images[:, :, ::2], clip.cameras[[0, 4]])
    with pytest.raises(BadSceneError, match="one depth map a view"):
        KnownDepth(clip.depth[:1]).estimate(images, clip.cameras[[0, 4]])
    away = PointCloud(clip.cloud.points - torch.tensor([0, 0, 1e4]), clip.cloud.colors, clip.cloud.confidence)
    with pytest.raises(BadSceneError, match="coordinate system"):
        KnownPoints(away).estimate(images, clip.cameras[[0, 4]])


def test_confidence_of_true_frames_is_high_and_falls_where_a_patch_is_wrong(clip: Clip) -> None:
    assert clip.cloud is not None
    images = clip.images
    clean = reprojection_confidence(images, clip.cameras, clip.cloud)
    assert clean.shape == (5, 96, 96) and clean.min() >= 1
    assert clean.median() > 5
    wrong = images.clone()
    wrong[2, :, 30:50, 40:70] = 1 - wrong[2, :, 30:50, 40:70]
    doubt = reprojection_confidence(wrong, clip.cameras, clip.cloud)
    assert doubt[2, 32:48, 42:68].mean() < 0.5 * clean[2, 32:48, 42:68].mean()
    untouched = torch.ones_like(doubt, dtype=torch.bool)
    untouched[2, 28:52, 38:72] = False
    torch.testing.assert_close(doubt[untouched], clean[untouched])


def test_confidence_is_the_floor_where_nothing_projects(clip: Clip) -> None:
    assert clip.cloud is not None
    left = clip.cloud[clip.cloud.points[:, 0] < clip.cloud.points[:, 0].median()]
    confidence = reprojection_confidence(clip.images, clip.cameras, left)
    covered = view_cloud(left, clip.cameras).covered
    assert 0.1 < covered.float().mean() < 0.9
    assert (confidence[~covered] == 1).all() and confidence[covered].mean() > 3
