"""Landscapes: a meadow or a desert with houses, trees, rocks and hills under a sky."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from reconx_pl.data.procedural import layout as k
from reconx_pl.data.procedural import palette
from reconx_pl.data.procedural.primitives import Array, Scene, SceneBuilder, rotation

_REACH = 42.0  # metres; the ground ends there, behind the hills


def landscape(b: SceneBuilder) -> tuple[Scene, Array, Array]:
    """A random landscape; ``b`` is empty.

    Returns:
        the scene, a point [3] where a camera may stand, and one [3] that it may look at.
    """
    rng = b.rng
    name, hue, saturation, value = (
        ("a meadow", rng.uniform(0.2, 0.32), 0.5, 0.55),
        ("a desert", rng.uniform(0.08, 0.12), 0.42, 0.78),
        ("a heath", rng.uniform(0.8, 0.95), 0.25, 0.65),
        ("a snow field", rng.uniform(0.5, 0.65), 0.1, 0.85),
        ("red ground", rng.uniform(0.0, 0.05), 0.5, 0.6),
    )[int(rng.integers(5))]
    soil = palette.color(rng, hue, saturation, value)
    patch = palette.color(rng, hue + rng.uniform(-0.15, 0.15), saturation * 0.9, value * 0.65)
    pattern = int(rng.choice([k.PLAIN, k.DOTS, k.STRIPES, k.BRICKS], p=[0.4, 0.25, 0.2, 0.15]))
    period = rng.uniform(1.5, 3.0)
    darker = palette.shade(soil, rng.uniform(0.6, 0.8))
    ground = b.material(
        pattern, soil, darker, patch, period=(period, 0.6 * period), grain=0.7, grain_length=0.4, tint=0.6,
        tint_length=3.5, angle=rng.uniform(0, math.pi),
    )  # fmt: skip
    b.add(k.GROUND, (0, 0, 0), (_REACH, 1, _REACH), ground)
    for _ in range(int(rng.integers(5, 10))):
        radius = rng.uniform(6, 14)
        angle, away = rng.uniform(-1.0, 1.0), rng.uniform(24, 36)
        slope = palette.color(rng, hue + rng.uniform(-0.1, 0.1), saturation, value * rng.uniform(0.6, 0.95))
        hill = b.material(
            k.PLAIN, slope, c=palette.shade(patch, 0.9), grain=0.8, grain_length=2.0, tint=0.7, tint_length=6.0
        )
        b.add(k.ELLIPSOID, (away * math.sin(angle), rng.uniform(0, 0.3) * radius, away * math.cos(angle)),
              (radius, rng.uniform(0.35, 0.8) * radius, radius), hill)  # fmt: skip
    aerial = rng.random() < 0.35
    nearest = 5.0 if aerial else 3.5
    taken: list[tuple[float, float, float]] = []

    def scatter(
        count: int, size: tuple[float, float], reach: float, place: Callable[[float, float, float], None]
    ) -> None:
        for _ in range(6 * count):
            if count == 0:
                return
            radius = rng.uniform(*size)
            z = nearest + radius + (reach - nearest) * rng.random() ** 1.3
            x = rng.uniform(-0.75, 0.75) * (z + 2)
            if all(math.hypot(x - tx, z - tz) > radius + other for tx, tz, other in taken):
                taken.append((x, z, radius))
                place(x, z, radius)
                count -= 1

    houses, trees = int(rng.integers(1, 5)), int(rng.integers(6, 15))
    scatter(houses, (1.6, 2.6), 16, lambda x, z, size: _house(b, x, z, size))
    crowns = [b.material(k.PLAIN, palette.color(rng, h, 0.55, 0.5), c=palette.color(rng, h + 0.05, 0.6, 0.3),
                         grain=1.2, grain_length=0.6, tint=0.8, tint_length=0.8)
              for h in rng.choice([0.25, 0.3, 0.36, 0.1, 0.05, 0.15], 3)]  # fmt: skip
    bark = b.material(k.PLAIN, palette.color(rng, 0.07, 0.45, 0.4), grain=0.9, grain_length=0.25)
    scatter(trees, (0.6, 1.3), 22, lambda x, z, size: _tree(b, x, z, size, bark, crowns))
    scatter(int(rng.integers(3, 9)), (0.25, 0.9), 12, lambda x, z, size: _rock(b, x, z, size))
    scatter(int(rng.integers(0, 4)), (0.4, 0.7), 10, lambda x, z, size: _sign(b, x, z, size))
    azimuth, height = rng.uniform(-2.6, 2.6), rng.uniform(0.5, 1.1)
    sun = np.array([math.sin(azimuth) * math.cos(height), -math.sin(height), -math.cos(azimuth) * math.cos(height)])
    warm = rng.uniform(0.0, 0.25)
    light = np.array([*sun, 0.0, 0.85, 0.85 - 0.3 * warm, 0.85 - warm, 0.36, 0.4, 0.46, 1.0,
                      rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12)])  # fmt: skip
    blue = palette.color(rng, rng.uniform(0.53, 0.63), 0.55, 0.85)
    horizon = palette.color(rng, rng.choice([0.55, 0.08, 0.95]), 0.15 + 0.5 * warm, 0.92)
    sky = np.array([*blue, *horizon, 0.95, 0.94, 0.95, float(rng.integers(1, 1 << 20))])
    eye = rng.uniform(4.0, 7.0) if aerial else rng.uniform(1.4, 2.8)
    start = np.array([rng.uniform(-2.0, 2.0), -eye, rng.uniform(-1.5, 0.5)])
    target = np.array([rng.uniform(-2.0, 2.0), -rng.uniform(0.2, 1.4), rng.uniform(8.0, 13.0)])
    caption = f"{name} with {houses} house{'s' if houses > 1 else ''}, trees, rocks and hills"
    return b.build(light, sky, caption), start, target


def _house(b: SceneBuilder, x: float, z: float, size: float) -> None:
    rng = b.rng
    turn = rotation(rng.uniform(-0.9, 0.9))
    _, plaster = palette.any_color(rng, muted=True)
    glass = palette.color(rng, 0.58, 0.4, 0.3)
    tall = rng.uniform(1.2, 2.2)
    a, c = rng.uniform(0.6, 0.75) * size, rng.uniform(0.45, 0.6) * size
    grid = rng.uniform(0.9, 1.2), rng.uniform(1.0, 1.3)
    frames = palette.any_color(rng)[1]
    facade = b.material(k.WINDOWS, plaster, glass, frames, period=grid, grain=0.2, grain_length=0.4)
    tiles = palette.color(rng, rng.choice([0.02, 0.05, 0.6, 0.35]), 0.5, 0.5)
    roof = b.material(
        k.BRICKS, tiles, palette.shade(tiles, 0.55), palette.shade(tiles, 0.7), period=(0.5, 0.35), grain=0.4
    )
    b.add(k.BOX, (x, -tall / 2, z), (a, tall / 2, c), facade, turn)
    # a box on its edge, its lower half inside the house: a gable roof
    edge = 1.08 * c / math.sqrt(2)
    b.add(k.BOX, (x, -tall + 0.05, z), (1.08 * a, edge, edge), roof, turn @ rotation(0, math.pi / 4))
    if rng.random() < 0.6:
        offset = turn @ np.array([0.5 * a, 0, 0.3 * c])
        b.add(k.BOX, (x + offset[0], -tall - 0.9 * c, z + offset[2]), (0.14, 0.45, 0.14), roof, turn)


def _tree(b: SceneBuilder, x: float, z: float, size: float, bark: int, crowns: list[int]) -> None:
    rng = b.rng
    leaf = crowns[int(rng.integers(len(crowns)))]
    trunk = rng.uniform(0.5, 1.2) * size
    b.add(k.CYLINDER, (x, -trunk / 2, z), (0.13 * size, trunk / 2 + 0.1, 0.13 * size), bark)
    if rng.random() < 0.45:
        for tier in range(2 + int(rng.integers(2))):
            radius = size * (0.85 - 0.2 * tier)
            b.add(k.CONE, (x, -trunk - (0.5 + 0.65 * tier) * size, z), (radius, 0.75 * size, radius), leaf)
        return
    b.add(k.ELLIPSOID, (x, -trunk - 0.6 * size, z), (0.8 * size, rng.uniform(0.65, 1.0) * size, 0.8 * size), leaf)
    if rng.random() < 0.6:
        b.add(k.ELLIPSOID, (x + 0.5 * size, -trunk - 0.35 * size, z - 0.2 * size), (0.5 * size,) * 3, leaf)


def _rock(b: SceneBuilder, x: float, z: float, size: float) -> None:
    rng = b.rng
    gray = palette.color(rng, rng.uniform(0, 1), 0.15, rng.uniform(0.35, 0.7))
    stone = b.material(
        k.PLAIN, gray, c=palette.shade(gray, 0.6), grain=0.9, grain_length=0.4 * size, tint=0.6, tint_length=size
    )
    half = (size, rng.uniform(0.4, 0.8) * size, rng.uniform(0.6, 1.0) * size)
    kind = k.ELLIPSOID if rng.random() < 0.7 else k.BOX
    b.add(kind, (x, -0.3 * size, z), half, stone, rotation(*rng.uniform(-0.5, 0.5, 3)))


def _sign(b: SceneBuilder, x: float, z: float, size: float) -> None:
    turn = rotation(b.rng.uniform(-0.6, 0.6))
    wood, _ = palette.thing(b, 0.5)
    b.add(k.BOX, (x, -1.2, z), (size, 0.4 * size + 0.15, 0.04), palette.picture(b), turn)
    b.add(k.CYLINDER, (x, -0.5, z + 0.06), (0.05, 0.5, 0.05), wood)
