"""What views see of a cloud: against exact depth, and what they hide from each other."""

from __future__ import annotations

import pytest
import torch

from reconx_pl.data.procedural import procedural_clip, procedural_scene, render_scene
from reconx_pl.errors import BadSceneError
from reconx_pl.geometry.cameras import in_view, project
from reconx_pl.geometry.visibility import repeated, seen_by_any, visible_points
from reconx_pl.types import Cameras


def two_walls() -> tuple[torch.Tensor, Cameras]:
    """A wall at depth 2 before the left half of one at depth 4; the second camera looks the other way."""
    axis = torch.linspace(-1, 1, 21)
    far = torch.stack(torch.meshgrid(2 * axis, 2 * axis, torch.tensor([4.0]), indexing="ij"), -1).reshape(-1, 3)
    near = torch.stack(torch.meshgrid(axis[:10], axis, torch.tensor([2.0]), indexing="ij"), -1).reshape(-1, 3)
    intrinsics = torch.tensor([[20.0, 0, 20.0], [0, 20.0, 20.0], [0, 0, 1]]).expand(2, 3, 3)
    pose = torch.stack([torch.eye(4), torch.diag(torch.tensor([-1.0, 1, -1, 1]))])
    return torch.cat([far, near]), Cameras(pose, intrinsics, 40, 40)


def test_a_wall_hides_what_is_behind_it_alone() -> None:
    points, cameras = two_walls()
    seen = visible_points(points, cameras)
    hidden = ~seen[0]
    behind = (points[:, 2] == 4) & (points[:, 0] < -0.3) & in_view(points, cameras)[0]  # off the wall's edge
    beside = (points[:, 2] == 4) & (points[:, 0] > 0.3) & in_view(points, cameras)[0]
    assert behind.sum() > 100 and hidden[behind].all()
    assert beside.sum() > 100 and not hidden[beside].any()
    assert not hidden[(points[:, 2] == 2) & in_view(points, cameras)[0]].any()
    assert not seen[1].any()
    assert torch.equal(seen_by_any(points, cameras), seen[0].nonzero().squeeze(1))


@pytest.mark.parametrize(("kind", "seed"), [("room", 1), ("landscape", 0)])
def test_agrees_with_exact_depth(kind: str, seed: int) -> None:
    clip = procedural_clip(seed, frames=5, size=(128, 128), points=4096, kind=kind)
    assert clip.cloud is not None
    points, cameras = clip.cloud.points, clip.cameras[[0, 2]]
    depth = render_scene(procedural_scene(seed, kind, 1.0).scene, cameras, 1).depth
    seen, inside = visible_points(points, cameras), in_view(points, cameras)
    pixels, z = project(points, cameras)
    for view in range(2):
        column, row = pixels[view, inside[view]].long().T
        truth = z[view, inside[view]] <= 1.03 * depth[view, row, column]
        found = seen[view, inside[view]]
        assert (~truth).sum() > 100
        assert found[truth].float().mean() > 0.8 and found[~truth].float().mean() < 0.2


def test_what_is_left_keeps_its_distances_and_repeats_come_last() -> None:
    points, cameras = two_walls()
    left = points[seen_by_any(points, cameras)]
    made_up = repeated(left, len(points))
    assert made_up.shape == points.shape and torch.equal(made_up[: len(left)], left)
    gaps = [float((made_up[:i] - made_up[i]).norm(dim=1).min()) for i in range(1, len(points))]
    assert min(gaps[: len(left) - 1]) > 0 and set(gaps[len(left) - 1 :]) == {0.0}
    assert torch.equal(repeated(left, 5), left[:5])
    with pytest.raises(BadSceneError, match="no point"):
        repeated(left[:0], 5)
