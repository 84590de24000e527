"""Sampling with a model that is guided by renders: what it looks at, and what it refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.condition_alone import ConditionAlone
from reconx_pl.data.procedural import procedural_clip
from reconx_pl.diffusion import pipeline as sampling_pipeline
from reconx_pl.diffusion import render_sources
from reconx_pl.diffusion.autoencoder import PixelUnshuffleAutoencoder
from reconx_pl.diffusion.conditioning.image_tokens import SmallImageConfig, SmallImageTokens
from reconx_pl.diffusion.conditioning.render_config import RenderConfig
from reconx_pl.diffusion.conditioning.structure import StructureEncoderConfig
from reconx_pl.diffusion.conditioning.text_tokens import LearnedTextTokens
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.pipeline import SamplingConfig, SamplingPipeline
from reconx_pl.diffusion.render_sources import clip_renders, depth_views
from reconx_pl.diffusion.sampling.schedule import ScheduleConfig
from reconx_pl.errors import BadCameraError, BadSceneError, ConfigurationError
from reconx_pl.types import Clip

FRAMES, SIDE, FACTOR, WIDTH = 4, 32, 4, 16
CHANNELS = 3 * FACTOR**2
EXACT: dict[str, Any] = {"eta": 0.0, "last_step": "corrected"}  # what is predicted comes out, but for a little noise
RESIDUAL = RenderConfig(channels="append", holes="filled", residual=True)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return procedural_clip(1, FRAMES, (SIDE, SIDE), "room", points=200)


def network_of(
    render: RenderConfig | None, structure: StructureEncoderConfig | None = None, trained: bool = False
) -> ReconXDiffusion:
    torch.manual_seed(0)
    more = 0 if render is None else render.extra_channels(CHANNELS, FACTOR)
    network = ReconXDiffusion(
        UNetConfig(
            in_channels=2 * CHANNELS + more,
            out_channels=CHANNELS,
            model_channels=64,
            channel_mult=(1,),
            num_res_blocks=1,
            attention_strides=(1,),
            num_head_channels=16,
            context_dim=WIDTH,
            structure_guidance=structure is not None,
        ),
        PixelUnshuffleAutoencoder(FACTOR),
        SmallImageTokens(SmallImageConfig(frames=FRAMES, width=WIDTH, image_size=32, channels=(8, 8, 8, 8))),
        LearnedTextTokens(4, WIDTH),
        structure,
        ScheduleConfig(prediction="sample"),
        render=render,
    )
    if trained:
        with torch.no_grad():
            for parameter in network.unet.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return network


def pipeline(network: ReconXDiffusion, **options: Any) -> SamplingPipeline:
    return SamplingPipeline(network, SamplingConfig(num_inference_steps=2, **options))


def watched(network: ReconXDiffusion) -> list[dict[str, Any]]:
    """Every call of ``condition_sets``, as it will be made."""
    calls: list[dict[str, Any]] = []
    real = network.condition_sets

    def condition_sets(*arguments: Any, **options: Any) -> Any:
        calls.append(options)
        return real(*arguments, **options)

    network.condition_sets = condition_sets  # type: ignore[method-assign]
    return calls


def blinded(clip: Clip) -> Clip:
    frames = clip.frames.clone()
    frames[1:-1] = 0
    return replace(clip, frames=frames)


def test_an_untrained_residual_model_generates_the_filled_renders(clip: Clip) -> None:
    """All that it knows is its base; guidance and sampler leave that as it is."""
    frames = pipeline(network_of(RESIDUAL), **EXACT).generate(blinded(clip))
    seen = clip_renders(clip, RESIDUAL)
    covered = (seen.coverage[0, 0] == 1)[:, None].expand_as(frames)
    assert float(covered.float().mean()) > 0.7
    assert float((frames - seen.color[0, 0])[covered].abs().mean()) < 0.01
    assert (frames[1:-1] - clip.images[1:-1]).abs().mean() < 0.1


def test_what_is_generated_follows_the_cameras(clip: Clip) -> None:
    network = network_of(RESIDUAL)
    stands_still = replace(blinded(clip), cameras=clip.cameras[[0, 0, 0, 3]])
    frames = pipeline(network, **EXACT).generate(stands_still)
    assert (frames[1] - frames[0]).abs().mean() < 0.01
    assert (frames[1] - pipeline(network, **EXACT).generate(blinded(clip))[1]).abs().mean() > 0.02


def test_without_renders_nothing_is_rendered(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(RESIDUAL, trained=True)
    calls = watched(network)
    bare = pipeline(network, render=False).generate(replace(blinded(clip), depth=None, cloud=None))
    assert calls[-1]["renders"] is None
    pipeline(network).generate(blinded(clip))
    assert torch.equal(calls[-1]["renders"].color, clip_renders(clip, RESIDUAL).color)
    assert not torch.equal(bare, pipeline(network).generate(blinded(clip)))


def test_views_stand_in_for_the_ends_of_the_clip(clip: Clip) -> None:
    network = network_of(RESIDUAL, trained=True)
    calls = watched(network)
    black = replace(clip, frames=torch.zeros_like(clip.frames), depth=None)
    pipeline(network).generate(black, end_condition_frame=0, views=depth_views(clip))
    assert torch.equal(calls[-1]["renders"].color, clip_renders(clip, RESIDUAL).color)
    assert calls[-1]["end_condition_frame"].tolist() == [0]


def test_a_path_that_leaves_the_scene_is_told_with_its_share(clip: Clip, caplog: pytest.LogCaptureFixture) -> None:
    network = network_of(RESIDUAL)
    pipeline(network).generate(blinded(clip))
    assert "the model invents the rest" not in caplog.text
    back = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))  # turned around
    pose = clip.cameras.world_to_camera.clone()
    pose[1:] = back @ pose[1:]
    away = replace(blinded(clip), cameras=replace(clip.cameras, world_to_camera=pose))
    with caplog.at_level(logging.WARNING):
        pipeline(network).generate(away, end_condition_frame=0, views=depth_views(clip))
    seen = clip_renders(away, RESIDUAL, views=depth_views(clip))
    share = 100 * float((seen.coverage >= 0.5).float().mean())
    assert 20 < share < 50
    assert f"clip {clip.key}: what the input views saw covers {share:.0f} % of the pixels" in caplog.text


def test_a_camera_of_a_path_that_is_no_number(clip: Clip) -> None:
    pose = clip.cameras.world_to_camera.clone()
    pose[2, 0, 3] = torch.nan
    bad = replace(blinded(clip), cameras=replace(clip.cameras, world_to_camera=pose))
    with pytest.raises(BadCameraError, match=f"the path of clip {clip.key}: camera 2 has NaN"):
        pipeline(network_of(RESIDUAL)).generate(bad)


Refusal = tuple[Callable[[Clip], Any], type[Exception], str]
REFUSED: dict[str, Refusal] = {
    "a path without renders": (
        lambda clip: pipeline(network_of(None)).generate(clip, end_condition_frame=0, views=depth_views(clip)),
        ConfigurationError,
        "a model that is guided by renders, and this one's guidance is 'none': take --path interpolated",
    ),
    "a path with renders switched off": (
        lambda clip: pipeline(network_of(RESIDUAL), render=False).generate(
            clip, end_condition_frame=0, views=depth_views(clip)
        ),
        ConfigurationError,
        "switched off by sampling.render",
    ),
    "an extrapolation": (
        lambda clip: pipeline(network_of(RESIDUAL)).generate(clip, end_condition_frame=2),
        ConfigurationError,
        "takes no generation.orbit_frames",
    ),
    "the first frame as second of a clip": (
        lambda clip: pipeline(network_of(RESIDUAL)).generate(clip, end_condition_frame=0),
        ConfigurationError,
        "one of the frames 1 to 3, got 0",
    ),
    "a frame beyond the clip": (
        lambda clip: pipeline(network_of(RESIDUAL)).generate(clip, end_condition_frame=4, views=depth_views(clip)),
        ConfigurationError,
        "one of the frames 0 to 3, got 4",
    ),
    "nothing to render": (
        lambda clip: pipeline(network_of(RESIDUAL)).generate(replace(clip, depth=None, cloud=None)),
        BadSceneError,
        "has neither depth nor points to render",
    ),
    "keeping what renders of depth cannot confirm": (
        lambda clip: pipeline(network_of(RESIDUAL), keep_confirmed=True),
        ConfigurationError,
        "keep_confirmed is for a network that adds a residual to renders of splats",
    ),
    "no renders": (
        lambda clip: pipeline(network_of(RESIDUAL)).generate_views(
            clip.images[[0, -1]][None], torch.tensor([8.0]), FRAMES, None, ["one"], [""]
        ),
        ConfigurationError,
        "guidance 'render' needs renders of clip one: .* set sampling.render to false",
    ),
}


@pytest.mark.parametrize("sure", [True, False])
def test_what_the_photographs_confirm_stays_as_rendered(
    clip: Clip, sure: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = replace(RESIDUAL, sources=("depth", "splats"), splat_steps=2)
    monkeypatch.setattr(
        render_sources,
        "confirmed_pixels",
        lambda *given: torch.full((FRAMES, SIDE, SIDE), sure),
    )
    network = network_of(both, trained=True)
    rendered = ConditionAlone(both, FACTOR).generate(clip, torch.Generator())
    frames = pipeline(network, keep_confirmed=True, **EXACT).generate(clip)
    error = (frames - rendered).abs().max()
    assert error < 1e-5 if sure else error > 0.01


def test_the_short_fit_takes_the_steps_of_the_sampler(clip: Clip) -> None:
    splats = replace(RESIDUAL, sources=("splats",), splat_steps=1)
    trained_longer = network_of(replace(splats, splat_steps=9), trained=True)
    frames = pipeline(trained_longer, splat_steps=1, **EXACT).generate(clip)
    expected = pipeline(network_of(splats, trained=True), **EXACT).generate(clip)
    assert torch.equal(frames, expected)
    assert not torch.equal(frames, pipeline(trained_longer, **EXACT).generate(clip))


@pytest.mark.parametrize(("floor", "kept"), [(1e3, True), (0.0, False)])
def test_a_floor_above_every_residual_leaves_the_renders(clip: Clip, floor: float, kept: bool) -> None:
    rendered = ConditionAlone(RESIDUAL, FACTOR).generate(clip, torch.Generator())
    frames = pipeline(network_of(RESIDUAL, trained=True), residual_floor=floor, **EXACT).generate(clip)
    assert ((frames - rendered).abs().max() < 1e-5) == kept


@pytest.mark.parametrize(("call", "error", "words"), REFUSED.values(), ids=REFUSED)
def test_refusals(clip: Clip, call: Callable[[Clip], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call(clip)


@pytest.mark.parametrize("frame", ["first", "each"])
def test_colours_belong_to_the_points_that_a_clip_is_told_of(clip: Clip, frame: Any) -> None:
    """Of a clip of a path only the points that its known frames see remain, and each keeps its colour."""
    structure = StructureEncoderConfig(points=200, tokens=8, width=WIDTH, frame=frame, color=True)
    network = network_of(RenderConfig(), structure)
    assert network.structure_encoder is not None and clip.cloud is not None
    given: list[tuple[Tensor, Tensor]] = []
    network.structure_encoder.register_forward_pre_hook(lambda _, arguments: given.append(arguments))
    colored = replace(clip, cloud=replace(clip.cloud, colors=(clip.cloud.points * 0.1).sin().abs()))
    pipeline(network).generate(colored, end_condition_frame=0, views=depth_views(clip))
    (points, colors) = given[0]
    shape = (1, 200, 3) if frame == "first" else (1, FRAMES, 200, 3)
    assert points.shape == shape and colors.shape == (1, 200, 3)
    local = (points if frame == "first" else points[:, 0])[0]
    pose = clip.cameras.world_to_camera[0]
    world = (local - pose[:3, 3]) @ pose[:3, :3]
    torch.testing.assert_close(colors[0], (world * 0.1).sin().abs(), atol=1e-4, rtol=0)
    assert len(world.unique(dim=0)) < 200  # some are hidden, others stand twice


@pytest.mark.parametrize("faster", ["32", "bf16"])
def test_the_precision_is_the_faster_one_where_it_is_left_open(
    clip: Clip, faster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(RESIDUAL, trained=True)
    monkeypatch.setattr(sampling_pipeline, "faster_precision", lambda device: faster)
    found = {one: pipeline(network, precision=one).generate(blinded(clip)) for one in ("32", "bf16", "auto")}
    assert torch.equal(found["auto"], found[faster]) and not torch.equal(found["32"], found["bf16"])
