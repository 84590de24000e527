"""A cloud as the surfaces that views see, and which disc hits which pixel."""

from __future__ import annotations

import pytest
import torch

from reconx_pl.geometry.rendering import discs
from reconx_pl.geometry.rendering.cloud_view import view_cloud
from reconx_pl.geometry.rendering.discs import disc_hits
from reconx_pl.types import Cameras, PointCloud


def test_near_points_hide_far_ones() -> None:
    intrinsics = torch.tensor([[[20.0, 0, 10.0], [0, 20.0, 10.0], [0, 0, 1]]])
    cameras = Cameras(torch.eye(4)[None], intrinsics, 20, 20)
    axis = torch.linspace(-1, 1, 21)
    plane = torch.stack(torch.meshgrid(axis, axis, torch.tensor([2.0]), indexing="ij"), -1).reshape(-1, 3)
    red, blue = torch.tensor([[1.0, 0, 0]]).expand(441, 3), torch.tensor([[0, 0, 1.0]]).expand(441, 3)
    far = plane * torch.tensor([2.0, 2.0, 2.0])
    cloud = PointCloud(torch.cat([far, plane]), torch.cat([blue, red]), torch.full((882,), 5.0))
    seen = view_cloud(cloud, cameras)
    assert seen.covered.all()
    torch.testing.assert_close(seen.depth, torch.full((1, 20, 20), 2.0))
    torch.testing.assert_close(seen.color[0, :, 10, 10], torch.tensor([1.0, 0, 0]))
    behind = view_cloud(PointCloud(-cloud.points, cloud.colors, cloud.confidence), cameras)
    assert not behind.covered.any() and behind.depth.abs().sum() == 0


def test_discs_hit_the_pixels_whose_centres_are_within_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the distance of every centre to every pixel, in the order of points, columns and rows."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.rand(50, 2, generator=generator) * torch.tensor([20.0, 14.0]) - 4
    pixels[7] = torch.tensor([float("nan"), 3.0])
    radius = 3 * torch.rand(50, generator=generator)
    drawn = torch.rand(50, generator=generator) < 0.8
    height, width = 6, 12
    x, y = torch.meshgrid(torch.arange(width), torch.arange(height), indexing="ij")
    gap = (torch.stack([x, y], -1) + 0.5 - pixels[:, None, None]).norm(dim=-1)  # [N, W, H]
    point, column, row = ((gap <= radius[:, None, None]) & drawn[:, None, None]).nonzero(as_tuple=True)
    assert len(point) > 100
    for pairs in (2**20, 100):
        monkeypatch.setattr(discs, "_AT_ONCE", pairs)
        hits = disc_hits(pixels, radius, drawn, height, width, reach=3)
        assert torch.equal(hits.point, point) and torch.equal(hits.cell, row * width + column)
        torch.testing.assert_close(hits.gap, gap[point, column, row])
