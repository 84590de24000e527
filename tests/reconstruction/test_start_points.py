"""The points that a fit of the input views starts from, and where the sky has its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reconx_pl.data.procedural import procedural_clip
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.evaluation.task import clip_task
from reconx_pl.geometry.cameras import project, unproject
from reconx_pl.geometry.rendering.limits import FAR
from reconx_pl.reconstruction.input_views import InputViews
from reconx_pl.reconstruction.scene_builder import SceneConfig, input_sequence, start_points
from reconx_pl.types import PointCloud


@pytest.fixture(scope="module")
def inputs() -> InputViews:
    """Two views of a landscape; the upper rows are sky, the left columns are not known."""
    clip = procedural_clip(1, frames=3, size=(32, 32), points=300, kind="landscape")
    depth = torch.where(torch.isfinite(clip.depth) & (clip.depth > 0), clip.depth, 9.0)
    depth[:, :6], depth[:, :, :4] = torch.inf, 0.0
    confidence = torch.full_like(depth, 3.0)
    confidence[:, 0] = 7.0  # of a row of sky
    return replace(clip_task(clip, EvaluationConfig()).inputs, depth=depth, confidence=confidence)


def points_of(inputs: InputViews, config: SceneConfig | None = None) -> PointCloud:
    return start_points(inputs, input_sequence(inputs), None, config or SceneConfig())


def test_sky_has_points_far_away_and_the_unknown_has_none(inputs: InputViews) -> None:
    start, alone = points_of(inputs), replace(inputs, cloud=None)
    assert len(points_of(alone)) == int((inputs.depth > 0).sum()) <= len(start)
    largest = float(inputs.depth[torch.isfinite(inputs.depth)].max())
    pixels, depth = project(points_of(alone).points, inputs.cameras)
    own = (depth - FAR * largest).abs().argmin(dim=0)  # the view whose sky it is
    far = depth[own, torch.arange(len(own))] > FAR * largest * 0.999
    assert int(far.sum()) == int(torch.isinf(inputs.depth).sum()) == 2 * 6 * 28
    shown = pixels[own, torch.arange(len(own))][far]
    assert shown[:, 1].max() < 6 and shown[:, 0].min() > 4
    assert int((points_of(alone).points.norm(dim=1) > FAR * largest / 2).sum()) == int(far.sum())  # and nothing else
    sky = points_of(alone)[far]
    assert sorted(sky.confidence.unique().tolist()) == [3.0, 7.0] and int((sky.confidence == 7).sum()) == 2 * 28
    first = int(far.nonzero()[0])
    column, row = pixels[own[first], first].long().tolist()
    assert torch.equal(points_of(alone).colors[first], inputs.images[own[first], :, row, column])


def test_a_point_before_the_sky_hangs_in_the_air(inputs: InputViews) -> None:
    """The sky is known: a cloud tells nothing there. Of the unknown it does."""
    camera = inputs.cameras[0]
    rays = unproject(torch.full((1, 32, 32), 2.0), camera)[0]  # [H, W, 3], two units before the camera
    cloud = PointCloud(rays[[2, 20], [10, 1]], torch.zeros(2, 3), torch.ones(2))
    other = replace(inputs, depth=torch.stack([inputs.depth[0], torch.zeros(32, 32)]), cloud=cloud)
    assert len(points_of(other)) == int((other.depth > 0).sum()) + 1
    assert torch.equal(points_of(other).points[-1], rays[20, 1])
