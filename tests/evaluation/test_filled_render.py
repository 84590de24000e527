"""The floors without a network: rendered depth with its holes filled, as frames and fitted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_scenes import CONFIG, ENTRIES, MODEL, PROTOCOL, CrossFade, lazily, tiny_clip, tiny_views

from reconx_pl.evaluation.baselines import METHODS
from reconx_pl.evaluation.filled_render import NO_DEPTH, filled_frames
from reconx_pl.evaluation.report import write_report
from reconx_pl.evaluation.runner import evaluate_scene, evaluate_scenes, evaluate_views
from reconx_pl.evaluation.task import clip_task
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.metrics.image import psnr
from reconx_pl.reconstruction import scene_builder
from reconx_pl.reconstruction.frame_confidence import frame_confidence
from reconx_pl.reconstruction.pair_clips import path_cameras
from reconx_pl.reconstruction.view_generator import RecordedFrames
from reconx_pl.types import Cameras, Clip

FLOORS = replace(CONFIG, filled_render=True, filled_render_splats=True, two_views=False, nearest_input=False)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return tiny_clip(1)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What every fit was given: the method's first, then that of the filled renders."""
    calls: list[dict[str, Any]] = []
    real = scene_builder.fit

    def watch(frames: torch.Tensor, cameras: Cameras, confidence: Any, start: Any, *args: Any, **kw: Any) -> Any:
        calls.append({"frames": frames, "cameras": cameras, "confidence": confidence, "start": start} | kw)
        return real(frames, cameras, confidence, start, *args, **kw)

    monkeypatch.setattr(scene_builder, "fit", watch)
    return calls


def test_the_frames_are_the_depth_rendered_where_frames_are_generated(clip: Clip) -> None:
    noise = RecordedFrames({clip.key: torch.rand(clip.images.shape)})
    config = replace(FLOORS, filled_render_splats=False)
    result = evaluate_scene(clip, noise, config)
    assert set(result.scores) == {"reconx", "generated", "filled_render"}
    views = DepthViews(clip.images[[0, -1]], clip.depth, clip.cameras[[0, -1]])
    expected, holes = filled_frames(views, clip.cameras)
    assert result.holes == holes[1:-1] and max(holes) > 0
    assert result.filled is not None and torch.equal(result.filled, expected)
    assert torch.equal(expected[[0, -1]], clip.images[[0, -1]])  # of a camera of an input view: its photograph
    own = psnr(expected[1:-1], clip.images[1:-1])
    assert result.scores["filled_render"]["psnr"].tolist() == pytest.approx(own.tolist(), abs=1e-4)
    assert own.min() > 20 > result.scores["generated"]["psnr"].max()
    moved = evaluate_scene(clip, noise, replace(config, pose_policy="interpolated"))
    between, _ = filled_frames(views, path_cameras(clip.cameras[[0, -1]], 5))
    assert moved.filled is not None and torch.equal(moved.filled, between) and not torch.equal(between, expected)


def test_a_fit_of_them_differs_from_the_method_in_the_frames_alone(clip: Clip, fits: list[dict[str, Any]]) -> None:
    result = evaluate_scene(clip, CrossFade(), FLOORS)
    method, floor = fits
    assert result.filled is not None and not torch.equal(method["frames"], floor["frames"])
    assert torch.equal(floor["frames"][1:-1], result.filled[1:-1])
    assert torch.equal(floor["frames"][[0, -1]], clip.images[[0, -1]])
    assert torch.equal(floor["cameras"].world_to_camera, method["cameras"].world_to_camera)
    assert torch.equal(floor["start"].points, method["start"].points)
    assert floor["input_views"] == method["input_views"] == [0, 4]
    inputs = clip_task(clip, FLOORS).inputs
    rule = frame_confidence(floor["frames"], floor["cameras"], inputs, [0, 4])
    assert torch.equal(floor["confidence"], rule) and not torch.equal(rule, method["confidence"])
    assert result.scores["filled_render_splats"]["psnr"].mean() > result.scores["reconx"]["psnr"].mean()
    evaluate_scene(clip, CrossFade(), replace(FLOORS, confidence="uniform"))
    assert fits[-1]["confidence"] is None and fits[-2]["confidence"] is None
    evaluate_scene(clip, CrossFade(), replace(FLOORS, confidence="render"))
    assert torch.equal(
        fits[-1]["confidence"], frame_confidence(floor["frames"], floor["cameras"], inputs, [0, 4], surfaces=True)
    )


def test_of_an_entry_targets_are_rendered_and_frames_between_the_contexts_fitted(
    tmp_path: Path, fits: list[dict[str, Any]]
) -> None:
    views = tiny_views(2, contexts=(8, 4, 0), targets=(1, 6))
    config = replace(ENTRIES, filled_render=True, filled_render_splats=True, two_views=False, media=True)
    summary = evaluate_views(lazily(views), CrossFade(), config, tmp_path, model=MODEL, protocol=PROTOCOL)
    assert summary["complete"] and summary["left_out"] == {}
    (scores,) = [record["scores"] for record in summary["scenes"]]
    assert "depth_warp" not in scores and summary["scenes"][0]["warp_holes"]  # would be the same row again
    assert scores["filled_render"]["mean"]["psnr"] > scores["nearest_input"]["mean"]["psnr"] + 3
    assert scores["filled_render_splats"]["mean"]["psnr"] > scores["reconx"]["mean"]["psnr"]
    method, floor = fits
    assert len(floor["frames"]) == 7 and floor["input_views"] == [0, 3, 6]
    assert torch.equal(floor["frames"][[0, 3, 6]], views.context_images)
    assert torch.equal(floor["cameras"].world_to_camera, method["cameras"].world_to_camera)
    page = write_report(tmp_path, summary).read_text()
    assert METHODS["filled_render"] in page and METHODS["filled_render_splats"] in page


def test_what_has_no_depth_is_left_out_and_named(clip: Clip, tmp_path: Path) -> None:
    photographs = replace(clip, key="cloud-alone", depth=None, confidence=None)
    summary = evaluate_scenes([clip, photographs], CrossFade(), FLOORS, tmp_path, model=MODEL)
    with_depth, without = summary["scenes"]
    assert with_depth["left_out"] == {} and "filled_render" in with_depth["scores"]
    names = ("filled_render", "filled_render_splats")
    assert without["left_out"] == dict.fromkeys(names, NO_DEPTH) and not set(names) & without["scores"].keys()
    assert summary["left_out"] == {name: {NO_DEPTH: 1} for name in names}
    assert f"{METHODS['filled_render']}: not of 1 scene, {NO_DEPTH}." in write_report(tmp_path, summary).read_text()


def test_where_nothing_is_generated_there_are_no_such_frames(clip: Clip, fits: list[dict[str, Any]]) -> None:
    result = evaluate_scene(clip, CrossFade(), replace(FLOORS, diffusion=False))
    assert set(result.scores) == {"reconx"} and result.left_out == {} and len(fits) == 1
