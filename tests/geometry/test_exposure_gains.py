"""Gains of photographs from the colours of shared points: found, not imagined, and free of what must not matter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from reconx_pl.data.procedural import procedural_scene, render_scene
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import unproject
from reconx_pl.geometry.exposure_gains import (
    check_even_exposures,
    departures,
    evened_images,
    exposure_gains,
    exposures_differ,
    recoloured,
    sentence,
    wanted_gains,
)
from reconx_pl.geometry.visibility import visible_points
from reconx_pl.types import Cameras, PointCloud

TRUE = torch.tensor([[1.2, 1.2, 1.2], [0.8, 0.85, 0.75], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [0.9, 0.9, 0.9]])


@pytest.fixture(scope="module")
def room() -> tuple[Tensor, Cameras, Tensor]:
    """Images [5, 3, 64, 96] in [0, 1], cameras, and points [N, 3] of every view's depth, in no order."""
    made = procedural_scene(5, "room", 1.0)
    cameras = made.path.cameras(np.linspace(0.0, 1.0, 5), 64, 96)
    seen = render_scene(made.scene, cameras, 2)
    single = cameras.to(dtype=torch.float32)
    points = unproject(seen.depth, single)[seen.depth > 0]
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))
    return seen.frames.float() / 255, single, points[order]


def exposed(images: Tensor, gains: Tensor = TRUE) -> Tensor:
    """Photographs of other exposures: 8 bits, cut at white."""
    return (images * gains[:, :, None, None] * 255).round().clamp(0, 255) / 255


def test_gains_are_found_a_channel_and_the_middle_photograph_keeps_its_exposure(
    room: tuple[Tensor, Cameras, Tensor],
) -> None:
    images, cameras, points = room
    found = exposure_gains(exposed(images), cameras, points)
    assert exposures_differ(found, cameras)
    torch.testing.assert_close(found.gains * TRUE, torch.ones(5, 3), atol=0.02, rtol=0)
    assert (found.gains[2:4] - 1).abs().max() < 0.02
    apart = (evened_images(exposed(images), found.gains) - images).abs().mean()
    assert apart < 0.15 * (exposed(images) - images).abs().mean()


def test_photographs_of_one_exposure_are_left_alone(room: tuple[Tensor, Cameras, Tensor]) -> None:
    images, cameras, points = room
    found = exposure_gains(images, cameras, points)
    assert not exposures_differ(found, cameras) and (found.gains - 1).abs().max() < 0.02
    assert wanted_gains(images, cameras, points, "auto") is None
    assert wanted_gains(images, cameras, points, "always") is not None
    assert wanted_gains(exposed(images), cameras, points, "never") is None
    told = wanted_gains(exposed(images), cameras, points, "auto")
    assert told is not None and "differ by up to" in sentence(told)


def test_what_was_saturated_becomes_the_middle_of_what_it_could_be() -> None:
    grey = torch.tensor([0.5, 0.9, 1.0]).expand(2, 3, 1, 3)
    evened = evened_images(grey, torch.tensor([[0.8, 0.8, 0.8], [1.2, 1.0, 1.0]]))
    torch.testing.assert_close(evened[0, :, 0], torch.tensor([0.4, 0.72, 0.9]).expand(3, 3))
    torch.testing.assert_close(evened[1, 0, 0], torch.tensor([0.6, 1.0, 1.0]))
    assert torch.equal(evened[1, 1:], grey[1, 1:])


@pytest.mark.parametrize(
    ("gains", "differs"),
    [
        ((1.0, 1.0, 1.05, 1.0, 1.0), False),
        ((1.0, 1.0, 1.12, 1.0, 1.0), True),
        ((1.2, 1.1, 1.0, 0.92, 0.84), False),  # a camera that follows the light: view-dependent colours can as well
        ((0.84, 1.1, 1.0, 0.92, 1.2), True),
    ],
)
def test_jumps_count_and_a_steady_drift_does_not(
    room: tuple[Tensor, Cameras, Tensor], gains: tuple[float, ...], differs: bool
) -> None:
    images, cameras, points = room
    levels = torch.tensor(gains)[:, None].expand(5, 3)
    assert exposures_differ(exposure_gains(exposed(images, levels), cameras, points), cameras) is differs


def test_departures_are_from_the_nearest_view_on_either_side() -> None:
    line = torch.tensor([0.0, 3.0, 1.0, 7.0])[:, None] * torch.tensor([[1.0, 0.0, 0.0]])
    levels = torch.tensor([0.0, 0.9, 0.1, 0.5])
    expected = torch.tensor([0.0, 0.9 - (0.1 + 0.4 * 2 / 6), 0.1 - 0.9 / 3, 0.0])
    torch.testing.assert_close(departures(levels, line), expected)
    torch.testing.assert_close(departures(levels[:2], line[:2]), torch.tensor([-0.45, 0.45]))
    corner = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.8, 0.0]])
    torch.testing.assert_close(departures(levels[:3], corner), levels[:3] - 1 / 3)


def test_a_wrong_half_of_the_points_changes_little(room: tuple[Tensor, Cameras, Tensor]) -> None:
    images, cameras, points = room
    wrong = points.clone()
    wrong[::3] += 0.2 * torch.randn(wrong[::3].shape, generator=torch.Generator().manual_seed(1))
    found = exposure_gains(exposed(images), cameras, wrong)
    torch.testing.assert_close(found.gains * TRUE, torch.ones(5, 3), atol=0.04, rtol=0)


def test_what_nothing_ties_keeps_its_values(room: tuple[Tensor, Cameras, Tensor]) -> None:
    images, cameras, points = room
    pose = cameras.world_to_camera.clone()
    pose[4, :3, 3] += 1e3  # looks at nothing that is there
    found = exposure_gains(exposed(images), replace(cameras, world_to_camera=pose), points)
    assert torch.equal(found.gains[4], torch.ones(3)) and torch.isinf(found.errors[4]).all()
    torch.testing.assert_close((found.gains * TRUE)[:4], (found.gains * TRUE)[2:3].expand(4, 3), atol=0.02, rtol=0)


def test_nearest_pairs_are_enough(room: tuple[Tensor, Cameras, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    images, cameras, points = room
    for name in ("NEIGHBOURS", "HUBS"):  # one hub holds the pairs together
        monkeypatch.setattr(f"reconx_pl.geometry.exposure_gains.{name}", 1)
    found = exposure_gains(exposed(images), cameras, points)
    torch.testing.assert_close(found.gains * TRUE, torch.ones(5, 3), atol=0.02, rtol=0)


def test_held_out_photographs_follow_and_do_not_lead(room: tuple[Tensor, Cameras, Tensor]) -> None:
    images, cameras, points = room
    fitted = [0, 1, 2, 3]
    found = exposure_gains(exposed(images), cameras, points, fitted)
    torch.testing.assert_close(found.gains * TRUE, torch.ones(5, 3), atol=0.02, rtol=0)
    other = exposed(images)
    other[4] = other[4] * 0.5
    changed = exposure_gains(other, cameras, points, fitted)
    assert torch.equal(changed.gains[:4], found.gains[:4])
    torch.testing.assert_close(changed.gains[4], 2 * found.gains[4], atol=0.05, rtol=0)


def test_points_get_the_colours_of_the_photographs_that_see_them(room: tuple[Tensor, Cameras, Tensor]) -> None:
    _, cameras, points = room
    behind = cameras.centers[:1] - 1e3
    cloud = PointCloud(torch.cat([points[:500], behind]), torch.full((501, 3), 0.4), torch.ones(501))
    levels = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    colored = recoloured(cloud, levels.view(5, 1, 1, 1).expand(5, 3, 64, 96), cameras).colors
    sees = visible_points(cloud.points, cameras).T.float()  # [N, V]
    seen = sees.sum(dim=1) > 0
    expected = (sees @ levels / sees.sum(dim=1))[seen, None].expand(-1, 3)
    torch.testing.assert_close(colored[seen], expected)
    assert 300 < int(seen.sum()) < 501 and torch.equal(colored[500], cloud.colors[500]), "no photograph sees it"


def test_refusals(room: tuple[Tensor, Cameras, Tensor]) -> None:
    images, cameras, points = room
    with pytest.raises(BadSceneError, match="do not go with 5 cameras of 64 x 96"):
        exposure_gains(images[:, :, :32], cameras, points)
    with pytest.raises(ConfigurationError, match="auto, always, never; got 'on'"):
        check_even_exposures("on")
