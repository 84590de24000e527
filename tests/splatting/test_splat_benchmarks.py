"""What the splat benchmarks conclude from what they measure."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from splat_scenes import random_gaussians, ring_cameras

from benchmarks.splat_converge import EVERY, OURS, Scene, convergence, steps_within
from benchmarks.splat_oracle import GradientError, ValueErrors
from reconx_pl.splatting.fit import fit
from reconx_pl.splatting.renderers.cpu import CpuRenderer
from reconx_pl.types import PointCloud


def test_steps_within_a_margin_count_from_the_last_dip() -> None:
    assert steps_within([(0, 10.0), (25, 20.0), (50, 19.7), (75, 20.0)]) == 75
    assert steps_within([(0, 10.0), (25, 19.9), (50, 21.0), (75, 20.0)]) == 25
    assert steps_within([(0, 20.0), (25, 20.0)]) == 0


def test_looking_on_does_not_change_the_fit() -> None:
    cameras = ring_cameras(3, 24)
    truth = random_gaussians(60)
    frames = CpuRenderer().render(truth, cameras).color.clamp(0, 1)
    points = PointCloud(truth.means, torch.rand(60, 3, generator=torch.Generator().manual_seed(0)), torch.ones(60))
    config = replace(OURS, steps=2 * EVERY)
    curve, seconds = convergence(Scene("", frames, cameras, points, frames[:1], cameras[0]), config, "cpu")
    assert [step for step, _ in curve] == [0, EVERY, 2 * EVERY] and seconds > 0
    result = fit(frames, cameras, None, points, config)
    picture = CpuRenderer().render(result.gaussians, cameras[0]).color.clamp(0, 1)
    assert curve[-1][1] == pytest.approx(-10 * float((picture - frames[:1]).square().mean().log10()), abs=1e-3)
    assert curve[-1][1] > curve[0][1] + 3


def test_figures_beyond_the_kits_tolerances_are_problems() -> None:
    good = ValueErrors(color=1e-5, alpha=1e-6, depth=1e-5, anywhere=1e-3, share=0.01, judge_all=True)
    assert not good.problems()
    assert replace(good, color=1e-4).problems() and replace(good, depth=float("nan")).problems()
    assert replace(good, share=0.03).problems() and not replace(good, share=0.03, judge_all=False).problems()
    assert not GradientError(1e-3, 0.5, 0.0).problems()
    assert len(GradientError(float("nan"), 2.0, 1e-9).problems()) == 3
