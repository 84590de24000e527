import time
from pathlib import Path

import numpy as np
import pytest
import torch

from reconx_pl.data.procedural import layout as k
from reconx_pl.data.procedural import (
    procedural_clip,
    procedural_scene,
    procedural_views,
    render_scene,
    write_procedural,
)
from reconx_pl.data.procedural.paths import MIN_OVERLAP, overlap
from reconx_pl.data.procedural.primitives import Scene, SceneBuilder, rotation
from reconx_pl.data.procedural.write import gap_of
from reconx_pl.data.shards.stream import read_clips
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import project, unproject
from reconx_pl.geometry.farthest_point import farthest_point_order
from reconx_pl.types import Cameras, Clip

ROOM, LANDSCAPE = 0, 2  # seeds


@pytest.fixture(scope="module", params=["room", "landscape"])
def clip(request: pytest.FixtureRequest) -> Clip:
    return procedural_clip(5, frames=5, size=(96, 128), kind=request.param)


def one_thing(kind: int, half: tuple[float, float, float], turn: np.ndarray | None = None) -> Scene:
    builder = SceneBuilder(np.random.default_rng(0))
    builder.add(kind, (0.0, 0.0, 5.0), half, builder.material(k.PLAIN, (0.5, 0.5, 0.5)), turn)
    light = np.array([0, 0, -1.0, 0, 1, 1, 1, 0, 0, 0, 1, 0, 0])
    return builder.build(light, np.array([0.2] * 9 + [1.0]), "one thing")


def front_camera(size: int = 65) -> Cameras:
    intrinsics = torch.tensor([[[60.0, 0, size / 2], [0, 60.0, size / 2], [0, 0, 1]]])
    return Cameras(torch.eye(4)[None], intrinsics, size, size)


def test_a_clip_has_every_field(clip: Clip) -> None:
    assert clip.frames.shape == (5, 3, 96, 128) and clip.frames.dtype == torch.uint8
    assert clip.depth is not None and clip.depth.shape == (2, 96, 128)
    assert clip.confidence is not None and clip.confidence.shape == (2, 96, 128)
    assert clip.cloud is not None and clip.cloud.points.shape == (16384, 3)
    assert clip.cloud.colors.min() >= 0 and clip.cloud.colors.max() <= 1
    assert clip.caption and clip.frame_indices == (0, 1, 2, 3, 4)
    clip.cameras.check(clip.key)
    assert all(torch.isfinite(x).all() for x in (clip.confidence, clip.cloud.points))
    sky = clip.depth == torch.inf  # known to be far; nothing is unknown
    assert bool(sky.any()) == clip.scene.startswith("landscape") and bool((clip.depth > 0).all())


@pytest.mark.parametrize(
    "kind,half,depth",
    [
        (k.BOX, (1, 1, 1), 4.0),
        (k.BOX, (1, 1, 0.01), 4.99),
        (k.ELLIPSOID, (1, 1, 0.5), 4.5),
        (k.CYLINDER, (0.7, 1, 0.7), 4.3),
    ],
)
def test_depth_of_single_things_by_hand(kind: int, half: tuple[float, float, float], depth: float) -> None:
    seen = render_scene(one_thing(kind, half), front_camera())
    assert seen.depth[0, 32, 32].item() == pytest.approx(depth, abs=1e-6)  # the ray of the middle pixel is the axis
    assert seen.cosine[0, 32, 32].item() == pytest.approx(1.0, abs=1e-6)
    assert seen.depth[0, 0, 0] == 0  # the sky has none
    assert seen.frames[0, :, 32, 32].tolist() == pytest.approx([128] * 3, abs=30)  # lit from the front, with grain


def test_depth_of_a_cone_and_a_turned_box_by_hand() -> None:
    cone = render_scene(one_thing(k.CONE, (1, 1, 1)), front_camera())
    assert cone.depth[0, 32, 32].item() == pytest.approx(4.5, abs=1e-6)  # half radius at half height
    turned = render_scene(one_thing(k.BOX, (1, 1, 1), rotation(np.pi / 4)), front_camera())
    assert turned.depth[0, 32, 32].item() == pytest.approx(5 - 2**0.5, abs=1e-6)
    assert turned.cosine[0, 32, 30].item() == pytest.approx(0.5**0.5, abs=0.05)


def test_every_point_of_a_sphere_lies_on_it() -> None:
    seen = render_scene(one_thing(k.ELLIPSOID, (1.5, 1.5, 1.5)), front_camera())
    points = unproject(seen.depth, front_camera())[seen.depth > 0]
    assert len(points) > 500
    radius = (points - torch.tensor([0, 0, 5.0])).norm(dim=-1)
    torch.testing.assert_close(radius, torch.full_like(radius, 1.5), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["room", "landscape"])
@pytest.mark.parametrize("seed", [3, 11])
def test_views_agree_in_depth_and_colour(kind: str, seed: int) -> None:
    frames, depth, cameras = procedural_views(seed, [0.0, 0.35], (128, 128), kind)
    valid = depth[0] > 0
    pixels, distance = project(unproject(depth, cameras)[0][valid], cameras[1])
    # grid_sample's corners convention is ours: pixel x in [0, W] becomes 2 x / W - 1
    grid = (pixels[0] / 128 * 2 - 1)[None, None]
    inside = (grid[0, 0].abs() < 0.98).all(-1) & (distance[0] > 0)
    # inverse depth is linear over planes, so that its bilinear interpolation is exact but for edges and round things
    inverse = torch.where(depth[1] > 0, 1 / depth[1].clamp(min=1e-3), 0.0)[None, None]
    expected = 1 / torch.nn.functional.grid_sample(inverse, grid, align_corners=False)[0, 0, 0].clamp(min=1e-3)
    error = (distance[0] - expected).abs() / expected
    visible = inside & (error < 0.02)
    assert visible.sum() > 0.5 * inside.sum()
    assert error[visible].median() < 1e-4
    there = torch.nn.functional.grid_sample(frames[1:].float(), grid, align_corners=False)[0, :, 0]
    difference = (frames[0][:, valid].float() - there).abs().mean(0)[visible]
    assert difference.median() < 5  # of 255
    assert (difference < 25).float().mean() > 0.9


def test_point_map_of_both_ends_overlaps() -> None:
    for seed in range(12):
        made = procedural_scene(seed)
        assert overlap(made.scene, made.path.cameras(np.array([0.0, 1.0]), 64, 64)) > MIN_OVERLAP - 0.05


def test_gap_scales_the_baseline() -> None:
    small, large = procedural_scene(1, gap=0.4).path.baseline, procedural_scene(1, gap=1.2).path.baseline
    assert large > 1.5 * small


def test_neighbouring_frames_differ_by_visible_parallax() -> None:
    for seed in range(6):
        frames, depth, cameras = procedural_views(seed, [0.0, 0.5, 1.0], (64, 64))
        valid = depth[0] > 0
        pixels, _ = project(unproject(depth, cameras)[0][valid], cameras)
        motion = pixels[2] - pixels[0]
        parallax = (motion - motion.median(0).values).norm(dim=-1)  # what no shift of the image explains
        assert parallax.quantile(0.9) > 3  # of 64 pixels
        assert (frames[0].float() - frames[2].float()).abs().mean() > 5


def test_a_seed_decides_everything_and_nothing_else_does() -> None:
    torch.manual_seed(1)
    first = procedural_clip(9, frames=3, size=(32, 32), points=500)
    torch.manual_seed(2)
    again = procedural_clip(9, frames=3, size=(32, 32), points=500)
    assert torch.equal(first.frames, again.frames)
    assert torch.equal(first.cameras.world_to_camera, again.cameras.world_to_camera)
    assert first.cloud is not None and again.cloud is not None
    assert torch.equal(first.cloud.points, again.cloud.points)
    assert first.caption == again.caption


def test_seeds_give_different_scenes() -> None:
    views = torch.stack([procedural_views(seed, [0.5], (32, 32))[0][0].float() for seed in range(10)]).flatten(1)
    apart = torch.cdist(views, views, p=1) / views.shape[1]
    assert apart[~torch.eye(10, dtype=torch.bool)].min() > 10
    assert {procedural_scene(seed).kind for seed in range(10)} == {"room", "landscape"}


def test_views_lie_on_the_path_of_the_clip(clip: Clip) -> None:
    kind = clip.scene.split("-")[0]
    frames, depth, cameras = procedural_views(5, [0.0, 0.25, 1.0], (96, 128), kind)
    assert torch.equal(frames, clip.frames[[0, 1, 4]])
    assert clip.depth is not None
    assert torch.equal(torch.where(depth > 0, depth, torch.inf)[[0, 2]], clip.depth)
    assert torch.equal(cameras.world_to_camera, clip.cameras.world_to_camera[[0, 1, 4]])


def test_no_camera_stands_inside_a_thing() -> None:
    for seed in range(50):
        made = procedural_scene(seed)
        centers = made.path.centers(np.linspace(0, 1, 65))
        for kind, inverse, middle in zip(*made.scene.tables[:3], strict=True):
            x, y, z = ((centers - middle) @ inverse.T).T
            radial = np.hypot(x, z)
            inside = {
                k.SHELL: ~((np.abs(x) < 1) & (np.abs(y) < 1) & (np.abs(z) < 1)),
                k.BOX: (np.abs(x) < 1) & (np.abs(y) < 1) & (np.abs(z) < 1),
                k.ELLIPSOID: x**2 + y**2 + z**2 < 1,
                k.CYLINDER: (radial < 1) & (np.abs(y) < 1),
                k.CONE: (np.abs(y) < 1) & (radial < 0.5 * (y + 1)),
                k.GROUND: y > 0,
            }[int(kind)]
            assert not inside.any(), f"seed {seed}"


def test_a_landscape_has_sky_without_depth_and_a_room_has_none() -> None:
    _, landscape, _ = procedural_views(4, [0.0, 1.0], (48, 48), "landscape")
    assert 0.05 < (landscape == 0).float().mean() < 0.65
    _, room, _ = procedural_views(4, [0.0, 1.0], (48, 48), "room")
    assert (room > 0).all() and room.max() < 15


def test_confidence_falls_at_edges_with_distance_and_without_depth(clip: Clip) -> None:
    assert clip.depth is not None and clip.confidence is not None
    none = clip.depth == torch.inf
    assert (clip.confidence[none] == 1).all()
    assert (clip.confidence[~none] > 1).all()
    near, far = clip.depth[~none].quantile(0.2), clip.depth[~none].quantile(0.8)
    confidence = clip.confidence[~none]
    assert confidence[clip.depth[~none] < near].mean() > confidence[clip.depth[~none] > far].mean()
    step = (clip.depth[:, :, 1:] / clip.depth[:, :, :-1].clamp(min=1e-3)).log().abs()
    jump = (step > 0.3) & ~none[:, :, 1:] & ~none[:, :, :-1]
    level = (step < 0.005) & ~none[:, :, 1:] & ~none[:, :, :-1]
    assert clip.confidence[:, :, 1:][jump].mean() < 0.7 * clip.confidence[:, :, 1:][level].mean()


def test_the_cloud_is_in_farthest_point_order_and_in_world_coordinates(clip: Clip) -> None:
    assert clip.cloud is not None and clip.depth is not None
    assert torch.equal(farthest_point_order(clip.cloud.points, 200), torch.arange(200))
    pixels, distance = project(clip.cloud.points, clip.cameras[[0, 4]])
    x, y = pixels.floor().long().unbind(-1)
    inside = (x >= 0) & (y >= 0) & (x < 128) & (y < 96)
    seen = torch.stack([clip.depth[v][y[v].clamp(0, 95), x[v].clamp(0, 127)] for v in (0, 1)])
    on_surface = inside & ((distance - seen).abs() < 1e-3 * distance)
    assert on_surface.any(0).float().mean() > 0.95


@pytest.mark.parametrize("size,points", [((16, 24), 3000), ((64, 64), 16384), ((64, 64), 100)])
def test_the_cloud_has_the_size_asked_for_however_small_the_frames(size: tuple[int, int], points: int) -> None:
    for seed in range(4):
        clip = procedural_clip(seed, 2, size, "landscape", points=points)
        assert clip.cloud is not None and len(clip.cloud) == points
        pixels, distance = project(clip.cloud.points, clip.cameras)
        seen = (pixels > 0).all(-1) & (pixels[..., 0] < size[1]) & (pixels[..., 1] < size[0]) & (distance > 0)
        assert seen.any(0).all()


def test_speed_on_one_core() -> None:
    made = [procedural_scene(seed) for seed in (ROOM, LANDSCAPE)]
    cameras = [m.path.cameras(np.linspace(0, 1, 4), 128, 128) for m in made]
    best = min(_seconds(made, cameras) for _ in range(3))
    assert 8 / best > 20, f"{8 / best:.0f} frames a second"  # about 60 on an idle core


def _seconds(made: list, cameras: list) -> float:
    begin = time.process_time()
    for m, c in zip(made, cameras, strict=True):
        render_scene(m.scene, c)
    return time.process_time() - begin


def test_writing_goes_on_where_it_stopped(tmp_path) -> None:
    options = {"frames": 2, "size": (16, 16), "points": 64, "clips_per_shard": 2}

    def stop_after_three(what: str, done: int, total: int | None) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_procedural(tmp_path / "a", 5, 100, progress=stop_after_three, **options)
    assert write_procedural(tmp_path / "a", 5, 100, **options) == 3  # the shard of two was kept
    assert write_procedural(tmp_path / "a", 5, 100, **options) == 0
    write_procedural(tmp_path / "b", 5, 100, **options)
    for one, other in zip(sorted((tmp_path / "a").iterdir()), sorted((tmp_path / "b").iterdir()), strict=True):
        assert one.read_bytes() == other.read_bytes()
    clips = list(read_clips(tmp_path / "a"))
    assert [c.key for c in clips] == [f"procedural-{seed:08d}" for seed in range(100, 105)]
    fresh = procedural_clip(102, 2, (16, 16), points=64)
    assert clips[2].depth is not None and fresh.depth is not None and torch.equal(clips[2].depth, fresh.depth)
    assert torch.equal(clips[2].cameras.world_to_camera, fresh.cameras.world_to_camera)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (procedural_clip, {"seed": -1}, "seed"),
        (procedural_clip, {"seed": 0, "frames": 1}, "frames"),
        (procedural_clip, {"seed": 0, "size": (4, 4)}, "size"),
        (procedural_clip, {"seed": 0, "kind": "ocean"}, "kind"),
        (procedural_views, {"seed": 0, "positions": [1.5]}, "positions"),
        (procedural_scene, {"seed": 0, "gap": 10.0}, "gap"),
    ],
)
def test_bad_arguments_say_what_is_wanted(make, options, words) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make(**options)


def test_a_seed_without_a_path_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconx_pl.data.procedural.clip.choose_path", lambda *_: None)
    with pytest.raises(BadSceneError, match="seed 7: .*smaller gap"):
        procedural_scene(7)


def test_scenes_of_a_folder_can_differ_in_gap(tmp_path: Path) -> None:
    write_procedural(tmp_path, 3, 5, size=(16, 16), frames=2, points=64, gap=1.0, max_gap=3.0)
    gaps = [gap_of(seed, 1.0, 3.0) for seed in (5, 6, 7)]
    assert len(set(gaps)) == 3 and all(1.0 <= gap <= 3.0 for gap in gaps)
    for clip, seed, gap in zip(read_clips(tmp_path), (5, 6, 7), gaps, strict=True):
        alone = procedural_clip(seed, 2, (16, 16), points=64, gap=gap)
        assert torch.equal(clip.cameras.world_to_camera, alone.cameras.world_to_camera)
    assert gap_of(5, 2.0, 0.0) == 2.0
    with pytest.raises(ConfigurationError, match="greatest gap"):
        write_procedural(tmp_path / "other", 1, gap=2.0, max_gap=1.0)
