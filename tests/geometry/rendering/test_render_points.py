"""Clouds as soft discs: what the formula says, number by number. The original's images are in tests/parity."""

from __future__ import annotations

import pytest
import torch

from reconx_pl.errors import BackendUnavailableError, ConfigurationError
from reconx_pl.geometry.rendering import discs, points
from reconx_pl.geometry.rendering.backend import Backend, chosen_backend
from reconx_pl.geometry.rendering.points import render_points
from reconx_pl.types import Cameras, PointCloud


@pytest.fixture(params=["numba", "torch"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


def camera(height: int = 8, width: int = 12, views: int = 1) -> Cameras:
    """Pixels are world units at depth 1: the point (x, y, 1) falls on pixel (x, y)."""
    return Cameras(torch.eye(4).repeat(views, 1, 1), torch.eye(3).repeat(views, 1, 1), height, width)


def cloud(*rows: tuple[float, float, float, float]) -> PointCloud:
    """Points by pixel x, y, depth and shade of red."""
    x, y, z, shade = torch.tensor(rows).unbind(1)
    colors = torch.stack([shade, torch.zeros_like(shade), 0.5 * shade], 1)
    return PointCloud(torch.stack([x * z, y * z, z], 1), colors, torch.ones(len(rows)))


def test_weights_fall_with_the_distance_and_points_are_composited(backend: Backend) -> None:
    """Radius 0.5 of the shorter side's half, 4 pixels, is 2 pixels; both points hit pixel (5, 4)."""
    scene = cloud((5.5, 5.5, 3.0, 1.0), (5.5, 4.0, 1.0, 0.5))
    seen = render_points(scene, camera(), radius=0.5, backend=backend)
    near, far = 1 - 0.25 / 4, 1 - 1 / 4
    assert float(seen.color[0, 0, 4, 5]) == pytest.approx(near * 0.5 + (1 - near) * far)
    assert float(seen.color[0, 2, 4, 5]) == pytest.approx(0.5 * (near * 0.5 + (1 - near) * far))
    assert float(seen.coverage[0, 4, 5]) == pytest.approx(1 - (1 - near) * (1 - far))
    assert float(seen.depth[0, 4, 5]) == 1.0 and float(seen.depth[0, 6, 5]) == 3.0
    assert float(seen.coverage[0, 7, 5]) == 0  # 2 pixels from the far point: d < r is strict
    assert int((seen.depth > 0).sum()) == int((seen.coverage > 0).sum()) < 25
    assert float(seen.color[0][:, seen.depth[0] == 0].abs().sum()) == 0


def test_only_the_nearest_points_count_and_of_equals_the_first(backend: Backend) -> None:
    scene = cloud((5.5, 4.5, 2.0, 0.25), (6.3, 4.5, 1.0, 1.0), (5.5, 4.5, 2.0, 0.75), (5.5, 4.5, 3.0, 0.1))
    edge = 1 - 0.8**2  # the faint near point
    expected = {1: edge, 2: edge + (1 - edge) * 0.25, 3: edge + (1 - edge) * 0.25}
    for count, value in expected.items():
        seen = render_points(scene, camera(), radius=0.25, points_per_pixel=count, backend=backend)
        assert float(seen.color[0, 0, 4, 5]) == pytest.approx(value, abs=1e-6)


def test_points_behind_or_on_the_camera_do_not_count_and_outside_ones_hit_the_border(backend: Backend) -> None:
    scene = cloud((5.5, 4.5, -1.0, 1.0), (12.5, 2.5, 1.0, 1.0), (-0.5, -0.5, 1.0, 1.0))
    scene = PointCloud(
        torch.cat([scene.points, torch.tensor([[0.0, 0.0, 0.0], [float("nan")] * 3, [0, 0, float("inf")]])]),
        torch.cat([scene.colors, torch.ones(3, 3)]),
        torch.ones(6),
    )
    seen = render_points(scene, camera(), radius=0.4, backend=backend)  # 1.6 pixels
    assert set(map(tuple, (seen.depth[0] > 0).nonzero().tolist())) == {(1, 11), (2, 11), (3, 11), (0, 0)}


def test_the_radius_goes_by_the_shorter_side(backend: Backend) -> None:
    scene = cloud((5.5, 5.5, 1.0, 1.0))
    wide, tall = (
        render_points(scene, camera(*size), radius=0.4, backend=backend).depth[0] for size in ((11, 40), (40, 11))
    )
    assert torch.equal(wide[:, :11], tall[:11]) and int((wide > 0).sum()) == 13  # 2.2 pixels


@pytest.mark.parametrize("size", [(17, 23), (23, 17)])
def test_both_backends_agree(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(5)
    rows = torch.rand(400, 4, generator=generator) * torch.tensor([30.0, 30.0, 4.0, 1.0]) - torch.tensor([3, 3, 0.5, 0])
    rows[:, 2] = (4 * rows[:, 2]).round() / 4  # ties everywhere
    scene = cloud(*map(tuple, rows.tolist()))
    cameras = camera(*size, views=3)
    cameras.world_to_camera[1, 2, 3], cameras.world_to_camera[2, 0, 3] = 0.5, -3.0
    one, two = (
        render_points(scene, cameras, radius=0.3, points_per_pixel=4, backend=name) for name in ("numba", "torch")
    )
    for part in ("color", "coverage", "depth"):
        torch.testing.assert_close(getattr(one, part), getattr(two, part), atol=1e-6, rtol=0)
    assert not torch.equal(one.color[0], one.color[1])
    monkeypatch.setattr(points, "_AT_ONCE", 1)
    monkeypatch.setattr(discs, "_AT_ONCE", 50)
    for name, whole in (("numba", one), ("torch", two)):
        parts = render_points(scene, cameras, radius=0.3, points_per_pixel=4, backend=name)
        assert torch.equal(parts.color, whole.color) and torch.equal(parts.depth, whole.depth)


def test_an_empty_cloud_is_black(backend: Backend) -> None:
    nothing = PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    seen = render_points(nothing, camera(views=2), backend=backend)
    assert seen.color.shape == (2, 3, 8, 12) and float(seen.color.sum() + seen.coverage.sum() + seen.depth.sum()) == 0


@pytest.mark.parametrize("options", [{"radius": 0.0}, {"radius": float("nan")}, {"points_per_pixel": 0}])
def test_options_that_make_no_sense(options: dict) -> None:
    with pytest.raises(ConfigurationError, match="a positive radius and at least one point a pixel"):
        render_points(cloud((1, 1, 1, 1)), camera(), **options)


def test_numba_is_of_the_processor() -> None:
    assert chosen_backend("auto", torch.device("cpu")) == "numba" and chosen_backend("torch", torch.device("cpu"))
    assert chosen_backend("auto", torch.device("cuda")) == "torch"
    with pytest.raises(BackendUnavailableError, match='tensors on cuda; move them to the CPU, or take "torch"'):
        chosen_backend("numba", torch.device("cuda"))
