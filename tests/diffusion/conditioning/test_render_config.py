"""How a network is guided by renders: what contradicts itself, and how many input channels it takes."""

from __future__ import annotations

from typing import Any

import pytest

from reconx_pl.diffusion.conditioning.render_config import GUIDANCES, RenderConfig, check_guidance
from reconx_pl.errors import ConfigurationError

CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown mode": ({"mode": "mesh"}, "render.mode is one of surface, points, got 'mesh'"),
    "unknown channels": ({"channels": "add"}, "render.channels is one of replace, append"),
    "unknown holes": ({"holes": "grey"}, "render.holes is one of black, masked, filled"),
    "unknown views": ({"views": "both"}, "render.views is one of fused, pooled"),
    "no source": ({"sources": ()}, "some of depth, cloud, splats"),
    "unknown source": ({"sources": ("depth", "mesh")}, r"got \['depth', 'mesh'\]"),
    "one source twice": ({"sources": ("depth", "depth"), "channels": "append"}, r"got \['depth', 'depth'\]"),
    "two sources in one place": ({"sources": ("depth", "splats")}, "names 2: name one, or take channels 'append'"),
    "views of a cloud": ({"sources": ("cloud",), "views": "pooled"}, "name depth in sources"),
    "shrink": ({"shrink": 0}, "positive: {'shrink': 0"),
    "points per pixel": ({"points_per_pixel": 0}, "positive"),
    "steps": ({"splat_steps": 0}, "positive"),
    "radius": ({"radius": 0.0}, "positive"),
    "radius that is no number": ({"radius": float("nan")}, "positive"),
    "confidence": ({"min_confidence": 0.5}, "at least 1, got 0.5"),
    "noise": ({"depth_noise": -0.1}, "depth_noise is 0 or more"),
    "dropout of all": ({"point_dropout": 1.0}, r"lies in \[0, 1\), got 0 and 1"),
    "noise on no depth": ({"sources": ("splats",), "depth_noise": 0.1}, "disturb depth: name depth in sources"),
    "dropout of no depth": ({"sources": ("cloud",), "point_dropout": 0.1}, "disturb depth: name depth in sources"),
}


@pytest.mark.parametrize(("options", "words"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        RenderConfig(**options)


def test_sources_of_a_file_are_a_list() -> None:
    assert RenderConfig(sources=["depth"]) == RenderConfig(sources=("depth",))  # type: ignore[arg-type]
    hash(RenderConfig(sources=["depth"]))  # type: ignore[arg-type]


def test_further_channels_are_latents_and_coverage_of_every_source() -> None:
    assert RenderConfig().extra_channels(4, 8) == 0
    assert RenderConfig(channels="append").extra_channels(4, 8) == 4 + 64
    two = RenderConfig(sources=("depth", "splats"), channels="append")
    assert two.extra_channels(48, 4) == 2 * (48 + 16)
    # the views of a source are pooled into one
    pooled = RenderConfig(sources=("depth", "splats"), channels="append", views="pooled")
    assert pooled.extra_channels(48, 4) == 2 * (48 + 16)


POINTS = RenderConfig(mode="points")


@pytest.mark.parametrize(
    ("guidance", "structure", "render", "expected"),
    [
        (None, False, None, ("none", None)),
        (None, True, None, ("structure", None)),
        (None, False, POINTS, ("render", POINTS)),
        (None, True, POINTS, ("both", POINTS)),
        ("none", False, None, ("none", None)),
        ("structure", True, None, ("structure", None)),
        ("render", False, None, ("render", RenderConfig())),
        ("render", False, POINTS, ("render", POINTS)),
        ("both", True, None, ("both", RenderConfig())),
        ("both", True, POINTS, ("both", POINTS)),
    ],
)
def test_guidance_follows_from_its_parts_or_agrees_with_them(
    guidance: Any, structure: bool, render: RenderConfig | None, expected: Any
) -> None:
    assert check_guidance(guidance, structure, render) == expected


@pytest.mark.parametrize(
    ("guidance", "structure", "render", "words"),
    [
        ("points", False, None, "guidance is one of none, structure, render, both, got 'points'"),
        ("structure", False, None, "give `structure`, the sizes of the encoder"),
        ("both", False, POINTS, "give `structure`, the sizes of the encoder"),
        ("none", True, None, "set `structure` to null"),
        ("render", True, POINTS, "set `structure` to null"),
        ("none", False, POINTS, "set `render` to null"),
        ("structure", True, POINTS, "set `render` to null"),
    ],
)
def test_guidance_against_its_parts(guidance: Any, structure: bool, render: RenderConfig | None, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        check_guidance(guidance, structure, render)


def test_every_guidance_is_known() -> None:
    assert GUIDANCES == ("none", "structure", "render", "both")
