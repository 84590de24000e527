"""What needs no learning: context views moved to the targets."""

from __future__ import annotations

import torch

from reconx_pl.data.procedural import procedural_clip
from reconx_pl.evaluation.baselines import warped_views
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.metrics.image import psnr
from reconx_pl.types import Cameras


def turned_away(cameras: Cameras) -> Cameras:
    """The same places, looking back."""
    back = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0])).to(cameras.world_to_camera)
    return Cameras(back @ cameras.world_to_camera, cameras.intrinsics, cameras.height, cameras.width)


def test_surfaces_are_nearer_to_the_truth_than_points_and_holes_are_filled() -> None:
    clip = procedural_clip(3, frames=5, size=(64, 64), kind="room")
    assert clip.depth is not None and clip.cloud is not None
    views = DepthViews(clip.images[[0, 4]], clip.depth, clip.cameras[[0, 4]])
    grey = torch.full((3, 3, 64, 64), 0.5)
    truth, targets = clip.images[1:4], clip.cameras[1:4]
    by_depth, holes = warped_views(views, targets, grey)
    by_points, gaps = warped_views(clip.cloud[:60], targets, grey)
    assert float(psnr(by_depth, truth).min()) > float(psnr(by_points, truth).max()) + 3
    assert all(0 < share < 0.1 for share in holes) and all(share > 0.1 for share in gaps)
    for images in (by_depth, by_points):
        assert float((images == 0).all(1).float().mean()) < 1e-3  # black is what holes were


def test_a_target_that_sees_nothing_takes_the_fallback() -> None:
    clip = procedural_clip(1, frames=5, size=(32, 32), kind="landscape")
    assert clip.depth is not None and clip.cloud is not None
    targets = turned_away(clip.cameras[[1, 2]])
    targets.world_to_camera[1] = clip.cameras.world_to_camera[2]
    fallback = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for known in (DepthViews(clip.images[[0, 4]], clip.depth, clip.cameras[[0, 4]]), clip.cloud):
        images, holes = warped_views(known, targets, fallback)
        assert torch.equal(images[0], fallback[0]) and holes[0] == 1
        assert not torch.equal(images[1], fallback[1]) and holes[1] < 1
