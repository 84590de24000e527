import math
from dataclasses import replace

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import project, unproject
from reconx_pl.geometry.estimators.base import Reconstruction
from reconx_pl.geometry.procrustes import Similarity
from reconx_pl.geometry.similarity import align, alignment_quality, fit_cameras
from reconx_pl.types import AlignmentQuality, Cameras, PointCloud, PointMap

MOVE = Similarity(
    torch.tensor(2.5, dtype=torch.float64),
    torch.from_numpy(Rotation.from_rotvec([0.7, -1.9, 0.4]).as_matrix()),
    torch.tensor([3.0, -1.0, 7.0], dtype=torch.float64),
)


def cameras(views: int, layout: str = "free", seed: int = 0) -> Cameras:
    """Cameras of no special orientation; with the layout "line" their centres are collinear."""
    generator = torch.Generator().manual_seed(seed)
    turns = torch.randn(views, 3, generator=generator, dtype=torch.float64)
    rotation = torch.from_numpy(Rotation.from_rotvec(turns.numpy()).as_matrix())
    centers = torch.randn(views, 3, generator=generator, dtype=torch.float64)
    if layout == "line":
        centers = torch.linspace(-1, 2, views)[:, None].double() * torch.tensor([1.0, 2.0, -0.5]).double() + 0.3
    return posed(rotation, centers)


def posed(rotation: Tensor, centers: Tensor) -> Cameras:
    pose = torch.eye(4, dtype=torch.float64).repeat(len(rotation), 1, 1)
    pose[:, :3, :3] = rotation
    pose[:, :3, 3] = -(rotation @ centers[..., None]).squeeze(-1)
    intrinsics = torch.tensor([[20.0, 0, 8.0], [0, 20.0, 6.0], [0, 0, 1]], dtype=torch.float64)
    return Cameras(pose, intrinsics.expand(len(rotation), 3, 3), 12, 16)


def turned(source: Cameras, degrees: float, view: int) -> Cameras:
    """One camera turned about its own centre."""
    turn = torch.from_numpy(Rotation.from_rotvec([0, math.radians(degrees), 0]).as_matrix())
    rotation = source.world_to_camera[:, :3, :3].clone()
    rotation[view] = turn @ rotation[view]
    return posed(rotation, source.centers)


@pytest.mark.parametrize("layout", ["free", "line"])
@pytest.mark.parametrize("views", [2, 3, 9])
def test_a_moved_world_is_found_again(views: int, layout: str) -> None:
    source = cameras(views, layout)
    found = fit_cameras(source, MOVE.transform_cameras(source))
    torch.testing.assert_close(found.scale, MOVE.scale)
    torch.testing.assert_close(found.rotation, MOVE.rotation)
    torch.testing.assert_close(found.translation, MOVE.translation)


def test_everything_of_a_reconstruction_moves_together() -> None:
    source = cameras(3)
    depth = 2 + torch.rand(3, 12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    valid = depth > 2.2
    points = torch.where(valid[..., None], unproject(depth, source), 0.0)
    cloud = PointCloud(points[valid], points[valid].clamp(0, 1), depth[valid])
    target = MOVE.transform_cameras(source)
    moved, quality = align(Reconstruction(source, PointMap(points, depth, valid), cloud), target)
    assert not quality.suspicious and max(quality.rotation_degrees) < 1e-5
    pixels, distance = project(moved.cloud.points, target)
    before, near = project(cloud.points, source)
    torch.testing.assert_close(pixels, before)
    torch.testing.assert_close(distance, MOVE.scale * near)
    torch.testing.assert_close(moved.point_map.points[valid], moved.cloud.points)
    assert (moved.point_map.points[~valid] == 0).all()  # a pixel without geometry stays without
    assert torch.equal(moved.cloud.colors, cloud.colors) and torch.equal(moved.point_map.confidence, depth)


def test_orientations_settle_what_two_centres_leave_open() -> None:
    """The same two centres, looked out of in other directions: another rotation, about the line of the centres."""
    source = cameras(2)
    axis = source.centers[1] - source.centers[0]
    roll = torch.from_numpy(Rotation.from_rotvec((1.1 * axis / axis.norm()).numpy()).as_matrix())
    target = posed(source.world_to_camera[:, :3, :3] @ roll.T, source.centers)
    torch.testing.assert_close(fit_cameras(source, target).rotation, roll)


def test_noise_is_measured_in_degrees_and_percent() -> None:
    source = cameras(8, seed=3)
    generator = torch.Generator().manual_seed(4)
    extent = torch.cdist(source.centers, source.centers).max()
    noise = torch.nn.functional.normalize(torch.randn(8, 3, generator=generator, dtype=torch.float64), dim=1)
    shaken = posed(source.world_to_camera[:, :3, :3], source.centers + 0.01 * extent * noise)
    quality = alignment_quality(shaken, source)  # before any fit: what was put in
    assert quality.translation_percent == pytest.approx([1.0] * 8) and max(quality.rotation_degrees) < 1e-5
    target = MOVE.transform_cameras(source)
    moved = MOVE.transform_cameras(shaken)
    found = fit_cameras(shaken, target)
    assert abs(found.scale / MOVE.scale - 1) < 0.02
    after = alignment_quality(found.transform_cameras(shaken), target)
    assert sum(p * p for p in after.translation_percent) < sum(
        p * p for p in alignment_quality(moved, target).translation_percent
    )  # the fit is better than the true move, in the sum that it makes least
    assert not after.suspicious and "8 views" in str(after)


def test_one_wrong_view_is_suspicious_and_named_by_its_degrees() -> None:
    source = cameras(6)
    one = alignment_quality(turned(source, 10.0, view=4), source)
    assert one.suspicious and one.rotation_degrees[4] == pytest.approx(10.0)
    assert [round(angle, 6) for index, angle in enumerate(one.rotation_degrees) if index != 4] == [0.0] * 5
    fitted = fit_cameras(turned(source, 10.0, view=4), MOVE.transform_cameras(source))
    after = alignment_quality(fitted.transform_cameras(turned(source, 10.0, view=4)), MOVE.transform_cameras(source))
    assert after.suspicious and max(after.rotation_degrees) == after.rotation_degrees[4] > 8
    assert not alignment_quality(turned(source, 1.0, view=4), source).suspicious


def test_a_mirrored_layout_does_not_pass_for_a_good_one() -> None:
    """Centres of the mirror image, orientations as they were: a sign error in a reader."""
    source = cameras(6)
    mirrored = posed(source.world_to_camera[:, :3, :3], source.centers * torch.tensor([1.0, 1.0, -1.0]).double())
    found = fit_cameras(mirrored, source)
    assert torch.linalg.det(found.rotation) > 0
    assert alignment_quality(found.transform_cameras(mirrored), source).suspicious


@pytest.mark.parametrize("parallel", [True, False])
def test_a_reversed_baseline_is_an_error(parallel: bool) -> None:
    source = cameras(2)
    rotation = source.world_to_camera[:, :3, :3]
    rotation = rotation[:1].expand(2, 3, 3) if parallel else rotation
    with pytest.raises(BadSceneError, match="run against"):
        fit_cameras(posed(rotation, -source.centers), posed(rotation, source.centers))


def test_inverted_poses_are_suspicious() -> None:
    source = cameras(5)
    inverted = replace(source, world_to_camera=source.camera_to_world)
    found = fit_cameras(inverted, source)
    assert alignment_quality(found.transform_cameras(inverted), source).suspicious


def test_what_cannot_be_aligned_is_an_error() -> None:
    source = cameras(3)
    with pytest.raises(ConfigurationError, match="same views"):
        fit_cameras(source, source[:2])
    with pytest.raises(BadSceneError, match="at least two views"):
        fit_cameras(source[0], source[0])
    one_place = posed(source.world_to_camera[:, :3, :3], source.centers[:1].expand(3, 3))
    for pair, who in (((one_place, source), "estimated"), ((source, one_place), "data set")):
        with pytest.raises(BadSceneError, match=f"{who}.*one place"):
            fit_cameras(*pair)
    broken = source.world_to_camera.clone()
    broken[1, 0, 3] = math.nan
    with pytest.raises(BadSceneError, match="NaN"):
        fit_cameras(replace(source, world_to_camera=broken), source)


@pytest.mark.parametrize(
    ("degrees", "percent", "suspicious"),
    [((0.1, 2.9), (4.9, 0.0), False), ((0.1, 3.1), (0.0, 0.0), True), ((0.0, 0.0), (0.0, 5.1), True)],
)
def test_thresholds(degrees: tuple[float, ...], percent: tuple[float, ...], suspicious: bool) -> None:
    assert AlignmentQuality(degrees, percent).suspicious is suspicious
    assert AlignmentQuality((0.0, math.nan), (0.0, 0.0)).suspicious
