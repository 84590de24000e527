"""Random colours and materials of procedural scenes."""

from __future__ import annotations

import colorsys
import math

import numpy as np

from reconx_pl.data.procedural import layout as k
from reconx_pl.data.procedural.primitives import Color, SceneBuilder

NAMED = {
    "red": 0.0, "orange": 0.07, "yellow": 0.13, "green": 0.33, "teal": 0.48, "blue": 0.6, "violet": 0.75, "pink": 0.9,
}  # fmt: skip


def color(rng: np.random.Generator, hue: float, saturation: float, value: float, spread: float = 0.08) -> Color:
    """A colour near the given hue, saturation and value, all in [0, 1]."""
    h = (hue + rng.uniform(-0.5, 0.5) * spread) % 1.0
    s = float(np.clip(saturation + rng.uniform(-1, 1) * spread, 0, 1))
    v = float(np.clip(value + rng.uniform(-1, 1) * spread, 0.05, 1))
    red, green, blue = colorsys.hsv_to_rgb(h, s, v)
    return red, green, blue


def any_color(rng: np.random.Generator, muted: bool = False) -> tuple[str, Color]:
    """A colour with its name; ``muted`` as walls are."""
    name = str(rng.choice(list(NAMED)))
    if muted:
        return name, color(rng, NAMED[name], rng.uniform(0.12, 0.4), rng.uniform(0.6, 0.85))
    return name, color(rng, NAMED[name], rng.uniform(0.35, 0.75), rng.uniform(0.45, 0.85))


def shade(base: Color, gain: float) -> Color:
    """The same colour, darker or lighter."""
    red, green, blue = (min(1.0, channel * gain) for channel in base)
    return red, green, blue


def wall(b: SceneBuilder) -> tuple[int, str]:
    """A wall's material with what a caption calls it."""
    rng = b.rng
    _, base = any_color(rng, muted=True)
    _, other = any_color(rng, muted=True)
    kind = rng.choice(["brick", "striped", "plain", "dotted", "tiled", "panelled"])
    if kind == "brick":
        hue = rng.choice([0.02, 0.06, 0.1, 0.6])
        a, c = color(rng, hue, 0.5, 0.62), color(rng, hue, 0.55, 0.42)
        courses = rng.uniform(0.4, 0.7), rng.uniform(0.18, 0.28)
        return b.material(k.BRICKS, a, (0.78, 0.76, 0.72), c, period=courses, grain=0.3, grain_length=0.12), "brick"
    if kind == "striped":
        period = rng.uniform(0.35, 0.9)
        turn = float(rng.choice([0.0, 0.0, math.pi / 2, math.pi / 4]))
        return b.material(
            k.STRIPES, base, other, shade(base, 0.8), period=(period, period), grain=0.15, tint=0.35, angle=turn
        ), "striped"
    if kind == "dotted":
        period = rng.uniform(0.4, 0.8)
        return b.material(k.DOTS, base, other, any_color(rng)[1], period=(period, period), grain=0.15), "dotted"
    if kind == "tiled":
        period = rng.uniform(0.3, 0.6)
        return b.material(
            k.CHECKER, base, shade(base, 0.75), other, period=(2 * period, 2 * period), grain=0.15, tint=0.4
        ), "tiled"
    if kind == "panelled":
        a = color(rng, 0.08, 0.5, 0.55)
        boards = rng.uniform(1.2, 2.5), rng.uniform(0.2, 0.35)
        return b.material(k.PLANKS, a, shade(a, 0.35), shade(a, 0.65), period=boards, grain=0.35, grain_length=0.2), (
            "panelled"
        )
    return b.material(k.PLAIN, base, c=other, grain=0.3, grain_length=0.5, tint=0.8, tint_length=1.6), "plain"


def floor(b: SceneBuilder) -> tuple[int, str]:
    """A floor's material with its name."""
    rng = b.rng
    kind = rng.choice(["plank", "tiled", "carpeted", "stone"])
    if kind == "plank":
        a = color(rng, 0.08, rng.uniform(0.35, 0.6), rng.uniform(0.45, 0.75))
        boards = rng.uniform(1.0, 2.2), rng.uniform(0.18, 0.32)
        return b.material(
            k.PLANKS, a, shade(a, 0.3), shade(a, 0.6), period=boards, grain=0.5, grain_length=0.25
        ), "plank"
    if kind == "tiled":
        _, a = any_color(rng, muted=True)
        _, other = any_color(rng)
        period = rng.uniform(0.8, 1.6)
        return b.material(k.CHECKER, a, other, shade(a, 0.7), period=(period, period), grain=0.2, tint=0.3), "tiled"
    if kind == "stone":
        a = color(rng, rng.uniform(0, 1), 0.12, 0.65)
        period = rng.uniform(0.6, 1.1)
        return b.material(
            k.BRICKS, a, shade(a, 0.4), shade(a, 0.6), period=(period, 0.6 * period), grain=0.45, grain_length=0.2
        ), "stone"
    _, a = any_color(rng)
    return b.material(
        k.DOTS, a, any_color(rng)[1], any_color(rng, muted=True)[1], period=(0.9, 0.9), grain=0.5, grain_length=0.15
    ), "carpeted"


def thing(b: SceneBuilder, size: float) -> tuple[int, str]:
    """Material of an object of about ``size`` metres, with the name of its colour."""
    rng = b.rng
    name, a = any_color(rng)
    _, other = any_color(rng, muted=bool(rng.random() < 0.4))
    kind = int(
        rng.choice([k.PLAIN, k.CHECKER, k.STRIPES, k.DOTS, k.PLANKS, k.BRICKS], p=[0.3, 0.14, 0.2, 0.16, 0.1, 0.1])
    )
    period = size * rng.uniform(0.3, 0.6)
    periods = (period, 0.5 * period) if kind in (k.PLANKS, k.BRICKS) else (period, period)
    other = shade(a, 0.45) if kind in (k.PLANKS, k.BRICKS) else other
    return b.material(
        kind, a, other, shade(a, rng.uniform(0.5, 0.75)), period=periods, grain=rng.uniform(0.3, 0.6),
        grain_length=0.35 * size, tint=rng.uniform(0.2, 0.7), tint_length=0.8 * size, angle=rng.uniform(0, math.pi),
    ), name  # fmt: skip


def picture(b: SceneBuilder) -> int:
    """A picture in a frame."""
    rng = b.rng
    sky, land = any_color(rng)[1], any_color(rng)[1]
    frame = rng.choice([0.15, 0.85])
    return b.material(k.PICTURE, shade(sky, 1.3), land, (frame, frame, frame * 0.9), grain=0.15, grain_length=0.2)
