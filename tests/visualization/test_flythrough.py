"""Rendered flights and the colours of depth and confidence."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from matplotlib import colormaps

from reconx_pl.splatting.renderers.cpu import CpuRenderer
from reconx_pl.types import Cameras, Gaussians
from reconx_pl.visualization.color_maps import confidence_colors, depth_colors
from reconx_pl.visualization.flythrough import render_flythrough


def ends(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The colours at both ends of a map of matplotlib."""
    return tuple(np.array(colormaps[name](value, bytes=True)[:3]) for value in (0.0, 1.0))


def test_near_is_red_and_far_is_blue_on_one_scale_for_all_frames() -> None:
    depth = torch.zeros(2, 4, 8)
    depth[0, :, 2:] = 1.0  # metres
    depth[1, :, 2:] = 4.0
    colors = depth_colors(depth)
    far, near = ends("turbo")
    assert (colors[:, :, :2] == 0).all()  # no depth
    assert (colors[0, :, 2:] == near).all() and (colors[1, :, 2:] == far).all()
    assert near[0] > near[2] and far[2] > far[0]


def test_depth_is_shown_by_its_inverse() -> None:
    depth = torch.tensor([1.0, 2.0, 1e6]).repeat_interleave(100).reshape(1, 3, 100)
    middle = depth_colors(depth)[0, 1, 0].astype(int)
    np.testing.assert_allclose(middle, colormaps["turbo"](0.5, bytes=True)[:3], atol=4)  # one entry of the map


def test_stray_values_do_not_stretch_the_scale() -> None:
    depth = torch.linspace(1.0, 2.0, 10_000).reshape(1, 100, 100)
    usual = depth_colors(depth)
    depth[0, 0, 0] = 1e-4
    np.testing.assert_allclose(depth_colors(depth)[0, 1:].astype(int), usual[0, 1:].astype(int), atol=2)


def test_confidence_is_shown_by_its_logarithm() -> None:
    confidence = torch.tensor([1.0, math.e, math.e**2]).repeat_interleave(100).reshape(1, 3, 100)
    low, high = ends("viridis")
    colors = confidence_colors(confidence)[0, :, 0]
    assert (colors[0] == low).all() and (colors[2] == high).all()
    assert (colors[1] == np.array(colormaps["viridis"](0.5, bytes=True)[:3])).all()


def test_one_value_and_no_value_have_colors() -> None:
    assert (confidence_colors(torch.full((2, 4, 4), 3.0)) == ends("viridis")[0]).all()
    assert (depth_colors(torch.zeros(2, 4, 4)) == 0).all()


def test_a_flight_has_frames_and_depth_of_what_is_solid() -> None:
    """A red ball at 3 m, and a haze of one tenth that has no depth."""
    scene = Gaussians(
        means=torch.tensor([[0.0, 0.0, 3.0], [0.9, 0.0, 3.0]]),
        quaternions=torch.tensor([[1.0, 0, 0, 0]]).repeat(2, 1),
        log_scales=torch.full((2, 3), math.log(0.15)),
        opacity_logits=torch.logit(torch.tensor([0.99, 0.1])),
        sh=torch.tensor([[[1.7, -1.7, -1.7]], [[1.7, 1.7, 1.7]]]),
    )
    k = torch.tensor([[40.0, 0, 24], [0, 40, 16], [0, 0, 1]])
    cameras = Cameras(torch.eye(4).repeat(3, 1, 1), k.repeat(3, 1, 1), 32, 48)
    done: list[tuple[str, int, int | None]] = []
    flown = render_flythrough(scene, cameras, CpuRenderer(), lambda *call: done.append(call))
    assert flown.frames.shape == (3, 32, 48, 3) and done == [("rendering", view, 3) for view in (1, 2, 3)]
    red, green, blue = flown.frames[0, 16, 24].tolist()
    assert red > 200 and green < 30 and blue < 30
    assert flown.depth.shape == (3, 32, 48)
    torch.testing.assert_close(flown.depth[:, 16, 24], torch.full((3,), 3.0))
    assert flown.depth[0, 16, 36] == 0 and flown.depth[0, 0, 0] == 0
    behind = render_flythrough(replace(scene, means=-scene.means), cameras[0], CpuRenderer())
    assert (behind.depth == 0).all()
