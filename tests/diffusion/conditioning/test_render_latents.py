"""What renders put into the U-Net, with an autoencoder that only moves pixels: every latent can be predicted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reconx_pl.diffusion.autoencoder import PixelUnshuffleAutoencoder
from reconx_pl.diffusion.conditioning.render_config import RenderConfig
from reconx_pl.diffusion.conditioning.render_latents import RenderLatents, render_latents
from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.rendering.fill import fill_holes
from reconx_pl.types import ClipRenders

B, T, SIDE, FACTOR = 2, 4, 16, 4
CELLS = SIDE // FACTOR
AUTOENCODER = PixelUnshuffleAutoencoder(FACTOR)
PLACES = torch.tensor([3, 2])  # of the second photograph


def encode(frames: Tensor) -> Tensor:
    return AUTOENCODER.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)


@pytest.fixture
def photographs() -> Tensor:
    return torch.rand(B, 2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def made(count: int = 1, coverage: Tensor | None = None, seed: int = 2) -> ClipRenders:
    """``count`` renders of each clip with holes, black there."""
    draw = torch.Generator().manual_seed(seed)
    color = torch.rand(B, count, T, 3, SIDE, SIDE, generator=draw)
    if coverage is None:
        coverage = (torch.rand(B, count, T, SIDE, SIDE, generator=draw) > 0.1).float()
    return ClipRenders(color * (coverage > 0)[:, :, :, None], coverage)


def latents_of(renders: ClipRenders, photographs: Tensor, **options: Any) -> RenderLatents:
    return render_latents(renders, photographs, PLACES, RenderConfig(**options), encode, FACTOR)


def frames_of(renders: ClipRenders, photographs: Tensor, number: int = 0) -> tuple[Tensor, Tensor]:
    """Colour [B, T, 3, H, W] and coverage [B, T, H, W] of one render with the photographs in their places."""
    color, coverage = renders.color[:, number].clone(), renders.coverage[:, number].clone()
    for clip, place in enumerate(PLACES.tolist()):
        color[clip, 0], color[clip, place] = photographs[clip]
        coverage[clip, [0, place]] = 1
    return color, coverage


def covered_cells(coverage: Tensor) -> Tensor:
    """[B, T, H, W] -> [B, T, h, w] bool: every pixel is covered by half at least."""
    blocks = coverage.unfold(-2, FACTOR, FACTOR).unfold(-2, FACTOR, FACTOR)
    return (blocks >= 0.5).all(-1).all(-1)


def test_black_holes(photographs: Tensor) -> None:
    renders = made()
    color, coverage = frames_of(renders, photographs)
    found = latents_of(renders, photographs)
    assert found.more is None and found.base is None and found.concat is not None
    assert torch.equal(found.concat, encode(color * coverage[:, :, None]))
    whole = encode(photographs)
    for clip, place in enumerate(PLACES.tolist()):
        assert torch.equal(found.concat[clip, :, 0], whole[clip, :, 0])
        assert torch.equal(found.concat[clip, :, place], whole[clip, :, 1])
    # frame 3 of the second clip is no photograph
    assert not torch.equal(found.concat[1, :, 3], whole[1, :, 1])


def test_renders_are_left_as_they_were(photographs: Tensor) -> None:
    renders = made()
    before = renders.copied()
    latents_of(renders, photographs)
    assert torch.equal(renders.color, before.color) and torch.equal(renders.coverage, before.coverage)


def test_half_covered_pixels_are_half_as_bright(photographs: Tensor) -> None:
    renders = made(coverage=torch.full((B, 1, T, SIDE, SIDE), 0.25))
    concat = latents_of(renders, photographs).concat
    assert concat is not None
    torch.testing.assert_close(concat[0, :, 1], encode(0.25 * renders.color[:, 0])[0, :, 1])


def test_masked_latents_are_zero_where_any_pixel_is_not_covered(photographs: Tensor) -> None:
    coverage = torch.ones(B, 1, T, SIDE, SIDE)
    coverage[0, 0, 1, 5, 9] = 0  # one pixel of cell (1, 2)
    coverage[0, 0, 1, 0, 0] = 0.4
    coverage[0, 0, 1, 15, 15] = 0.6  # counts as covered
    renders = made(coverage=coverage)
    concat = latents_of(renders, photographs, holes="masked").concat
    color, seen = frames_of(renders, photographs)
    assert concat is not None
    empty = (concat == 0).all(dim=1)  # [B, T, h, w]
    assert empty.nonzero().tolist() == [[0, 1, 0, 0], [0, 1, 1, 2]]
    expected = encode(color * seen[:, :, None])
    assert torch.equal(concat, expected * ~empty[:, None])


def test_holes_of_many_pixels(photographs: Tensor) -> None:
    renders = made()
    _, coverage = frames_of(renders, photographs)
    concat = latents_of(renders, photographs, holes="masked").concat
    assert concat is not None
    assert torch.equal((concat != 0).any(dim=1), covered_cells(coverage))


def test_filled_holes(photographs: Tensor) -> None:
    renders = made()
    color, coverage = frames_of(renders, photographs)
    concat = latents_of(renders, photographs, holes="filled").concat
    assert concat is not None
    assert torch.equal(concat, encode(fill_holes(color, coverage)))
    assert torch.equal(concat[0, :, 0], encode(photographs)[0, :, 0])


@pytest.mark.parametrize("coverage", [0.97, 0.5])
def test_what_is_covered_by_half_is_not_blurred(photographs: Tensor, coverage: float) -> None:
    renders = made(coverage=torch.full((B, 1, T, SIDE, SIDE), coverage))
    concat = latents_of(renders, photographs, holes="filled").concat
    assert concat is not None
    assert torch.equal(concat[0, :, 1], encode(renders.color[:, 0])[0, :, 1])


def test_faint_pixels_are_filled_without_becoming_brighter(photographs: Tensor) -> None:
    """A colour that is known by a quarter is mixed half with its surroundings, not added to them."""
    coverage = torch.ones(B, 1, T, SIDE, SIDE)
    coverage[:, :, :, 4:8, 4:8] = 0.25
    renders = ClipRenders(torch.full((B, 1, T, 3, SIDE, SIDE), 0.8), coverage)
    found = latents_of(renders, photographs, holes="filled", residual=True)
    assert found.concat is not None and found.base is not None
    torch.testing.assert_close(found.concat[0, :, 1], encode(renders.color[:, 0])[0, :, 1])
    torch.testing.assert_close(found.base[0, :, 1], encode(renders.color[:, 0])[0, :, 1])


def test_appended_channels_are_latents_and_coverage_of_each_source_in_their_order(photographs: Tensor) -> None:
    renders = made(2)
    config = RenderConfig(sources=("splats", "depth"), channels="append", holes="masked")
    found = render_latents(renders, photographs, PLACES, config, encode, FACTOR)
    channels, cells = AUTOENCODER.latent_channels, FACTOR**2
    assert found.concat is None and found.more is not None
    assert found.more.shape == (B, config.extra_channels(channels, FACTOR), T, CELLS, CELLS)
    for number, part in enumerate(found.more.split(channels + cells, dim=1)):
        latents, shares = part.split([channels, cells], dim=1)
        color, coverage = frames_of(renders, photographs, number)
        mask = covered_cells(coverage)[:, None]
        assert torch.equal(latents, encode(color * coverage[:, :, None]) * mask)
        for row in range(FACTOR):
            for column in range(FACTOR):
                own = coverage[:, :, row::FACTOR, column::FACTOR]  # [B, T, h, w]
                assert torch.equal(shares[:, row * FACTOR + column], own * 2 - 1)


def test_residual_starts_from_the_mean_of_the_filled_sources(photographs: Tensor) -> None:
    renders = made(2)
    found = latents_of(renders, photographs, sources=("depth", "splats"), channels="append", residual=True)
    assert found.base is not None and found.more is not None
    filled = [encode(fill_holes(*frames_of(renders, photographs, number))) for number in range(2)]
    torch.testing.assert_close(found.base, (filled[0] + filled[1]) / 2)
    ends = encode(photographs)
    torch.testing.assert_close(found.base[0, :, 0], ends[0, :, 0])
    torch.testing.assert_close(found.base[1, :, 2], ends[1, :, 1])
    # what the network sees has its holes all the same
    black = encode(renders.color[:, 0] * renders.coverage[:, 0, :, None])
    assert torch.equal(found.more[0, : AUTOENCODER.latent_channels, 1], black[0, :, 1])


def test_residual_of_filled_renders_is_encoded_once(photographs: Tensor) -> None:
    calls = []
    config = RenderConfig(holes="filled", residual=True)

    def counting(frames: Tensor) -> Tensor:
        calls.append(frames)
        return encode(frames)

    found = render_latents(made(), photographs, PLACES, config, counting, FACTOR)
    assert len(calls) == 1 and found.concat is not None and found.base is not None
    assert torch.equal(found.base, found.concat)


@pytest.mark.parametrize("views", [1, 2, 3])
def test_pooled_views_give_the_maximum_over_those_that_cover(photographs: Tensor, views: int) -> None:
    renders = made(views)
    concat = latents_of(renders, photographs, views="pooled").concat
    assert concat is not None
    expected = torch.zeros_like(concat)
    parts = [frames_of(renders, photographs, view) for view in range(views)]
    latents = [encode(color * coverage[:, :, None]) for color, coverage in parts]
    masks = [covered_cells(coverage) for _, coverage in parts]
    none = ~torch.stack(masks).any(0)
    assert none.any() and not none[:, 0].any()
    for clip, frame, row, column in torch.stack(masks).any(0).nonzero().tolist():
        place = (clip, slice(None), frame, row, column)
        seen = [one[place] for one, mask in zip(latents, masks, strict=True) if mask[clip, frame, row, column]]
        expected[place] = torch.stack(seen).amax(0)
    assert torch.equal(concat, expected)
    assert torch.equal(concat[1, :, 2], encode(photographs)[1, :, 1])


def test_pooled_views_beside_another_source(photographs: Tensor) -> None:
    renders = made(3)
    found = latents_of(
        renders, photographs, sources=("splats", "depth"), channels="append", views="pooled", residual=True
    )
    channels = AUTOENCODER.latent_channels
    assert found.more is not None and found.base is not None
    color, coverage = frames_of(renders, photographs, 0)
    assert torch.equal(found.more[:, :channels], encode(color * coverage[:, :, None]))
    shares = found.more[:, 2 * channels + FACTOR**2 :]  # of the pooled views: what any of them covers
    either = torch.maximum(frames_of(renders, photographs, 1)[1], frames_of(renders, photographs, 2)[1])
    assert torch.equal(shares[:, 0], either[:, :, ::FACTOR, ::FACTOR] * 2 - 1)
    # the base of several views is their mean where both cover
    both = [frames_of(renders, photographs, number) for number in (1, 2)]
    total = both[0][1] + both[1][1]
    mixed = sum(color * share[:, :, None] for color, share in both) / total.clamp(min=1)[:, :, None]  # type: ignore[misc]
    views = encode(fill_holes(mixed * (total > 0)[:, :, None], (total > 0).float()))
    splats = encode(fill_holes(color * coverage[:, :, None], coverage))
    torch.testing.assert_close(found.base, (views + splats) / 2, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (2, {}),
        (1, {"sources": ("depth", "splats"), "channels": "append"}),
        (1, {"sources": ("depth", "splats"), "channels": "append", "views": "pooled"}),
    ],
)
def test_another_number_of_renders(photographs: Tensor, count: int, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{count} renders do not go with render.sources \['depth'"):
        latents_of(made(count), photographs, **options)


def test_photographs_of_another_size(photographs: Tensor) -> None:
    with pytest.raises(ConfigurationError, match="do not go with photographs"):
        latents_of(made(), photographs[..., :8])
    with pytest.raises(ConfigurationError, match="do not go with photographs"):
        latents_of(made(), photographs[:1])


def test_shared_holes(photographs: Tensor) -> None:
    """Holes of one source have the colour of the other; where neither has any, that of the surroundings."""
    coverage = torch.ones(B, 2, T, SIDE, SIDE)
    coverage[:, 0, :, :8] = 0
    coverage[:, 1, :, 6:8] = 0
    renders = made(2, coverage)
    options: dict[str, Any] = {"sources": ("depth", "splats"), "channels": "append", "residual": True}
    found = latents_of(renders, photographs, holes="shared", **options)
    (first, seen), (second, other) = (frames_of(renders, photographs, number) for number in (0, 1))
    mixed = first * seen[:, :, None] + second * (other * (1 - seen))[:, :, None]
    expected = encode(fill_holes(mixed, torch.maximum(seen, other)))
    assert found.more is not None and found.base is not None
    channels = 3 * FACTOR**2
    torch.testing.assert_close(found.more[:, :channels], expected)
    swapped = second * other[:, :, None] + first * (seen * (1 - other))[:, :, None]
    again = encode(fill_holes(swapped, torch.maximum(seen, other)))
    torch.testing.assert_close(found.base, (expected + again) / 2)
    # what was rendered is told as before
    plain = latents_of(renders, photographs, holes="filled", **options)
    assert plain.more is not None
    own = slice(channels, channels + FACTOR**2)
    assert torch.equal(found.more[:, own], plain.more[:, own])
    with pytest.raises(ConfigurationError, match="'shared' takes from another source"):
        RenderConfig(holes="shared")
