"""Renders of clips: of a batch as of a clip, from every source, and what is disturbed in training."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from reconx_pl.data.procedural import procedural_clip
from reconx_pl.data.shards.caches import GuidanceInputs, cache_name
from reconx_pl.diffusion.conditioning.render_config import RenderConfig
from reconx_pl.diffusion.render_sources import (
    batch_renders,
    clip_renders,
    cloud_of_views,
    depth_views,
    disturbed,
    guidance_inputs,
)
from reconx_pl.diffusion.splat_renders import splats_fingerprint
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.files.tensors import to_bytes
from reconx_pl.geometry.rendering.limits import FAR
from reconx_pl.types import Clip, ClipBatch, ClipRenders

T, SIDE, POINTS = 4, 32, 300
INF = torch.inf


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """A room and a landscape, which has sky."""
    return [
        procedural_clip(seed, T, (SIDE, SIDE), kind, points=POINTS)  # type: ignore[arg-type]
        for seed, kind in ((1, "room"), (2, "landscape"))
    ]


def batch_of(clips: list[Clip], **more: Any) -> ClipBatch:
    """As the data loader makes it; ``more`` are lists of one value a clip."""
    clouds = [clip.cloud for clip in clips if clip.cloud is not None]
    batch = ClipBatch(
        key=[clip.key for clip in clips],
        caption=[clip.caption for clip in clips],
        frames=torch.stack([clip.frames for clip in clips]),
        world_to_camera=torch.stack([clip.cameras.world_to_camera for clip in clips]),
        intrinsics=torch.stack([clip.cameras.intrinsics for clip in clips]),
        fps=torch.tensor([clip.fps for clip in clips]),
        points=torch.stack([cloud.points for cloud in clouds]),
        colors=torch.stack([cloud.colors for cloud in clouds]),
        point_confidence=torch.stack([cloud.confidence for cloud in clouds]),
        depth=torch.stack([clip.depth for clip in clips if clip.depth is not None]),
        confidence=torch.stack([clip.confidence for clip in clips if clip.confidence is not None]),
    )
    return batch | {name: torch.stack(values) for name, values in more.items()}  # type: ignore[return-value]


CONFIGS = {
    "surfaces": RenderConfig(),
    "points": RenderConfig(mode="points", radius=0.05),
    "each view alone": RenderConfig(views="pooled"),
    "cloud": RenderConfig(sources=("cloud",), radius=0.05),
    "smaller": RenderConfig(shrink=2),
    "the confident part": RenderConfig(sources=("cloud", "depth"), channels="append", min_confidence=4.0, radius=0.1),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_renders_of_a_batch_are_those_of_its_clips(clips: list[Clip], config: RenderConfig) -> None:
    found = batch_renders(batch_of(clips), config)
    alone = [clip_renders(clip, config) for clip in clips]
    assert torch.equal(found.color, torch.cat([one.color for one in alone]))
    assert torch.equal(found.coverage, torch.cat([one.coverage for one in alone]))
    count = len(config.sources) + (1 if config.views == "pooled" else 0)
    assert found.color.shape == (2, count, T, 3, SIDE, SIDE) and found.color.dtype == torch.float32
    assert not torch.equal(alone[0].color, alone[1].color)


def test_first_and_last_frame_may_come_alone_where_caches_stand_in_for_frames(clips: list[Clip]) -> None:
    whole = batch_renders(batch_of(clips), RenderConfig())
    batch = batch_of(clips, views=[clip.frames[[0, -1]] for clip in clips])
    for frames in (None, batch["frames"][:, :1]):  # none is decoded, or the first for the image encoder
        if frames is None:
            del batch["frames"]
        else:
            batch["frames"] = frames
        assert torch.equal(batch_renders(batch, RenderConfig()).color, whole.color)


def test_cameras_of_the_views_see_the_photographs(clips: list[Clip]) -> None:
    for clip in clips:
        seen = clip_renders(clip, RenderConfig())
        assert torch.equal(seen.color[0, 0, [0, -1]], clip.images[[0, -1]])
        assert bool((seen.coverage[0, 0, [0, -1]] == 1).all())
        # and a frame between them is near the truth, by far nearer than the photographs are
        covered = (seen.coverage[0, 0, 1] > 0)[None]
        error = ((seen.color[0, 0, 1] - clip.images[1]) * covered).square().mean()
        assert error < 0.25 * ((clip.images[0] - clip.images[1]) * covered).square().mean()


def test_each_view_alone_sees_its_own_photograph(clips: list[Clip]) -> None:
    clip = clips[0]
    seen = clip_renders(clip, RenderConfig(views="pooled"))
    assert torch.equal(seen.color[0, 0, 0], clip.images[0]) and torch.equal(seen.color[0, 1, -1], clip.images[-1])
    assert float(seen.coverage[0, 1, 0].mean()) < 1  # the last view does not see all of the first


def test_a_view_of_which_nothing_is_known_is_empty(clips: list[Clip]) -> None:
    clip = clips[0]
    assert clip.depth is not None
    lost = clip.depth.clone()
    lost[1] = 0
    seen = clip_renders(replace(clip, depth=lost), RenderConfig(views="pooled"))
    assert torch.equal(seen.color[0, 0], clip_renders(clip, RenderConfig(views="pooled")).color[0, 0])
    assert float(seen.coverage[0, 1].sum()) == 0 == float(seen.color[0, 1].sum())


def test_points_show_their_colours_undimmed(clips: list[Clip]) -> None:
    clip = clips[0]
    seen = clip_renders(clip, RenderConfig(mode="points", radius=0.04))
    coverage, bright = seen.coverage[0, 0, 1], seen.color[0, 0, 1].mean(dim=0)
    for low, high in ((0.05, 0.4), (0.4, 0.8), (0.8, 1.0)):  # faint pixels are as bright as the others
        some = (coverage > low) & (coverage <= high)
        assert int(some.sum()) > 30
        assert float(bright[some].mean()) == pytest.approx(float(clip.images[1].mean(dim=0)[some].mean()), rel=0.15)


def test_sky_is_rendered_and_what_is_unknown_is_not(clips: list[Clip]) -> None:
    clip = clips[1]
    assert clip.depth is not None and bool((clip.depth == INF).any())
    unknown = replace(clip, depth=torch.where(clip.depth == INF, 0.0, clip.depth))
    for config in (CONFIGS["surfaces"], CONFIGS["points"]):
        with_sky, without = clip_renders(clip, config), clip_renders(unknown, config)
        assert float(with_sky.coverage[0, 0, 1].mean()) > float(without.coverage[0, 0, 1].mean()) + 0.05


def test_every_pixel_with_depth_is_a_point_and_sky_is_far(clips: list[Clip]) -> None:
    views = depth_views(clips[1])
    cloud = cloud_of_views(views)
    depth = views.depth
    assert len(cloud) == int((depth > 0).sum())
    sky = (depth == INF)[depth > 0]
    far = FAR * depth[depth < INF].max()
    centers = views.cameras.centers.mean(dim=0)
    assert float((cloud.points[sky] - centers).norm(dim=1).min()) > 0.9 * float(far)
    assert torch.equal(cloud.colors, views.images.permute(0, 2, 3, 1)[depth > 0])


def test_smaller_renders_are_enlarged(clips: list[Clip]) -> None:
    whole, small = (clip_renders(clips[0], RenderConfig(shrink=shrink)) for shrink in (1, 4))
    assert small.color.shape == whole.color.shape and small.coverage.shape == whole.coverage.shape
    covered = (whole.coverage == 1) & (small.coverage == 1)
    assert float(covered.float().mean()) > 0.3
    error = (whole.color - small.color).abs().mean(dim=3)[covered].mean()
    assert 0 < error < 0.1
    # an edge of what is covered is no darker than the rest
    edge = (small.coverage > 0.2) & (small.coverage < 0.8)
    near = (whole.color - small.color).abs().mean(dim=3)[edge & (whole.coverage == 1)].mean()
    assert edge.any() and near < 0.2


CONFIDENT = "confidence of at least 99; lower min_confidence"


@pytest.mark.parametrize("sources", [("depth",), ("cloud",), ("splats",)])
def test_nothing_that_is_confident_enough(clips: list[Clip], sources: tuple[Any, ...]) -> None:
    config = RenderConfig(sources=sources, min_confidence=99.0)
    with pytest.raises(BadSceneError, match=f"clip {clips[0].key}: .*{CONFIDENT}"):
        clip_renders(clips[0], config)
    if sources != ("splats",):  # in a batch they are there already
        with pytest.raises(BadSceneError, match=f"clip {clips[0].key}: .*{CONFIDENT}"):
            batch_renders(batch_of(clips), config)


def test_confidence_decides_what_is_known(clips: list[Clip]) -> None:
    clip = clips[0]
    assert clip.confidence is not None and clip.depth is not None
    unsure = clip.confidence.clone()
    unsure[:, :, :16] = 1.0
    half = clip_renders(replace(clip, confidence=unsure), RenderConfig(min_confidence=1.5))
    by_hand = torch.where(unsure >= 1.5, clip.depth, 0.0)
    assert torch.equal(half.color, clip_renders(replace(clip, depth=by_hand), RenderConfig()).color)
    # depth that comes without confidence is trusted
    sure = clip_renders(replace(clip, confidence=None), RenderConfig(min_confidence=99.0))
    assert torch.equal(sure.color, clip_renders(clip, RenderConfig()).color)


def test_without_depth_a_cloud_is_drawn_as_discs(clips: list[Clip], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        seen = clip_renders(replace(clips[0], depth=None, confidence=None), RenderConfig())
    assert f"clip {clips[0].key} has no depth maps: renders are made of its {POINTS} points" in caplog.text
    assert 0.2 < float((seen.coverage[0, 0, 0] > 0).float().mean()) <= 1


def test_neither_depth_nor_points(clips: list[Clip]) -> None:
    nothing = replace(clips[0], depth=None, cloud=None)
    for sources in (("depth",), ("splats",)):
        with pytest.raises(BadSceneError, match=f"clip {clips[0].key} has neither depth nor points .* pack it with"):
            clip_renders(nothing, RenderConfig(sources=sources))  # type: ignore[arg-type]
    with pytest.raises(BadSceneError, match=f"clip {clips[0].key} has no points to render"):
        clip_renders(nothing, RenderConfig(sources=("cloud",)))
    unknown = replace(clips[0], depth=torch.zeros(2, SIDE, SIDE))
    with pytest.raises(BadSceneError, match=f"clip {clips[0].key}: no pixel of any view has a depth"):
        clip_renders(unknown, RenderConfig())


def test_a_batch_that_lacks_what_renders_are_made_of(clips: list[Clip]) -> None:
    batch = batch_of(clips)
    del batch["depth"], batch["colors"]
    everything = RenderConfig(sources=("depth", "cloud", "splats"), channels="append")
    with pytest.raises(ConfigurationError, match=r"the batch lacks depth, colors, splats, .* \(GuidanceInputs\)"):
        batch_renders(batch, everything)


# --- splats


def test_a_short_fit_is_repeatable_and_is_what_a_batch_brings(clips: list[Clip]) -> None:
    config = RenderConfig(sources=("splats",), splat_steps=4)
    first, again = (clip_renders(clips[0], config) for _ in range(2))
    assert first.color.shape == (1, 1, T, 3, SIDE, SIDE)
    assert torch.equal(first.color, again.color) and torch.equal(first.coverage, again.coverage)
    # colours are told apart from coverage: the mean error of a view is small where it is covered at all
    covered = first.coverage[0, 0, 0] > 0.5
    assert float(covered.float().mean()) > 0.9
    assert float((first.color[0, 0, 0] - clips[0].images[0]).abs().mean(dim=0)[covered].mean()) < 0.1
    stored = to_bytes(torch.cat([first.color[0, 0], first.coverage[0, 0, :, None]], dim=1))
    batch = batch_of(clips[:1], splats=[stored])
    del batch["depth"]  # not needed
    found = batch_renders(batch, config)
    torch.testing.assert_close(found.color, first.color, atol=0.5 / 255 + 1e-6, rtol=0)
    torch.testing.assert_close(found.coverage, first.coverage, atol=0.5 / 255 + 1e-6, rtol=0)


# --- what a loader reads


def test_what_a_loader_has_to_read() -> None:
    assert guidance_inputs(None) is None
    assert guidance_inputs(None, colors=True) == GuidanceInputs(colors=True)
    assert guidance_inputs(RenderConfig()) == GuidanceInputs(views=True, depth=True)
    assert guidance_inputs(RenderConfig(), colors=True) == GuidanceInputs(views=True, depth=True, colors=True)
    assert guidance_inputs(RenderConfig(sources=("cloud",))) == GuidanceInputs(views=True, colors=True)
    confident = guidance_inputs(RenderConfig(sources=("cloud",), min_confidence=2.0))
    assert confident == GuidanceInputs(views=True, colors=True, point_confidence=True, min_confidence=2.0)
    splats = guidance_inputs(RenderConfig(sources=("splats",), splat_steps=7))
    assert splats == GuidanceInputs(views=True, splats=cache_name("splats", splats_fingerprint(7)))


# --- disturbances


@pytest.fixture
def depth() -> Tensor:
    depth = torch.full((2, 48, 64), 3.0)
    depth[0, :8] = INF
    depth[1, :, :8] = 0
    return depth


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


BOTH = RenderConfig(depth_noise=0.1, point_dropout=0.25)


def test_nothing_is_disturbed_without_a_generator_or_without_being_asked(depth: Tensor) -> None:
    assert disturbed(depth, BOTH, None) is depth
    drawn = generator()
    assert disturbed(depth, RenderConfig(), drawn) is depth
    assert torch.equal(drawn.get_state(), generator().get_state())  # no number is drawn


def test_disturbances_follow_from_the_generator_alone(depth: Tensor) -> None:
    before = depth.clone()
    first, again, other = (disturbed(depth, BOTH, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(depth, before)


def test_noise_keeps_sky_and_what_is_unknown_and_is_smooth_and_as_strong_as_asked(depth: Tensor) -> None:
    config = RenderConfig(depth_noise=0.2)
    plain = torch.full((50, 48, 64), 3.0)
    logarithms = (disturbed(plain, config, generator()) / plain).log()
    assert float(logarithms.std()) == pytest.approx(0.2, rel=0.05)
    assert float(logarithms.mean()) == pytest.approx(0.0, abs=0.02)
    by_pixel = logarithms.std(dim=0)  # between the cells of the noise as much as on them
    assert float(by_pixel.std()) < 0.15 * float(by_pixel.mean())
    assert float((logarithms[:, :, 1:] - logarithms[:, :, :-1]).abs().mean()) < 0.05
    assert not torch.equal(logarithms[0], logarithms[1])  # every map has its own
    noisy = disturbed(depth, config, generator())
    assert torch.equal(noisy == INF, depth == INF) and torch.equal(noisy == 0, depth == 0)
    assert bool((noisy[(depth > 0) & (depth < INF)] > 0).all())


def test_dropout_takes_patches_of_the_share_that_is_asked_for(depth: Tensor) -> None:
    plain = torch.full((4, 48, 64), 3.0)
    left = disturbed(plain, RenderConfig(point_dropout=0.3), generator())
    gone = left == 0
    assert gone.flatten(1).float().mean(dim=1).tolist() == pytest.approx([0.3] * 4, abs=0.01)
    assert torch.equal(left[~gone], plain[~gone])
    border = (gone[:, :, 1:] != gone[:, :, :-1]).float().mean()
    assert float(border) < 0.1  # of single pixels it would be 0.42
    sky = disturbed(depth, RenderConfig(point_dropout=0.3), generator())
    assert bool((sky[1, :, :8] == 0).all()) and bool(((sky == INF) <= (depth == INF)).all())


def test_a_batch_is_disturbed_clip_by_clip(clips: list[Clip]) -> None:
    same = batch_of([clips[0], clips[0]])
    config = RenderConfig(depth_noise=0.3, point_dropout=0.2)

    def renders(seed: int | None) -> ClipRenders:
        return batch_renders(same, config, None if seed is None else generator(seed))

    plain, first, again = renders(None), renders(0), renders(0)
    assert torch.equal(plain.color[0], plain.color[1])
    assert torch.equal(first.color, again.color)
    assert not torch.equal(first.color, plain.color) and not torch.equal(first.color[0], first.color[1])


def test_all_that_is_known_may_be_disturbed_away(clips: list[Clip]) -> None:
    batch = batch_of(clips[:1])
    few = torch.zeros_like(batch["depth"])
    few[:, :, 3, 3] = 2.0
    batch["depth"] = few
    config = RenderConfig(point_dropout=0.95)
    lost = [batch_renders(batch, config, generator(seed)).coverage.sum() == 0 for seed in range(4)]
    assert any(lost)  # holes everywhere, and no error that ends a run
