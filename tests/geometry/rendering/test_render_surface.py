"""Views with depth as surfaces in other cameras: scenes whose image is known in closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from reconx_pl.data.procedural import procedural_clip
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import pixel_rays, resize_cameras
from reconx_pl.geometry.rendering import surface, surface_torch
from reconx_pl.geometry.rendering.backend import Backend
from reconx_pl.geometry.rendering.surface import render_surface
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.types import Cameras

INF = float("inf")
SIZE = 24
FOCAL = 24.0  # pixels: at depth 2 a unit is 12 pixels wide


@pytest.fixture(params=["numba", "torch"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


def at(*centers: tuple[float, float, float], turn: float = 0.0) -> Cameras:
    """Cameras at ``centers`` that look along z, turned about y by ``turn`` radians."""
    pose = torch.eye(4).repeat(len(centers), 1, 1)
    pose[:, 0, 0], pose[:, 0, 2], pose[:, 2, 0] = math.cos(turn), -math.sin(turn), math.sin(turn)
    pose[:, 2, 2] = math.cos(turn)
    pose[:, :3, 3] = -(pose[:, :3, :3] @ torch.tensor(centers, dtype=torch.float32)[..., None])[..., 0]
    intrinsics = torch.tensor([[FOCAL, 0.0, SIZE / 2], [0.0, FOCAL, SIZE / 2], [0.0, 0.0, 1.0]])
    return Cameras(pose, intrinsics.repeat(len(centers), 1, 1), SIZE, SIZE)


def views_of(depth: torch.Tensor | float, *centers: tuple[float, float, float], seed: int = 0) -> DepthViews:
    """Random photographs of one depth, or of depth maps."""
    images = torch.rand(len(centers), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    return DepthViews(images, torch.as_tensor(depth).expand(len(centers), SIZE, SIZE).clone(), at(*centers))


def test_its_own_camera_sees_the_photograph_to_the_bit(backend: Backend) -> None:
    """Whatever else is known: another view's nearer surface does not hide it, a lone pixel is not lost."""
    views = views_of(2.0, (0, 0, 0), (0.1, 0, 0))
    views.depth[0, 5:8] = 0.0
    views.depth[0, 6, 6] = 3.0
    views.depth[0, 20:] = INF
    views.depth[1] = 1.0
    seen = render_surface(views, views.cameras[[1, 0]], backend=backend)
    known = views.depth[0] > 0
    assert torch.equal(seen.color[1][:, known], views.images[0][:, known])
    assert torch.equal(seen.depth[1][known], views.depth[0][known])
    assert torch.equal(seen.color[0], views.images[1])
    twice = replace(views, cameras=views.cameras[[0, 0]])
    assert torch.equal(
        render_surface(twice, views.cameras[0], backend=backend).color[0][:, known], seen.color[1][:, known]
    )
    assert int(seen.coverage[1][~known].sum()) > 0  # where it knows nothing the other view helps


def test_a_moved_camera_sees_the_image_shifted_by_its_disparity(backend: Backend) -> None:
    views = views_of(2.0, (0, 0, 0))
    seen = render_surface(views, at((0.25, 0, 0), (0, -1 / 6, 0)), backend=backend)  # 3 and 2 pixels
    torch.testing.assert_close(seen.color[0, :, :, :-3], views.images[0, :, :, 3:], atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.color[1, :, 2:], views.images[0, :, :-2], atol=1e-4, rtol=0)
    assert bool((seen.coverage[0, :, :-3] == 1).all()) and float(seen.coverage[0, :, -3:].sum()) == 0
    torch.testing.assert_close(seen.depth[0], 2.0 * seen.coverage[0])
    assert float(seen.color[0, :, :, -3:].abs().sum()) == 0  # holes are black


def test_colours_of_a_slanted_plane_are_perspectively_correct(backend: Backend) -> None:
    """Plane z = 2 + x / 2, coloured by its world coordinates; coarse triangles, seen from nearby."""
    views = views_of(2.0, (0, 0, 0))
    ray = pixel_rays(views.cameras)[0]
    depth = 2 / (1 - 0.5 * ray[..., 0])
    world = ray * depth[..., None]
    views = replace(views, depth=depth[None], images=(0.5 + 0.1 * world.permute(2, 0, 1))[None])
    target = replace(at((0.3, -0.2, 0.8)), height=60, width=50)  # a larger picture, not a finer one
    seen = render_surface(views, target, backend=backend)
    ray = pixel_rays(target)[0]
    center = torch.tensor([0.3, -0.2, 0.8])
    distance = (2 + 0.5 * center[0] - center[2]) / (ray[..., 2] - 0.5 * ray[..., 0])
    expected = 0.5 + 0.1 * (center + ray * distance[..., None]).permute(2, 0, 1)
    covered = seen.coverage[0] == 1
    assert int(covered.sum()) > 800
    torch.testing.assert_close(seen.color[0][:, covered], expected[:, covered], atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.depth[0][covered], distance[covered], atol=1e-5, rtol=0)


def square(depth: float = 1.0, background: float = 2.0) -> torch.Tensor:
    """A square before a wall."""
    result = torch.full((SIZE, SIZE), background)
    result[8:16, 8:16] = depth
    return result


def test_edges_are_cut_and_the_near_hides_the_far(backend: Backend) -> None:
    views = views_of(square(), (0, 0, 0))
    views.images[0] = torch.where(views.depth[0] == 1, 1.0, 0.25)
    camera = at((0.25, 0, 0))  # the wall moves by 3 pixels to the left, the square by 6: at columns 2 to 9
    seen = render_surface(views, camera, backend=backend)
    row = seen.color[0, 0, 12]
    assert row[2:10].tolist() == pytest.approx([1.0] * 8, abs=1e-4)
    assert row[13:21].tolist() == pytest.approx([0.25] * 8, abs=1e-4)
    assert seen.coverage[0, 12, 10:13].tolist() == [0, 0, 0] and seen.depth[0, 12, 10:13].tolist() == [0, 0, 0]
    whole = render_surface(views, camera, discontinuity=2.5, backend=backend)
    assert bool((whole.coverage[0, :, :21] == 1).all())  # a rubber sheet between the two


def test_a_surface_is_not_seen_from_behind(backend: Backend) -> None:
    views = views_of(2.0, (0, 0, 0))
    seen = render_surface(views, at((0, 0, 4), turn=math.pi), backend=backend)
    assert float(seen.coverage.sum()) == 0
    assert float(render_surface(views, at((0, 0, -1)), backend=backend).coverage.sum()) > 100


def test_what_lies_behind_the_camera_is_left_out(backend: Backend) -> None:
    """A floor that goes on behind the camera, which stands on it."""
    views = views_of(2.0, (0, -1, 0))
    ray = pixel_rays(views.cameras)[0]
    depth = torch.where(ray[..., 1] > 0.05, 1 / ray[..., 1], 0.0)
    views = replace(views, depth=depth[None])
    seen = render_surface(views, at((0, -0.5, 4.0)), discontinuity=2, backend=backend)
    assert float(seen.coverage[0, :12].sum()) == 0  # nothing above the horizon
    assert float(seen.coverage[0, 14:].mean()) > 0.3
    on = seen.coverage[0] == 1
    torch.testing.assert_close(seen.depth[0][on], 0.5 / pixel_rays(at((0, 0, 0)))[0, ..., 1][on], atol=1e-4, rtol=1e-4)


def test_what_lies_behind_the_camera_does_not_hide_what_lies_before_it(backend: Backend) -> None:
    """Seen from between a near wall on the left and a far one on the right: mirrored, the left one would cover it."""
    depth = torch.full((SIZE, SIZE), 2.0)
    depth[:, 12:] = 8.0
    seen = render_surface(views_of(depth, (0, 0, 0)), at((0, 0, 4)), discontinuity=10, backend=backend)
    assert bool((seen.depth[0, :, 13:] == 4).all()) and float(seen.coverage[0, :, :12].sum()) == 0


def test_views_that_agree_are_blended_linearly_along_their_path(backend: Backend) -> None:
    views = views_of(2.0, (0, 0, 0), (0.4, 0, 0))
    views.images[0], views.images[1] = 0.0, 1.0
    seen = render_surface(views, at((0.1, 0, 0), (0.2, 0, 0), (0.3, 0, 0)), backend=backend)
    assert seen.color[:, 0, 12, 12].tolist() == pytest.approx([0.25, 0.5, 0.75], abs=1e-5)
    assert float(seen.color[0, 0, 12, 0]) == 0 and bool(seen.coverage[:, 12].all())  # a strip that one view has alone


def test_weights_of_views_from_one_place_go_by_the_angle(backend: Backend) -> None:
    views = views_of(2.0, (0, 0, 0), (0, 0, 0))
    views.images[0], views.images[1] = 0.0, 1.0
    turned = Cameras(torch.cat([at((0, 0, 0)).world_to_camera, at((0, 0, 0), turn=0.2).world_to_camera]), **inner(2))
    # a sphere of radius 2 has no edge that either of the two sees otherwise
    depth = 2 / pixel_rays(turned).norm(dim=-1)
    seen = render_surface(replace(views, cameras=turned, depth=depth), at((0, 0, 0), turn=0.05), backend=backend)
    assert float(seen.color[0, 0, 12, 12]) == pytest.approx(0.25, abs=1e-3)


def inner(views: int) -> dict:
    return {"intrinsics": at((0, 0, 0)).intrinsics.repeat(views, 1, 1), "height": SIZE, "width": SIZE}


def test_the_nearest_surface_wins_beyond_the_tolerance(backend: Backend) -> None:
    views = views_of(2.0, (0, 0, 0), (0.4, 0, 0), (0.2, 0.2, 0))
    for view, (depth, shade) in enumerate([(2.0, 0.0), (2.05, 1.0), (2.4, 0.5)]):
        views.depth[view], views.images[view] = depth, shade
    target = at((0.2, 0.02, 0))
    seen = render_surface(views, target, backend=backend)
    assert float(seen.color[0, 0, 12, 12]) == pytest.approx(0.5, abs=1e-4)  # of the first two, which are 2.5 % apart
    assert float(seen.depth[0, 12, 12]) == pytest.approx(2.0)
    assert float(render_surface(views, target, tolerance=0.02, backend=backend).color[0, 0, 12, 12]) == 0.0
    views.images[2] = 1.0
    three = render_surface(views, target, tolerance=0.25, backend=backend).color[0, 0, 12, 12]
    share = [1 / 0.2010, 1 / 0.2010, 1 / 0.18]
    assert float(three) == pytest.approx((share[1] + share[2]) / sum(share), abs=1e-3)


def test_sky_is_far_behind_everything_and_unknown_is_a_hole(backend: Backend) -> None:
    depth = square()
    depth[depth == 2] = INF
    depth[:6] = 0.0
    views = views_of(depth, (0, 0, 0))
    seen = render_surface(views, at((0.25, 0, 0)), backend=backend)
    assert bool((seen.coverage[0, :6] == 0).all())  # not at infinity: a hole
    assert bool((seen.depth[0, 8:16, 2:10] == 1).all())  # the square has moved by its disparity
    assert bool(torch.isinf(seen.depth[0, 17:, :23]).all()) and bool((seen.coverage[0, 17:, :23] == 1).all())
    # 6 pixels at depth 1 are 0.12 at depth 50
    shifted = 0.88 * views.images[0, :, 17:, :23] + 0.12 * views.images[0, :, 17:, 1:]
    torch.testing.assert_close(seen.color[0, :, 17:, :23], shifted, atol=1e-4, rtol=0)
    assert float(seen.coverage[0, 12, 10:14].sum()) == 0
    sheet = render_surface(views, at((0.25, 0, 0)), discontinuity=1e3, backend=backend)
    assert float(sheet.coverage[0, 12, 10:14].sum()) == 0  # between square and sky there never is a surface


def test_a_scene_of_nothing_but_sky_is_rendered(backend: Backend) -> None:
    views = views_of(INF, (0, 0, 0))
    seen = render_surface(views, at((0, 0, 0.1), (0, 0, 0), turn=0.1), backend=backend)
    assert 0.8 < float(seen.coverage.mean()) < 1 and bool(torch.isinf(seen.depth[seen.coverage == 1]).all())


def test_finite_surfaces_hide_sky_of_other_views(backend: Backend) -> None:
    views = views_of(2.0, (0, 0, 0), (0.2, 0, 0))
    views.depth[1] = INF
    views.images[0], views.images[1] = 1.0, 0.0
    seen = render_surface(views, at((0.19, 0, 0)), backend=backend)
    assert float(seen.color[0, 0, 12, 12]) == pytest.approx(1.0) and float(seen.depth[0, 12, 12]) == pytest.approx(2.0)
    assert bool(torch.isinf(seen.depth[0, :, 23]).all())  # beside it the sky


def test_targets_of_another_size(backend: Backend) -> None:
    """A linear ramp stays one, whatever triangles do to it."""
    views = views_of(2.0, (0, 0, 0))
    views.images[0] = (torch.arange(SIZE) + 0.5) / SIZE
    for height, width in ((48, 72), (12, 8)):
        seen = render_surface(views, resize_cameras(views.cameras, height, width), backend=backend)
        ramp = (torch.arange(width) + 0.5) / width
        inside = seen.coverage[0] == 1
        torch.testing.assert_close(seen.color[0, 1][inside], ramp.expand(height, width)[inside], atol=1e-5, rtol=0)
        border = math.ceil(0.5 * width / SIZE - 0.5) if width > SIZE else 0  # half a pixel of the source has no mesh
        assert bool(inside[height // 2, border : width - border].all())


def test_doubtful_pixels_are_holes(backend: Backend) -> None:
    views = views_of(2.0, (0, 0, 0))
    trust = torch.full((1, SIZE, SIZE), 3.0)
    trust[0, :, :12] = 2.0
    views = replace(views, confidence=trust)
    seen = render_surface(views, at((0.0, 0, 0), (1e-3, 0, 0)), min_confidence=2.5, backend=backend)
    for coverage in seen.coverage:
        assert float(coverage[:, :11].sum()) == 0 and bool((coverage[:, 13:23] == 1).all())
    with pytest.raises(BadSceneError, match="at least 3.5; lower min_confidence"):
        render_surface(views, views.cameras, min_confidence=3.5, backend=backend)


def test_both_backends_agree_on_a_scene() -> None:
    """Three views of a landscape with sky, unknown patches, edges, and targets beside and behind what they saw."""
    clip = procedural_clip(1, frames=5, size=(40, 48), kind="landscape")
    assert clip.depth is not None
    middle = torch.where(clip.depth[:1] > 0, 0.9 * clip.depth[:1], 0.0)  # wrong, so that surfaces compete
    depth = torch.cat([clip.depth, middle])
    depth = torch.where(depth > 0, depth, INF)
    depth[0, 20:26, 10:20] = 0.0
    assert bool(torch.isinf(depth).any())
    views = DepthViews(clip.images[[0, 4, 2]], depth, clip.cameras[[0, 4, 2]])
    targets = resize_cameras(clip.cameras, 37, 61)
    targets.world_to_camera[4] = torch.diag(torch.tensor([-1.0, 1, -1, 1])) @ targets.world_to_camera[4]
    targets.world_to_camera[3, 2, 3] -= 3.0  # forward, through what is near
    one, two = (render_surface(views, targets, backend=name) for name in ("numba", "torch"))
    assert 0.05 < float((one.coverage == 0).float().mean()) < 0.5
    for part in ("color", "coverage", "depth"):
        torch.testing.assert_close(getattr(one, part), getattr(two, part), atol=1e-5, rtol=1e-5)


def test_neither_chunks_nor_threads_change_a_bit(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    views = views_of(square(), (0, 0, 0), (0.3, 0, 0), (0.1, 0.3, 0))
    targets = at(*((0.1 * i, 0.02 * i, 0.1) for i in range(5)))
    seen = render_surface(views, targets, backend=backend)
    monkeypatch.setattr(surface, "_AT_ONCE", 1)
    monkeypatch.setattr(surface_torch, "_PAIRS", 100)
    alone = render_surface(views, targets, backend=backend)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        together = render_surface(views, targets, backend=backend)
    finally:
        torch.set_num_threads(threads)
    for other in (alone, together):
        assert torch.equal(seen.color, other.color) and torch.equal(seen.depth, other.depth)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"discontinuity": 0.9}, "discontinuity is a factor of at least 1"),
        ({"tolerance": -0.1}, "tolerance at least 0"),
        ({"backend": "cuda"}, "a backend is"),
    ],
)
def test_options_that_make_no_sense(options: dict, said: str) -> None:
    views = views_of(2.0, (0, 0, 0))
    with pytest.raises(ConfigurationError, match=said):
        render_surface(views, views.cameras, **options)
