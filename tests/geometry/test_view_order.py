"""The order of views: rings, lines, walls between them, and real photographs."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from reconx_pl.data.formats.posed import read_posed
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.errors import BadSceneError
from reconx_pl.geometry import view_order as module
from reconx_pl.geometry.cameras import resize_cameras
from reconx_pl.geometry.estimators.colmap import ColmapEstimator
from reconx_pl.geometry.view_order import ViewOrder, pair_costs, view_order
from reconx_pl.types import Cameras, PointCloud


def looking(centers: np.ndarray, targets: np.ndarray) -> Cameras:
    """Level cameras of 60 degrees at [V, 3] that look at [V, 3]; y points down."""
    forward = targets - centers
    forward = forward / np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    rotation = np.stack([right, np.cross(forward, right), forward], axis=1)
    pose = np.tile(np.eye(4), (len(centers), 1, 1))
    pose[:, :3, :3] = rotation
    pose[:, :3, 3] = -np.einsum("vij,vj->vi", rotation, centers)
    lens = torch.tensor([[208.0, 0, 120], [0, 208.0, 90], [0, 0, 1]]).expand(len(centers), 3, 3)
    return Cameras(torch.from_numpy(pose).float(), lens, 180, 240)


def ring(views: int, whole: float = 1.0) -> Cameras:
    angle = np.arange(views) * 2 * np.pi * whole / views
    return looking(4 * np.stack([np.cos(angle), 0 * angle, np.sin(angle)], axis=1), np.zeros((views, 3)))


def line(views: int, step: float = 0.5) -> Cameras:
    centers = np.stack([step * np.arange(views), np.zeros(views), np.zeros(views)], axis=1)
    return looking(centers, centers + [0, 0, 4])


def cloud_of(points: np.ndarray) -> PointCloud:
    xyz = torch.from_numpy(points).float()
    return PointCloud(xyz, torch.full_like(xyz, 0.5), torch.full((len(xyz),), 2.0))


def ball() -> PointCloud:
    points = np.random.default_rng(0).normal(size=(3000, 3))
    return cloud_of(points / np.linalg.norm(points, axis=1, keepdims=True))


def wall() -> PointCloud:
    x, y = np.meshgrid(np.linspace(-4, 12, 120), np.linspace(-2, 2, 30))
    return cloud_of(np.stack([x.ravel(), y.ravel(), np.full(x.size, 4.0)], axis=1))


def walked(cameras: Cameras, cloud: PointCloud) -> tuple[list[int], bool]:
    """The order that is found for shuffled views, in the numbers from before the shuffle."""
    mixed = np.random.default_rng(1).permutation(len(cameras)).tolist()
    found = view_order(cameras[mixed], cloud)
    assert found.order[0] < found.order[-1] and sorted(found.order) == list(range(len(cameras)))
    return [mixed[view] for view in found.order], found.closed


@pytest.mark.parametrize("views", [3, 8, 20])
def test_a_ring_is_walked_around_and_closes(views: int) -> None:
    order, closed = walked(ring(views), ball())
    assert {step % views for step in np.diff(order)} in ({1}, {views - 1}) and closed


@pytest.mark.parametrize("views", [3, 8, 20])
def test_a_line_is_walked_along_and_stays_open(views: int) -> None:
    order, closed = walked(line(views), wall())
    assert order in (list(range(views)), list(range(views))[::-1]) and not closed


def test_half_a_ring_stays_open() -> None:
    order, closed = walked(ring(8, whole=0.5), ball())
    assert order in (list(range(8)), list(range(8))[::-1]) and not closed


@pytest.mark.parametrize("steps", [(0.2, 2.0), (1.0, 2.0), (1.0, 1.0)])
def test_three_views_in_a_line_are_no_loop_however_they_are_spaced(steps: tuple[float, float]) -> None:
    centers = np.array([[0, 0, 0], [steps[0], 0, 0], [sum(steps), 0, 0]], dtype=float)
    assert view_order(looking(centers, centers + [0, 0, 4]), wall()) == ViewOrder((0, 1, 2), False)


def test_few_views_keep_their_order() -> None:
    assert view_order(line(2), wall()) == ViewOrder((0, 1), False)
    assert view_order(line(2)[[1, 0]], wall()) == ViewOrder((0, 1), False)
    assert view_order(line(1), wall()) == ViewOrder((0,), False)


def test_views_on_two_sides_of_a_wall_share_nothing() -> None:
    """Both stand eye to eye with a wall between them: the same points lie in both images, and each sees a side."""
    x, y = np.meshgrid(np.linspace(-3, 3, 40), np.linspace(-3, 3, 40))
    sides = [np.stack([x.ravel(), y.ravel(), np.full(x.size, z)], axis=1) for z in (-0.5, 0.5)]
    cloud = cloud_of(np.concatenate(sides))
    centers = np.array([[0, 0, -4.0], [0, 0, 4.0], [0.3, 0, -4.0]])
    costs = pair_costs(looking(centers, np.zeros((3, 3))), cloud)
    assert costs[0, 1] > 6.9 and costs[0, 2] < 0.5  # 6.9 = -log(1/1000)
    assert torch.equal(costs, costs.T) and (costs.diagonal() == 0).all()


def test_the_cost_counts_shares_and_angles() -> None:
    """Two of three columns of points in common, and a parallax that is known."""
    centers = np.array([[0.0, 0, 0], [0.8, 0, 0]])
    points = np.array([[0.4, 0.1 * row, 8.0] for row in range(-3, 4)])
    costs = pair_costs(looking(centers, centers + [0, 0, 4]), cloud_of(points))
    assert float(costs[0, 1]) == pytest.approx(2 * np.degrees(np.arctan(0.4 / 8)) / 30, rel=0.01)
    wide = np.concatenate([points, points + [-4.5, 0, 0]])  # half of them left of what the second sees
    costs = pair_costs(looking(centers, centers + [0, 0, 4]), cloud_of(wide))
    assert float(costs[0, 1]) == pytest.approx(np.log(2) + 2 * np.degrees(np.arctan(0.4 / 8)) / 30, rel=0.01)


def test_both_searches_find_the_shortest_path() -> None:
    for seed in range(4):
        places = np.random.default_rng(seed).uniform(size=(7, 2))
        costs = np.linalg.norm(places[:, None] - places, axis=-1)
        shortest = min(sum(costs[a, b] for a, b in zip(way, way[1:], strict=False)) for way in permutations(range(7)))
        for search in (module._exact_path, module._short_path):
            order = search(costs)
            assert sorted(order) == list(range(7))
            assert costs[order[:-1], order[1:]].sum() == pytest.approx(shortest), search.__name__


def test_nothing_to_order() -> None:
    with pytest.raises(BadSceneError, match="no views"):
        view_order(line(2)[[]], wall())
    with pytest.raises(BadSceneError, match="without points"):
        view_order(line(2), cloud_of(np.zeros((0, 3))))


def real(shared_dir: Path, name: str, views: range) -> tuple[RawScene, Cameras]:
    if not (shared_dir / "scenes" / name).is_dir():
        pytest.skip(f"needs the photographs of {name}, which are not part of the repository")
    raw = read_posed(shared_dir / "scenes" / name)
    return raw, raw.cameras[list(views)].to(dtype=torch.float32)


def test_a_turntable_with_points_of_its_photographs(shared_dir: Path) -> None:
    """Neighbours in the order are neighbours in the ring of the photographs, a part of which is missing."""
    pytest.importorskip("pycolmap", reason="structure from motion needs pycolmap")
    raw, cameras = real(shared_dir, "mid_templeRing", range(0, 16, 2))
    images = torch.stack([torch.from_numpy(raw.load_image(view).copy()) for view in range(0, 16, 2)])
    images = torch.nn.functional.avg_pool2d(images.permute(0, 3, 1, 2).float() / 255, 2)
    cameras = resize_cameras(cameras, *images.shape[-2:])
    cloud = ColmapEstimator(features=1024).estimate(images, cameras).cloud
    order, closed = walked(cameras, cloud)
    assert order in (list(range(8)), list(range(8))[::-1]) and not closed


@pytest.mark.parametrize("name", ["brighton_beach", "banana"])
def test_photographs_that_came_with_points(shared_dir: Path, name: str) -> None:
    """Who knows nothing of shares and angles, and walks the shortest way from camera to camera, walks little less."""
    raw, cameras = real(shared_dir, name, range(14))
    assert raw.cloud is not None
    order, _ = walked(cameras, raw.cloud)
    way = torch.cdist(cameras.centers, cameras.centers).double().numpy()
    shortest = module._short_path(way)
    assert way[order[:-1], order[1:]].sum() <= 1.25 * way[shortest[:-1], shortest[1:]].sum()
