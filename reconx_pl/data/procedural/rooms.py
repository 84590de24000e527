"""Rooms: a textured box with furniture, balls, pillars, pictures."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from reconx_pl.data.procedural import layout as k
from reconx_pl.data.procedural import palette
from reconx_pl.data.procedural.primitives import Array, Scene, SceneBuilder, rotation

Placer = Callable[[SceneBuilder, float, float, float], str]


def room(b: SceneBuilder) -> tuple[Scene, Array, Array]:
    """A random room; ``b`` is empty.

    Returns:
        the scene, a point [3] where a camera may stand, and one [3] that it may look at.
    """
    rng = b.rng
    width, length, height = rng.uniform(5, 8.5), rng.uniform(6, 10), rng.uniform(2.6, 3.6)
    walls = [palette.wall(b) for _ in range(3)]
    floor, floor_name = palette.floor(b)
    _, tone = palette.any_color(rng, muted=True)
    tone = palette.shade(tone, 1.25)
    pattern = k.PLANKS if rng.random() < 0.4 else k.CHECKER
    ceiling = b.material(
        pattern,
        tone,
        palette.shade(tone, 0.85),
        palette.shade(tone, 0.92),
        period=(1.2, 0.6),
        grain=0.2,
        grain_length=0.6,
    )
    # the shell reads six rows in the order of its faces: x-, x+, ceiling, floor, z-, z+
    shell = b.copy_rows([walls[0][0], walls[1][0], ceiling, floor, walls[1][0], walls[2][0]])
    b.add(k.SHELL, (0, -height / 2, length / 2), (width / 2, height / 2, length / 2), shell)
    _pictures(b, width, length, height)
    near = 0.32 * length  # the camera's part of the room stays empty
    if rng.random() < 0.7:
        rug, _ = palette.thing(b, 1.5)
        b.add(k.BOX, (rng.uniform(-0.2, 0.2) * width, -0.01, rng.uniform(0.45, 0.7) * length),
              (rng.uniform(0.8, 1.6), 0.01, rng.uniform(0.7, 1.3)), rug, rotation(rng.uniform(-0.5, 0.5)))  # fmt: skip
    names: list[str] = []
    taken: list[tuple[float, float, float]] = []
    kinds: list[tuple[Placer, float]] = [
        (_table, 0.8), (_sofa, 1.0), (_shelf, 0.7), (_crates, 0.6),
        (_ball, 0.5), (_pillar, 0.35), (_lamp, 0.4), (_tower, 0.5),
    ]  # fmt: skip
    wanted = int(rng.integers(6, 11))
    for _ in range(60):
        if len(names) == wanted:
            break
        place, size = kinds[int(rng.integers(len(kinds)))]
        size *= rng.uniform(0.8, 1.2)
        x, z = rng.uniform(-width / 2 + size, width / 2 - size), rng.uniform(near + size, length - size)
        if all(math.hypot(x - tx, z - tz) > size + other for tx, tz, other in taken):
            taken.append((x, z, size))
            names.append(place(b, x, z, size))
    light = np.array(
        [rng.uniform(-0.35, 0.35) * width, -height + 0.25, rng.uniform(0.25, 0.75) * length, 1.0,
         *(rng.uniform(1.0, 1.25) * np.array([1.0, rng.uniform(0.9, 1.0), rng.uniform(0.8, 1.0)])),
         *(rng.uniform(0.46, 0.6) * np.array([0.95, 0.97, 1.0])),
         rng.uniform(4, 7), rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12)]
    )  # fmt: skip
    start = np.array([rng.uniform(-0.22, 0.22) * width, -rng.uniform(1.1, 1.9), rng.uniform(0.14, 0.3) * length])
    target = np.array([rng.uniform(-0.25, 0.25) * width, -rng.uniform(0.5, 1.2), rng.uniform(0.62, 0.85) * length])
    caption = (
        f"a room with a {floor_name} floor, {walls[2][1]} walls, {', '.join(map(_with_article, sorted(set(names))))}"
    )
    return b.build(light, np.zeros(10), caption), start, target


def _with_article(name: str) -> str:
    if name.endswith("s"):
        return name
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def _pictures(b: SceneBuilder, width: float, length: float, height: float) -> None:
    rng = b.rng
    for _ in range(int(rng.integers(2, 6))):
        half_width, half_height = rng.uniform(0.3, 0.75), rng.uniform(0.25, 0.5)
        y = -rng.uniform(0.5, 0.6) * height
        picture = palette.picture(b)
        if rng.random() < 0.5:
            x = rng.uniform(-0.5, 0.5) * (width - 2 * half_width - 0.2)
            b.add(k.BOX, (x, y, length - 0.03), (half_width, half_height, 0.03), picture)
        else:
            side = float(rng.choice([-1.0, 1.0]))
            b.add(k.BOX, (side * (width / 2 - 0.03), y, rng.uniform(0.35, 0.85) * length),
                  (0.03, half_height, half_width), picture)  # fmt: skip


def _table(b: SceneBuilder, x: float, z: float, size: float) -> str:
    turn = rotation(b.rng.uniform(0, math.pi))
    top, name = palette.thing(b, 0.8)
    leg, _ = palette.thing(b, 0.3)
    a, c, height = 0.75 * size, 0.5 * size, b.rng.uniform(0.6, 0.85)
    b.add(k.BOX, (x, -height, z), (a, 0.04, c), top, turn)
    for sx in (-1, 1):
        for sz in (-1, 1):
            offset = turn @ np.array([sx * (a - 0.06), 0, sz * (c - 0.06)])
            b.add(k.BOX, (x + offset[0], -height / 2, z + offset[2]), (0.04, height / 2, 0.04), leg, turn)
    if b.rng.random() < 0.7:
        vase, _ = palette.thing(b, 0.3)
        radius = b.rng.uniform(0.1, 0.18)
        b.add(int(b.rng.choice([k.ELLIPSOID, k.CYLINDER, k.CONE])), (x, -height - 0.04 - 1.3 * radius, z),
              (radius, 1.3 * radius, radius), vase)  # fmt: skip
    return f"{name} table"


def _sofa(b: SceneBuilder, x: float, z: float, size: float) -> str:
    turn = rotation(b.rng.uniform(-1.2, 1.2))
    cloth, name = palette.thing(b, 0.9)
    cushion, _ = palette.thing(b, 0.4)

    def part(px: float, py: float, pz: float, half: tuple[float, float, float], material: int) -> None:
        offset = turn @ np.array([px, 0, pz])
        b.add(k.BOX, (x + offset[0], -py, z + offset[2]), half, material, turn)

    a = 0.8 * size
    part(0, 0.22, 0, (a, 0.22, 0.4), cloth)
    part(0, 0.5, 0.34, (a, 0.4, 0.1), cloth)
    part(-a, 0.33, 0, (0.1, 0.33, 0.42), cloth)
    part(a, 0.33, 0, (0.1, 0.33, 0.42), cloth)
    part(-0.45 * a, 0.5, -0.02, (0.4 * a, 0.07, 0.3), cushion)
    return f"{name} sofa"


def _shelf(b: SceneBuilder, x: float, z: float, size: float) -> str:
    turn = rotation(b.rng.uniform(-0.8, 0.8))
    wood, name = palette.thing(b, 0.7)
    height, a = b.rng.uniform(1.2, 2.0), 0.7 * size
    b.add(k.BOX, (x, -height / 2, z), (a, height / 2, 0.18), wood, turn)
    for row in range(int(height / 0.4)):
        books, _ = palette.thing(b, 0.25)
        offset = turn @ np.array([b.rng.uniform(-0.2, 0.2) * a, 0, -0.2])
        b.add(k.BOX, (x + offset[0], -0.22 - 0.4 * row, z + offset[2]), (0.7 * a, 0.13, 0.06), books, turn)
    return f"{name} shelf"


def _crates(b: SceneBuilder, x: float, z: float, size: float) -> str:
    base, name = palette.thing(b, 0.6)
    upper, _ = palette.thing(b, 0.4)
    a, h = 0.55 * size, b.rng.uniform(0.2, 0.4)
    b.add(k.BOX, (x, -h, z), (a, h, b.rng.uniform(0.6, 1.0) * a), base, rotation(b.rng.uniform(0, math.pi)))
    c = b.rng.uniform(0.35, 0.6) * a
    b.add(k.BOX, (x, -2 * h - c, z), (c, c, c), upper, rotation(b.rng.uniform(0, math.pi)))
    return f"{name} crates"


def _ball(b: SceneBuilder, x: float, z: float, size: float) -> str:
    skin, name = palette.thing(b, 0.5)
    radius = b.rng.uniform(0.25, 0.48)
    b.add(
        k.ELLIPSOID,
        (x, -radius, z),
        (radius, radius, radius),
        skin,
        rotation(0, b.rng.uniform(-0.4, 0.4), b.rng.uniform(-1, 1)),
    )
    return f"{name} ball"


def _pillar(b: SceneBuilder, x: float, z: float, size: float) -> str:
    stone, name = palette.thing(b, 0.6)
    radius, height = 0.5 * size, b.rng.uniform(0.6, 1.9)
    b.add(k.CYLINDER, (x, -height / 2, z), (radius, height / 2, radius), stone)
    ball, _ = palette.thing(b, 0.4)
    b.add(k.ELLIPSOID, (x, -height - radius, z), (radius, radius, radius), ball)
    return f"{name} pillar"


def _lamp(b: SceneBuilder, x: float, z: float, size: float) -> str:
    pole, _ = palette.thing(b, 0.3)
    cloth, name = palette.thing(b, 0.3)
    height = b.rng.uniform(1.2, 1.8)
    b.add(k.CYLINDER, (x, -height / 2, z), (0.035, height / 2, 0.035), pole)
    b.add(k.CYLINDER, (x, -0.03, z), (0.2, 0.03, 0.2), pole)
    b.add(k.CONE, (x, -height, z), (0.3, 0.2, 0.3), cloth)
    return f"{name} lamp"


def _tower(b: SceneBuilder, x: float, z: float, size: float) -> str:
    y, name = 0.0, ""
    for floor in range(int(b.rng.integers(2, 5))):
        block, tone = palette.thing(b, 0.4)
        name = name or tone
        half = (0.4 - 0.07 * floor) * b.rng.uniform(0.8, 1.1)
        tall = half * b.rng.uniform(0.5, 0.9)
        kind = k.BOX if b.rng.random() < 0.6 else k.CYLINDER
        b.add(kind, (x, -y - tall, z), (half, tall, half), block, rotation(b.rng.uniform(0, math.pi)))
        y += 2 * tall
    top, _ = palette.thing(b, 0.3)
    b.add(k.CONE, (x, -y - 0.2, z), (0.2, 0.2, 0.2), top)
    return f"{name} tower"
