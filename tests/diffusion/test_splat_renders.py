"""Short fits of the input views: what they start from, when they are made again, and what is rendered of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from reconx_pl.data.procedural import procedural_clip
from reconx_pl.diffusion import splat_renders as module
from reconx_pl.diffusion.conditioning.render_config import RenderConfig
from reconx_pl.diffusion.render_sources import clip_renders, depth_views
from reconx_pl.diffusion.splat_renders import splats_fingerprint
from reconx_pl.types import Clip

T, SIDE, POINTS = 4, 32, 300


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    """Two rooms."""
    return [procedural_clip(seed, T, (SIDE, SIDE), "room", points=POINTS) for seed in (1, 2)]


def test_a_short_fit_is_seeded_by_the_views_alone_and_the_last_one_is_kept(
    clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []

    def fit(*arguments: Any, generator: torch.Generator, **options: Any) -> Any:
        seeds.append(generator.initial_seed())
        return real_fit(*arguments, generator=generator, **options)

    real_fit, fits = module.fit, module.ShortFits()
    monkeypatch.setattr(module, "fit", fit)
    config = RenderConfig(sources=("splats",), splat_steps=1)
    first = clip_renders(clips[0], config, fits=fits)
    again = clip_renders(replace(clips[0], key="other window"), config, fits=fits)
    assert len(seeds) == 1 and torch.equal(first.color, again.color)
    elsewhere = replace(clips[0], cameras=clips[0].cameras[[0, 0, *range(2, T)]])
    assert not torch.equal(clip_renders(elsewhere, config, fits=fits).color, first.color) and len(seeds) == 1
    clip_renders(clips[1], config, fits=fits)
    clip_renders(clips[0], config, fits=fits)
    clip_renders(clips[0], replace(config, splat_steps=2), fits=fits)
    assert seeds[0] == seeds[2] != seeds[1] and len(seeds) == 4


@pytest.mark.parametrize(("share", "steps"), [(1.0, 100), (0.75, 133), (0.5, 200), (0.25, 200), (0.0, 200)])
def test_the_less_depth_there_is_the_longer_is_the_fit(share: float, steps: int) -> None:
    depth = torch.zeros(2, 10, 10)
    depth.flatten()[: round(200 * share)] = torch.inf  # far is known, too
    assert module.fit_steps(depth, 100, 200) == steps


def test_a_covered_pixel_has_the_colour_that_was_fitted(clips: list[Clip]) -> None:
    """Divided by its opacity it would be too bright: the fit made it right against black."""
    fitted = module.ShortFits().of(depth_views(clips[0]).known(), None, 2)
    thin = replace(fitted, opacity_logits=fitted.opacity_logits - 1.0)
    color, coverage = module.splat_renders(module.seen_by(clips[0].cameras, thin))
    covered = coverage >= 0.5
    assert bool((coverage[covered] < 0.9).any())
    seen = module.default_renderer(coverage.device).render(thin, clips[0].cameras).color.clamp(0, 1)
    assert torch.equal(color.movedim(1, -1)[covered], seen.movedim(1, -1)[covered])


def test_a_short_fit_starts_from_what_the_cloud_alone_tells(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[int] = []
    real_fit = module.fit

    def fit(images: Any, cameras: Any, confidence: Any, start: Any, *rest: Any, **options: Any) -> Any:
        starts.append(len(start))
        return real_fit(images, cameras, confidence, start, *rest, **options)

    monkeypatch.setattr(module, "fit", fit)
    views = depth_views(clips[0])
    half = replace(views, depth=views.depth.clone())
    half.depth[:, :, : SIDE // 2] = 0
    for cloud in (None, clips[0].cloud):
        module.ShortFits().of(half.known(), cloud, 1)
    assert starts[1] > starts[0]


def test_a_short_fit_knows_every_view(clips: list[Clip]) -> None:
    """Along a path there may be more views than the two ends of a clip."""
    clip = clips[0]
    views = depth_views(clip)
    three = replace(
        views,
        images=views.images[[0, 1, 0]],
        depth=torch.cat([torch.zeros_like(views.depth[:1]), views.depth[1:], torch.zeros_like(views.depth[:1])]),
        cameras=views.cameras[[0, 1, 0]],
        confidence=None,
    )
    config = RenderConfig(sources=("splats",), splat_steps=1)
    seen = clip_renders(clip, config, views=three)  # the one in the middle alone has depth
    assert float((seen.coverage[0, 0, -1] > 0.5).float().mean()) > 0.9


def test_a_fit_has_the_name_of_its_settings() -> None:
    names = {splats_fingerprint(100), splats_fingerprint(50), splats_fingerprint(100, 2.0)}
    assert len(names) == 3 and splats_fingerprint(100, 1.0) == splats_fingerprint(100)
