"""Clutter: many things at arm's length on a table or on the ground, thin ones among them."""

from __future__ import annotations

import math

import numpy as np

from reconx_pl.data.procedural import layout as k
from reconx_pl.data.procedural import palette
from reconx_pl.data.procedural.primitives import Array, Scene, SceneBuilder, rotation


def clutter(b: SceneBuilder) -> tuple[Scene, Array, Array]:
    """A random heap of things; ``b`` is empty.

    Returns:
        the scene, a point [3] where a camera may stand, and one [3] that it may look at.
    """
    rng = b.rng
    inside = rng.random() < 0.6
    floor, _ = palette.floor(b)
    if inside:
        wall, _ = palette.wall(b)
        other, _ = palette.wall(b)
        half = (rng.uniform(4, 7), rng.uniform(2.2, 3.5), rng.uniform(5, 8))
        shell = b.copy_rows([wall, other, other, floor, wall, wall])
        b.add(k.SHELL, (0, -half[1], 0.7 * half[2]), half, shell)
    else:
        b.add(k.GROUND, (0, 0, 0), (30, 1, 30), floor)
        for _ in range(int(rng.integers(0, 4))):
            bush, _ = palette.thing(b, 3.0)
            radius = rng.uniform(2, 5)
            b.add(
                k.ELLIPSOID, (rng.uniform(-12, 12), 0, rng.uniform(14, 24)), (radius, rng.uniform(1, 3), radius), bush
            )
    top = rng.uniform(0.5, 1.0) if rng.random() < 0.5 else 0.0
    if top:
        board, _ = palette.thing(b, 1.5)
        b.add(k.BOX, (0, -top / 2, 4.0), (rng.uniform(1.6, 2.6), top / 2, rng.uniform(1.2, 2.0)), board,
              rotation(rng.uniform(-0.3, 0.3)))  # fmt: skip
    skins = [palette.thing(b, 0.5)[0] for _ in range(10)]
    skins += [palette.picture(b) for _ in range(2)]
    for _ in range(int(rng.integers(12, 36))):
        _thing(b, rng.uniform(-1.9, 1.9), rng.uniform(2.6, 5.4), top, int(rng.choice(skins)))
    for _ in range(int(rng.integers(0, 4))):
        _plant(b, rng.uniform(-1.9, 1.9), rng.uniform(2.8, 5.6), top, [int(skin) for skin in rng.choice(skins, 3)])
    if rng.random() < 0.35:
        _fence(b, rng.uniform(3.0, 6.5), int(rng.choice(skins)))
    if inside:
        place = np.array([rng.uniform(-2, 2), -rng.uniform(2.4, 4.0), rng.uniform(0, 4), 1.0])
        light = np.array([*place, *rng.uniform(0.7, 1.2, 3), *(rng.uniform(0.3, 0.6) * np.ones(3)),
                          rng.uniform(3, 7), *rng.uniform(-0.15, 0.15, 2)])  # fmt: skip
    else:
        sun = np.array([rng.uniform(-1, 1), -rng.uniform(0.5, 1.2), rng.uniform(-1, 0.6)])
        light = np.array([*(sun / np.linalg.norm(sun)), 0.0, *rng.uniform(0.7, 0.95, 3), 0.34, 0.38, 0.44, 1.0,
                          *rng.uniform(-0.15, 0.15, 2)])  # fmt: skip
    sky = np.array([*palette.color(rng, 0.58, 0.5, 0.85), *palette.color(rng, 0.6, 0.1, 0.9), 0.95, 0.95, 0.95,
                    float(rng.integers(1, 1 << 20))])  # fmt: skip
    start = np.array([rng.uniform(-0.8, 0.8), -top - rng.uniform(0.5, 1.5), rng.uniform(-0.2, 0.6)])
    target = np.array([rng.uniform(-0.5, 0.5), -top - rng.uniform(0.0, 0.5), rng.uniform(3.6, 4.4)])
    return b.build(light, sky, "a heap of things" + (" on a table" if top else "")), start, target


def _thing(b: SceneBuilder, x: float, z: float, top: float, skin: int) -> None:
    rng = b.rng
    size = 0.06 * 8.0 ** rng.random()  # 6 to 48 cm
    shape = rng.choice(["box", "ball", "can", "cone", "rod", "slab"], p=[0.24, 0.2, 0.16, 0.08, 0.2, 0.12])
    turn = rotation(rng.uniform(0, math.pi))
    if shape == "rod":
        long, thin = rng.uniform(0.2, 0.7), rng.uniform(0.008, 0.03)
        turn = rotation(rng.uniform(0, math.pi), rng.uniform(-1.5, 1.5), rng.uniform(-1.5, 1.5))
        b.add(k.CYLINDER, (x, -top - 0.7 * long, z), (thin, long, thin), skin, turn)
    elif shape == "slab":
        b.add(k.BOX, (x, -top - 0.03, z), (size, 0.03, size * rng.uniform(0.5, 1.0)), skin, turn)
    else:
        kind = {"box": k.BOX, "ball": k.ELLIPSOID, "can": k.CYLINDER, "cone": k.CONE}[str(shape)]
        tall = size * rng.uniform(0.5, 1.8)
        b.add(kind, (x, -top - tall, z), (size, tall, size * rng.uniform(0.6, 1.0)), skin, turn)
        if rng.random() < 0.3:
            upper = 0.6 * size
            b.add(k.BOX, (x, -top - 2 * tall - upper, z), (upper, upper, upper), skin, rotation(rng.uniform(0, 3)))


def _plant(b: SceneBuilder, x: float, z: float, top: float, skins: list[int]) -> None:
    rng = b.rng
    b.add(k.CYLINDER, (x, -top - 0.12, z), (0.15, 0.12, 0.15), skins[0])
    tall = rng.uniform(0.3, 0.8)
    b.add(k.CYLINDER, (x, -top - tall / 2 - 0.2, z), (0.015, tall / 2, 0.015), skins[1])
    for _ in range(int(rng.integers(6, 16))):
        reach, angle = rng.uniform(0.05, 0.35), rng.uniform(0, 2 * math.pi)
        place = (x + reach * math.cos(angle), -top - 0.25 - tall * rng.uniform(0.3, 1.0), z + reach * math.sin(angle))
        b.add(k.ELLIPSOID, place, (rng.uniform(0.1, 0.25), 0.012, rng.uniform(0.03, 0.07)), skins[2],
              rotation(-angle, rng.uniform(-0.5, 0.5), rng.uniform(-0.8, 0.8)))  # fmt: skip


def _fence(b: SceneBuilder, z: float, skin: int) -> None:
    rng = b.rng
    tall, step, thin = rng.uniform(0.6, 1.6), rng.uniform(0.15, 0.4), rng.uniform(0.01, 0.03)
    for number in range(int(4 / step)):
        b.add(k.CYLINDER, (-2 + step * number, -tall / 2, z), (thin, tall / 2, thin), skin)
    b.add(k.BOX, (0, -0.9 * tall, z), (2, 0.03, thin), skin)
