"""Which rendered pixels two photographs confirm: a wall before three cameras side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reconx_pl.diffusion.confirmed import confirmed_pixels
from reconx_pl.diffusion.splat_renders import seen_by
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.types import Cameras, Gaussians

SIDE, DISTANCE, STEP = 32, 4.0, 0.5


def cameras(count: int = 3) -> Cameras:
    """Side by side, one after the other ``STEP`` to the right: a point of the wall moves 4 pixels a camera."""
    pose = torch.eye(4).repeat(count, 1, 1)
    pose[:, 0, 3] = -STEP * torch.arange(count)
    intrinsics = torch.tensor([[32.0, 0, 16], [0, 32, 16], [0, 0, 1]]).repeat(count, 1, 1)
    return Cameras(pose, intrinsics, SIDE, SIDE)


def wall() -> Gaussians:
    """Grey and opaque, at ``DISTANCE``, wider than any camera sees."""
    y, x = torch.meshgrid(torch.arange(-4, 4, 0.1), torch.arange(-4, 5, 0.1), indexing="ij")
    means = torch.stack([x.flatten(), y.flatten(), torch.full((x.numel(),), DISTANCE)], -1)
    count = len(means)
    turned = torch.tensor([1.0, 0, 0, 0]).repeat(count, 1)
    return Gaussians(
        means, turned, torch.full((count, 3), 0.1).log(), torch.full((count,), 4.0), torch.zeros(count, 1, 3)
    )


@pytest.fixture
def views() -> DepthViews:
    """The first and the last camera's photographs of the wall."""
    ends = cameras()[[0, 2]]
    images = default_renderer(torch.device("cpu")).render(wall(), ends).color.clamp(0, 1)
    return DepthViews(images, torch.full((2, SIDE, SIDE), DISTANCE), ends)


def confirmed(views: DepthViews, scene: Gaussians | None = None, path: Cameras | None = None) -> Tensor:
    scene, path = scene or wall(), path or cameras()
    return confirmed_pixels(seen_by(path, scene), path, views, scene)


def test_what_a_photograph_shows_in_this_colour_is_confirmed(views: DepthViews) -> None:
    assert confirmed(views)[1].all()


def test_what_no_photograph_shows_is_not(views: DepthViews) -> None:
    aside = cameras(8)[[7]]  # 28 pixels from the first, 20 from the last
    seen = confirmed(views, path=aside)[0]
    assert seen[:, :11].all() and not seen[:, 13:].any()


def test_a_photograph_that_shows_another_colour_refuses(views: DepthViews) -> None:
    images = views.images.clone()
    images[1, :, 10:20, 8:16] += 0.3  # of the last photograph: 4 pixels farther right in the frame before
    between = confirmed(replace(views, images=images))[1]
    assert not between[11:19, 13:19].any()
    assert between[:8, 4:28].all() and between[11:19, 22:28].all()


def test_a_photograph_from_which_something_hides_the_point_says_nothing(views: DepthViews) -> None:
    """A board close to the last camera hides the wall from it."""
    y, x = torch.meshgrid(torch.arange(-0.6, 0.6, 0.05), torch.arange(0.6, 1.4, 0.05), indexing="ij")
    board = torch.stack([x.flatten(), y.flatten(), torch.ones(x.numel())], -1)
    count, bare = len(board), wall()
    hidden = Gaussians(
        torch.cat([bare.means, board]),
        torch.cat([bare.quaternions, bare.quaternions[:1].repeat(count, 1)]),
        torch.cat([bare.log_scales, torch.full((count, 3), 0.05).log()]),
        torch.cat([bare.opacity_logits, torch.full((count,), 4.0)]),
        torch.cat([bare.sh, torch.zeros(count, 1, 3)]),
    )
    other = replace(views, images=torch.stack([views.images[0], views.images[1] + 0.3]))
    middle = (0, slice(12, 20), slice(12, 20))
    assert confirmed(other, hidden)[middle].all()
    assert not confirmed(other, bare)[middle].any()
