"""What the network promises beyond its numbers: who sees whom, the order of views, pieces, precision, arguments."""

from __future__ import annotations

import pytest
import torch
from da3_networks import stand_in_cameras, stand_in_images, stand_in_network, tiny_network
from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.da3.config import Da3Config
from reconx_pl.geometry.da3.positions import resized_table
from reconx_pl.geometry.da3.reference import reference_view

# Of this implementation, written down when it met every kit (tests/parity), which are too large for the repository:
# depth and confidence at a pixel of three views, nine numbers of a camera, direction and confidence of two rays.
NUMBERS = {
    "found": [
        1.378545, 0.941048, 1.472688, 2.49617, 2.838893, 2.367225, 0.03046, -0.06806, -0.06771, 0.34859, 0.04944,
        -0.024588, 1.056766, 1.01364, 1.027032, -0.844026, 0.429741, -0.305183, 1.754698,
    ],
    "given": [
        1.422178, 0.946705, 1.524221, 2.458479, 2.834517, 2.342661, 0.226816, -0.078073, -0.137719, 1.049426, -0.563279,
        -1.016609, 1.381041, 1.015626, 1.187927, -0.839751, 0.429517, -0.338073, 1.727245,
    ],
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("cameras_are", NUMBERS)
def test_numbers_that_were_right_where_the_kits_were(cameras_are: str) -> None:
    model = stand_in_network()
    given = stand_in_cameras(3, 42, 70) if cameras_are == "given" else ()
    taps = model.encode(stand_in_images(3, 42, 70), *given)
    output = model.decode(taps, with_rays=True)
    assert output.rays is not None and (taps.reference is None if given else taps.reference.tolist() == [2])
    found = [
        *output.depth[0, :, 10, 20].tolist(),
        *output.confidence[0, :, 30, 60].tolist(),
        *output.encoding[0, 1].tolist(),
        *output.rays.directions[0, 2, 7, 9].tolist(),
        output.rays.confidence[0, 1, 5, 30].item(),
    ]
    assert found == pytest.approx(NUMBERS[cameras_are], abs=1e-5)


def images(views: int = 3, height: int = 28, width: int = 42) -> Tensor:
    return torch.randn(1, views, 3, height, width, generator=torch.Generator().manual_seed(0))


def cameras(views: int) -> tuple[Tensor, Tensor]:
    poses = torch.eye(4).repeat(1, views, 1, 1)
    poses[0, :, 0, 3] = torch.arange(views) * 0.5
    intrinsics = torch.tensor([[40.0, 0, 21], [0, 42.0, 14], [0, 0, 1]]).repeat(1, views, 1, 1)
    return poses, intrinsics


@torch.no_grad()
def test_views_see_each_other_from_the_first_cross_view_block_on() -> None:
    model = tiny_network()
    one = images()
    other = one.clone()
    other[:, 2] += 1
    before, after = (model.encode(value, reference="first").tokens for value in (one, other))
    assert model.config.taps == (2, 3, 4, 5) and model.config.cross_view_start == 2
    assert before[0][:, 0].equal(after[0][:, 0]), "block 2 attends within a view"
    assert not torch.allclose(before[1][:, 0], after[1][:, 0]), "block 3 attends over all of them"
    half = model.config.width
    assert before[1][:, 0, :, :half].equal(after[1][:, 0, :, :half]), "the first half is of the block within views"


@torch.no_grad()
def test_an_odd_first_cross_view_block_sees_all_views_at_once() -> None:
    """As in the largest released network: what it calls the within-view half has the camera token already."""
    model = tiny_network(cross_view_start=3, taps=(1, 3, 4, 5))
    one = images()
    other = one.clone()
    other[:, 2] += 1
    before, after = (model.encode(value, reference="first").tokens for value in (one, other))
    assert before[0][:, 0].equal(after[0][:, 0]) and not torch.allclose(before[1][:, 0], after[1][:, 0])
    half = model.config.width
    assert before[1][0, 1:, 0, :half].equal(model.backbone.camera_token[0, 1:].expand(2, -1))


@torch.no_grad()
def test_views_in_another_order_give_the_same_in_that_order() -> None:
    model, order = tiny_network(), [2, 0, 3, 1]
    found, turned = model(images(4)), model(images(4)[:, order])
    assert torch.allclose(found.depth[:, order], turned.depth, rtol=1e-4)
    assert torch.allclose(found.encoding[:, order], turned.encoding, atol=1e-5)


@torch.no_grad()
def test_the_reference_is_chosen_and_matters() -> None:
    model = tiny_network()
    first, middle = (model(images(), reference=choice).depth for choice in ("first", "middle"))
    assert not torch.allclose(first, middle)
    assert model.encode(images(), reference="middle").reference.tolist() == [1]
    assert model.encode(images(2)).reference.tolist() == [0], "of two views the first is the reference"
    assert model.encode(images(), *cameras(3)).reference is None
    with pytest.raises(ConfigurationError, match="saddle_balanced, first, middle, not 'last'"):
        reference_view(torch.zeros(1, 3, 4), "last")  # type: ignore[arg-type]


@torch.no_grad()
def test_known_cameras_change_what_is_seen() -> None:
    model = tiny_network()
    poses, intrinsics = cameras(2)
    told, moved = poses.clone(), poses.clone()
    moved[0, 1, 0, 3] = 2
    depths = [model(images(2), *given).depth for given in ((), (told, intrinsics), (moved, intrinsics))]
    assert not torch.allclose(depths[0], depths[1]) and not torch.allclose(depths[1], depths[2])
    shifted = intrinsics.clone()
    shifted[..., 0, 2] += 5
    assert model(images(2), told, shifted).depth.equal(depths[1]), "the principal point is not looked at"


@torch.no_grad()
def test_pieces_of_the_head_change_nothing_and_rays_are_made_on_request_only() -> None:
    model = tiny_network()
    taps, calls = model.encode(images()), []
    hook = model.head.rays.register_forward_hook(lambda *_: calls.append(1))
    whole = model.decode(taps)
    assert whole.rays is None and not calls
    pieces = model.decode(taps, views_at_once=2, with_rays=True)
    hook.remove()
    assert len(calls) == 2 and torch.allclose(whole.depth, pieces.depth, rtol=1e-5)
    assert pieces.rays is not None and pieces.rays.directions.shape == (1, 3, 16, 24, 3)
    assert pieces.rays.confidence.min() > 1
    assert whole.depth.shape == (1, 3, 28, 42) and whole.depth.min() > 0 and whole.confidence.min() > 1


@torch.no_grad()
def test_the_head_stays_in_float32_under_autocast() -> None:
    model, kinds = tiny_network(), set()
    for module in (model.head.out, model.head.levels[0].project, model.camera_decoder.translation):
        module.register_forward_hook(lambda _, args, out: kinds.add((args[0].dtype, out.dtype)))
    backbone = []
    model.backbone.blocks[0].mlp[0].register_forward_hook(lambda _, args, out: backbone.append(out.dtype))
    exact = model(images())
    kinds.clear(), backbone.clear()
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(images())
    assert kinds == {(torch.float32, torch.float32)} and backbone == [torch.bfloat16]
    assert rough.depth.dtype == torch.float32
    assert 0 < (rough.depth / exact.depth).log().abs().median() < 0.2


def test_the_stored_position_table_is_taken_as_it_is() -> None:
    table = torch.randn(1, 17, 8)
    assert resized_table(table, 4, 4) is table
    assert resized_table(table, 3, 5).shape == (1, 16, 8)
    constant = torch.ones(1, 17, 8)
    assert torch.allclose(resized_table(constant, 5, 3), torch.ones(1, 16, 8))


def test_arguments_must_go_together() -> None:
    model = tiny_network()
    with pytest.raises(ConfigurationError, match="multiples of 14"):
        model.encode(images(height=30))
    with pytest.raises(ConfigurationError, match="poses and intrinsics, both"):
        model.encode(images(), cameras(3)[0])
    with pytest.raises(ConfigurationError, match="do not go with images"):
        model.encode(images(), *cameras(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 770}, "multiple of 4"),
        ({"cross_view_start": 12}, "below the depth 12"),
        ({"taps": (5, 7, 9, 12)}, "four blocks in order"),
        ({"taps": (5, 7, 7, 9)}, "four blocks in order"),
        ({"head_width": 60}, "multiple of 8"),
        ({"head_level_widths": (96, 192, 384, 2)}, "multiple of 4 for each"),
        ({"image_size": 500}, "multiple of 14"),
        ({"depth": 0}, "must be positive"),
    ],
)
def test_sizes_that_do_not_fit(change: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Da3Config(**change)
