"""Varied procedural scenes, and scenes with the errors of estimated geometry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reconx_pl.data.procedural import imperfect, procedural_clip, procedural_scene, render_scene
from reconx_pl.data.procedural import layout as k
from reconx_pl.data.procedural.imperfect import imperfect_clip
from reconx_pl.data.procedural.primitives import Scene, SceneBuilder
from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.cameras import project, unproject
from reconx_pl.types import Cameras, Clip

SIZE = (48, 48)


def made(seed: int, **options: object) -> Clip:
    return procedural_clip(seed, frames=5, size=SIZE, points=256, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def exact() -> Clip:
    return made(5, kind="clutter", variety="varied")


def ball(gloss: float) -> Scene:
    b = SceneBuilder(np.random.default_rng(0))
    row = b.material(k.PLAIN, (0.3, 0.3, 0.3), grain=0.0)
    b._rows[row][k.GLOSS] = gloss
    b.add(k.ELLIPSOID, (0, 0, 4), (1, 1, 1), row)
    light = np.array([0.0, -0.6, -0.8, 0.0, 1, 1, 1, 0.2, 0.2, 0.2, 1.0, 0, 0])
    return b.build(light, np.zeros(10), "a ball")


def camera(size: int, focal: float = 1.0) -> Cameras:
    intrinsics = torch.tensor([[focal * size, 0, size / 2], [0, focal * size, size / 2], [0, 0, 1.0]])
    return Cameras(torch.eye(4)[None], intrinsics[None], size, size)


def test_what_varies_is_the_look_and_not_where_things_stand() -> None:
    plain, varied = procedural_scene(3, "room").scene.tables, procedural_scene(3, "room", variety="varied").scene.tables
    assert np.array_equal(plain.centers, varied.centers) and np.array_equal(plain.kinds, varied.kinds)
    assert not np.array_equal(plain.materials, varied.materials)
    assert (plain.materials[:, k.GLOSS] == 0).all() and k.LEAVES not in plain.materials[:, k.KIND]
    kinds = [procedural_scene(seed, variety="varied").kind for seed in range(12)]
    assert set(kinds) == {"room", "landscape", "clutter"}
    textures = [procedural_scene(seed, variety="varied").scene.tables.materials[:, k.KIND] for seed in range(4)]
    assert all(k.LEAVES in kinds for kinds in textures)


def test_the_name_of_a_clip_says_its_variety(exact: Clip) -> None:
    assert exact.key == "procedural-varied-clutter-00000005" and made(7).key == "procedural-00000007"
    assert made(7, variety="estimated").key == "procedural-estimated-00000007"
    with pytest.raises(ConfigurationError, match="plain, varied, estimated"):
        made(0, variety="real")


def test_clutter_has_exact_depth(exact: Clip) -> None:
    assert exact.depth is not None
    points = unproject(exact.depth[:1], exact.cameras[[0]])[0]
    pixels, distance = project(points[exact.depth[0].isfinite()], exact.cameras[[4]])
    grid = 2 * pixels[0] / SIZE[0] - 1
    inside = (grid.abs() < 0.95).all(-1)
    seen = F.grid_sample(exact.depth[None, 1:].nan_to_num(posinf=1e3), grid[None, None], align_corners=False)[0, 0, 0]
    same = (distance[0] / seen - 1).abs() < 0.05
    assert inside.float().mean() > 0.4 and same[inside].float().mean() > 0.6


def test_leaves_do_not_flicker_with_the_distance() -> None:
    b = SceneBuilder(np.random.default_rng(0))
    row = b.material(k.LEAVES, (0.9, 0.1, 0.1), (0.1, 0.9, 0.1), (0.1, 0.1, 0.9), period=(0.6, 0.6), grain=0.0)
    b.add(k.BOX, (0, 0, 5), (3, 3, 0.1), row)
    light = np.array([0.0, 0.0, -1.0, 0.0, 0.7, 0.7, 0.7, 0.2, 0.2, 0.2, 1.0, 0, 0])
    scene = b.build(light, np.zeros(10), "leaves")
    fine = render_scene(scene, camera(256, 1.2), samples=3).frames.float() / 255
    coarse = render_scene(scene, camera(32, 1.2)).frames.float() / 255
    assert fine.std() > 0.1, "a rich texture"
    mean = F.avg_pool2d(fine, 8)
    assert (mean - coarse).abs().mean() < 0.8 * (mean - fine[:, :, 4::8, 4::8]).abs().mean(), "not one ray in eight"


def test_a_highlight_is_added_to_the_same_shape() -> None:
    dull, glossy = (render_scene(ball(gloss), camera(64)) for gloss in (0.0, 0.8))
    assert torch.equal(dull.depth, glossy.depth)
    brighter = glossy.frames.float() - dull.frames.float()
    assert brighter.min() >= 0 and brighter.max() > 100
    assert (brighter > 50).float().mean() < 0.1 * (dull.depth > 0).float().mean() * 3, "in one place"


def test_estimated_clips_are_those_of_the_varied_scene_with_errors(exact: Clip) -> None:
    one = made(5, kind="clutter", variety="estimated")
    again = made(5, kind="clutter", variety="estimated")
    assert one.depth is not None and again.depth is not None and torch.equal(one.depth, again.depth)
    assert one.frames.shape == exact.frames.shape and one.caption == exact.caption


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_what_goes_wrong_with_geometry(exact: Clip, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imperfect, "EXACT", 0.0)
    monkeypatch.setattr(imperfect, "_DENSE", 1.0 if kind == "dense" else 0.0)
    assert exact.depth is not None and exact.cloud is not None
    for seed in range(6):
        clip = imperfect_clip(exact, np.random.default_rng(seed))
        assert clip.depth is not None and clip.confidence is not None and clip.cloud is not None
        assert not clip.depth.isnan().any() and clip.depth.min() >= 0 and clip.confidence.min() >= 1
        ends = clip.cameras[[0, 4]].world_to_camera
        assert torch.equal(ends, exact.cameras[[0, 4]].world_to_camera), "the input views are where they are"
        turn = clip.cameras.world_to_camera[1:4, :3, :3] @ exact.cameras.world_to_camera[1:4, :3, :3].mT
        angle = ((turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(max=1).acos().rad2deg()
        assert 0.005 < angle.max() < 1.5
        known = (clip.depth > 0) & clip.depth.isfinite() & exact.depth.isfinite()
        ratio = clip.depth[known] / exact.depth[known]
        assert 0.85 < ratio.median() < 1.18 and ratio.log().abs().median() > 1e-4
        holes = (clip.depth == 0).float().mean()
        assert holes == 0 if kind == "dense" else 0.05 < holes < 0.95
        # the cloud goes with the depth: nearer to it than the exact one is
        pixels, distance = project(clip.cloud.points, exact.cameras[[0]])
        _, before = project(exact.cloud.points, exact.cameras[[0]])
        x, y = pixels[0].floor().long().clamp(0, SIZE[0] - 1).unbind(-1)
        new, old = clip.depth[0, y, x], exact.depth[0, y, x]
        on = (new > 0) & new.isfinite() & ((before[0] / old - 1).abs() < 0.02)
        assert (distance[0] / new - 1)[on].abs().median() < (before[0] / new - 1)[on].abs().median() + 1e-4


def test_sky_is_unknown_to_a_sweep_and_somewhere_to_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = made(2, kind="landscape", variety="varied")
    assert clip.depth is not None
    sky = clip.depth.isinf()
    assert sky.any()
    monkeypatch.setattr(imperfect, "EXACT", 0.0)
    found = set()
    for dense in (0.0, 1.0):
        monkeypatch.setattr(imperfect, "_DENSE", dense)
        for seed in range(12):
            depth = imperfect_clip(clip, np.random.default_rng(seed)).depth
            assert depth is not None
            found.add((dense, "hole" if (depth[sky] == 0).all() else "far" if depth[sky].isinf().all() else "near"))
    assert found == {(0.0, "hole"), (1.0, "far"), (1.0, "near")}


def test_exposure_moves_slowly_and_alike_for_all_pixels() -> None:
    clip = made(5, kind="clutter", variety="varied")
    clip = replace(clip, frames=torch.full_like(clip.frames, 120))
    changed = [imperfect_clip(clip, np.random.default_rng(seed)).frames for seed in range(8)]
    assert any(torch.equal(frames, clip.frames) for frames in changed)
    moved = [frames for frames in changed if not torch.equal(frames, clip.frames)]
    assert moved and all(frames.float().std((2, 3)).max() == 0 for frames in moved)
    steps = torch.stack([frames[:, :, 0, 0].float().diff(dim=0).abs().max() for frames in moved])
    assert 0 < steps.max() < 12, "grey levels from frame to frame"
