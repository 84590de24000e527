"""The confidence of generated pixels: photographed > agrees with what was seen > contradicts it or lies in a hole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reconx_pl.data.procedural import procedural_clip
from reconx_pl.errors import BadSceneError
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.evaluation.task import clip_task
from reconx_pl.geometry.rendering.surface import render_surface
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.reconstruction.frame_confidence import frame_confidence
from reconx_pl.reconstruction.input_views import InputViews
from reconx_pl.types import Clip


@pytest.fixture(scope="module")
def clip() -> Clip:
    return procedural_clip(3, frames=5, size=(48, 48), points=2048, kind="landscape", gap=2.0)


@pytest.fixture(scope="module")
def inputs(clip: Clip) -> InputViews:
    return clip_task(clip, EvaluationConfig()).inputs


def test_what_agrees_with_the_surfaces_counts_most_and_holes_least(clip: Clip, inputs: InputViews) -> None:
    assert inputs.depth is not None and bool(inputs.depth.isinf().any()), "a scene with sky"
    seen = render_surface(DepthViews(inputs.images, inputs.depth, inputs.cameras), clip.cameras)
    covered = seen.coverage[1:-1] > 0.5
    right = frame_confidence(clip.images, clip.cameras, inputs, [0, 4], surfaces=True)
    assert torch.equal(right[[0, 4]], inputs.confidence)
    assert torch.all(right[1:-1][~covered] == 1) and bool((~covered).any())
    sky = covered & seen.depth[1:-1].isinf()
    assert right[1:-1][sky].median() > 8, "sky that was seen is known"
    points = frame_confidence(clip.images, clip.cameras, inputs, [0, 4])
    assert points[1:-1][sky].median() == 1, "a cloud has no points there"
    wrong = frame_confidence(1 - clip.images, clip.cameras, inputs, [0, 4], surfaces=True)
    assert wrong[1:-1][covered].mean() < 0.5 * right[1:-1][covered].mean()


def test_frames_are_judged_one_by_one(clip: Clip, inputs: InputViews, monkeypatch: pytest.MonkeyPatch) -> None:
    together = frame_confidence(clip.images, clip.cameras, inputs, [0, 4], surfaces=True)
    monkeypatch.setattr("reconx_pl.reconstruction.frame_confidence.AT_ONCE", 2)
    assert torch.equal(together, frame_confidence(clip.images, clip.cameras, inputs, [0, 4], surfaces=True))


def test_surfaces_need_depth(clip: Clip, inputs: InputViews) -> None:
    with pytest.raises(BadSceneError, match="'render' needs depth"):
        frame_confidence(clip.images, clip.cameras, replace(inputs, depth=None), [0, 4], surfaces=True)
