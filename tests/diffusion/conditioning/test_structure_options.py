"""Structure tokens in the camera of every frame, and with colours: what moves them, and what the U-Net sees of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from reconx_pl.diffusion.conditioning.structure import (
    StructureEncoder,
    StructureEncoderConfig,
    normalise_points,
    structure_points,
)
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.errors import BadDataError, ConfigurationError

B, T, N = 2, 3, 64
FIRST = StructureEncoderConfig(points=N, tokens=8, width=32, heads=4)
EACH = replace(FIRST, frame="each")
COLORED = replace(FIRST, color=True)


def encoder_of(config: StructureEncoderConfig) -> StructureEncoder:
    torch.manual_seed(0)
    return StructureEncoder(config)


@pytest.fixture
def world() -> Tensor:
    return torch.randn(B, N, 3, generator=torch.Generator().manual_seed(1)) + torch.tensor([0.0, 0.0, 5.0])


@pytest.fixture
def poses() -> Tensor:
    """[B, T, 4, 4], turned and moved, the first of no clip at the origin."""
    draw = torch.Generator().manual_seed(2)
    pose = torch.eye(4).repeat(B, T, 1, 1)
    angle = torch.rand(B, T, generator=draw) * 0.3
    pose[..., 0, 0], pose[..., 0, 2], pose[..., 2, 0], pose[..., 2, 2] = (
        angle.cos(),
        angle.sin(),
        -angle.sin(),
        angle.cos(),
    )
    pose[..., :3, 3] = torch.randn(B, T, 3, generator=draw) * 0.5
    return pose


def test_points_stand_in_the_camera_of_every_frame(world: Tensor, poses: Tensor) -> None:
    points = structure_points(world, poses, EACH)
    assert points.shape == (B, T, N, 3)
    for clip in range(B):
        for frame in range(T):
            homogeneous = torch.cat([world[clip], torch.ones(N, 1)], dim=1) @ poses[clip, frame].T
            torch.testing.assert_close(points[clip, frame], homogeneous[:, :3])
    assert torch.equal(structure_points(world, poses, FIRST), points[:, 0])


def test_every_frame_is_divided_by_the_distance_from_the_first_camera(world: Tensor, poses: Tensor) -> None:
    points = structure_points(world, poses, EACH)
    normalised, scale = normalise_points(points)
    assert scale.shape == (B,)
    torch.testing.assert_close(scale, points[:, 0].norm(dim=-1).mean(dim=-1))
    torch.testing.assert_close(normalised * scale[:, None, None, None], points)
    torch.testing.assert_close(normalised[:, 0].norm(dim=-1).mean(dim=-1), torch.ones(B))
    assert (normalised[:, 1].norm(dim=-1).mean(dim=-1) - 1).abs().min() > 1e-3  # a nearer camera is told to be nearer
    torch.testing.assert_close(normalised[:, 0], normalise_points(points[:, 0])[0])


def test_tokens_of_every_frame(world: Tensor, poses: Tensor) -> None:
    each, first = encoder_of(EACH), encoder_of(FIRST)
    tokens = each(structure_points(world, poses, EACH))
    assert tokens.shape == (B, T, 8, 32)
    # the first frame's are those of the paper, of one set of weights
    torch.testing.assert_close(tokens[:, 0], first(structure_points(world, poses, FIRST)), atol=1e-5, rtol=0)
    assert each.state_dict().keys() == first.state_dict().keys()


def test_a_camera_that_moves_changes_the_tokens_of_its_frame_alone(world: Tensor, poses: Tensor) -> None:
    encoder = encoder_of(EACH)
    before = encoder(structure_points(world, poses, EACH))
    moved = poses.clone()
    moved[1, 2, 0, 3] += 0.4
    changed = (encoder(structure_points(world, moved, EACH)) - before).abs().amax(dim=(-1, -2)) > 1e-4
    assert changed.nonzero().tolist() == [[1, 2]]
    # the first camera is the measure of all
    moved = poses.clone()
    moved[1, 0, 2, 3] += 2.0
    changed = (encoder(structure_points(world, moved, EACH)) - before).abs().amax(dim=(-1, -2)) > 1e-4
    assert changed[1].all() and not changed[0].any()


def test_colours_matter_and_belong_to_their_points(world: Tensor) -> None:
    encoder = encoder_of(COLORED)
    colors = torch.rand(B, N, 3, generator=torch.Generator().manual_seed(3))
    before = encoder(world, colors)
    assert before.shape == (B, 8, 32)
    other = colors.clone()
    other[0, 40] = 1 - other[0, 40]  # of a point that is no query
    changed = (encoder(world, other) - before).abs().amax(dim=(-1, -2))
    assert changed[0] > 1e-5 and changed[1] == 0
    order = torch.cat([torch.arange(8), 8 + torch.randperm(N - 8, generator=torch.Generator().manual_seed(4))])
    torch.testing.assert_close(encoder(world[:, order], colors[:, order]), before, atol=2e-5, rtol=0)
    assert not torch.allclose(encoder(world[:, order], colors), before, atol=1e-3)
    # without colours the weights are as they were
    assert encoder_of(FIRST).state_dict().keys() < encoder.state_dict().keys()


def test_colours_are_the_same_in_every_frame(world: Tensor, poses: Tensor) -> None:
    both = replace(EACH, color=True)
    colors = torch.rand(B, N, 3, generator=torch.Generator().manual_seed(3))
    tokens = encoder_of(both)(structure_points(world, poses, both), colors)
    assert tokens.shape == (B, T, 8, 32)
    first = encoder_of(COLORED)(structure_points(world, poses, FIRST), colors)
    torch.testing.assert_close(tokens[:, 0], first, atol=1e-5, rtol=0)
    changed = encoder_of(both)(structure_points(world, poses, both), colors.flip(1)) - tokens
    assert bool((changed.abs().amax(dim=(-1, -2)) > 1e-4).all())


def test_gradients_reach_the_colours(world: Tensor) -> None:
    encoder = encoder_of(COLORED)
    encoder(world, torch.rand(B, N, 3)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in encoder.embed_color.parameters())


def test_what_is_refused(world: Tensor, poses: Tensor) -> None:
    each = structure_points(world, poses, EACH)
    with pytest.raises(ConfigurationError, match="structure.frame is 'first' or 'each', got 'all'"):
        StructureEncoderConfig(frame="all")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"takes points \[B, T, N, 3\], got \(2, 64, 3\)"):
        encoder_of(EACH)(world)
    with pytest.raises(ConfigurationError, match=r"takes points \[B, N, 3\], got \(2, 3, 64, 3\)"):
        encoder_of(FIRST)(each)
    with pytest.raises(ConfigurationError, match=r"a colour for each of the points \(2, 64, 3\), got None"):
        encoder_of(COLORED)(world)
    with pytest.raises(ConfigurationError, match=r"a colour for each of the points .* got \(2, 60, 3\)"):
        encoder_of(COLORED)(world, torch.rand(B, 60, 3))
    with pytest.raises(ConfigurationError, match="7 points cannot give 8 tokens"):
        encoder_of(EACH)(each[:, :, :7])
    each[1, 2, 0, 0] = torch.nan
    with pytest.raises(BadDataError, match=r"point clouds \[1\] of the batch"):
        encoder_of(EACH)(each)


@torch.no_grad()
@pytest.mark.parametrize("bound", [False, True])
def test_tokens_of_all_frames_are_those_that_frames_share(network: ReconXDiffusion, bound: bool) -> None:
    """The U-Net reads [B, T, S, D] frame by frame: three copies of one set say the same as that set."""
    draw = torch.Generator().manual_seed(5)
    views, points = torch.rand(2, 2, 3, 8, 8, generator=draw), torch.randn(2, 32, 3, generator=draw)
    latents = network.encode(views)
    shared = network.conditions(views[:, 0], latents[:, :, 0], latents[:, :, 1], torch.full((2,), 8.0), 3, points)
    assert shared.structure_tokens is not None
    each = replace(shared, structure_tokens=shared.structure_tokens[:, None].repeat(1, 3, 1, 1))
    x, t = torch.randn(2, 12, 3, 4, 4, generator=draw), torch.tensor([5, 900])

    def predicted(conditions):
        return network.bind(conditions)(x, t) if bound else network(x, t, conditions)

    torch.testing.assert_close(predicted(each), predicted(shared), atol=1e-5, rtol=0)
    assert each.structure_tokens is not None
    other = each.structure_tokens.clone()
    other[:, 1] = other[:, 1].flip(-1)
    assert not torch.allclose(predicted(replace(each, structure_tokens=other)), predicted(shared), atol=1e-4)
