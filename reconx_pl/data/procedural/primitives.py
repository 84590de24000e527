"""The parts of a procedural scene and the builder that packs them into tables."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from reconx_pl.data.procedural import layout as k
from reconx_pl.data.procedural.layout import Array, Tables

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """A static scene.

    World axes: x right, y down, z forward, metres; the floor or ground is the plane y = 0.
    """

    tables: Tables
    caption: str

    def clearance(self, points: Array) -> Array:
        """Distance from points [N, 3] to the nearest surface, metres, or less; negative inside a thing.

        Round things are measured by their bounding boxes where that is simpler.
        """
        nearest = np.full(len(points), np.inf)
        tables = self.tables
        for kind, center, inverse, half in zip(
            tables.kinds, tables.centers, tables.inverse, tables.halves, strict=True
        ):
            unit = (points - center) @ inverse.T  # [N, 3]
            metres = unit * half
            if kind == k.GROUND:
                distance = -metres[:, 1]
            elif kind == k.SHELL:
                distance = (half - np.abs(metres)).min(1)
            elif kind == k.ELLIPSOID:
                distance = (np.linalg.norm(unit, axis=1) - 1) * half.min()
            else:
                outside = np.abs(metres) - half
                distance = np.linalg.norm(np.maximum(outside, 0), axis=1) + np.minimum(outside.max(1), 0)
            nearest = np.minimum(nearest, distance)
        return nearest


def rotation(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Array:
    """Local to world axes: roll about z, then pitch about x, then yaw about y; radians."""
    cy, sy, cp, sp, cr, sr = (
        math.cos(yaw),
        math.sin(yaw),
        math.cos(pitch),
        math.sin(pitch),
        math.cos(roll),
        math.sin(roll),
    )
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


@dataclass
class SceneBuilder:
    """Collects materials and primitives; everything random comes from ``rng``.

    Attributes:
        rng: where all randomness comes from.
        look: changes materials, as ``looks.Look`` does; None leaves them as they are named.
    """

    rng: np.random.Generator
    look: Callable[[list[float]], list[float]] | None = None
    _rows: list[list[float]] = field(default_factory=list)
    _parts: list[tuple[int, Array, Array, Array, int, float, bool]] = field(default_factory=list)

    def material(
        self,
        kind: int,
        a: Color,
        b: Color | None = None,
        c: Color | None = None,
        *,
        period: tuple[float, float] = (0.5, 0.5),
        grain: float = 0.35,
        grain_length: float = 0.15,
        tint: float = 0.0,
        tint_length: float = 1.2,
        angle: float = 0.0,
    ) -> int:
        """Add a material; returns its row. Colours in [0, 1], lengths in metres, angle in radians."""
        row = [float(kind), *period, *a, *(b or a), *(c or a), grain, grain_length, tint, tint_length]
        row += [float(self.rng.integers(1, 1 << 20)), math.cos(angle), math.sin(angle), 0.0]
        self._rows.append(row if self.look is None else self.look(row))
        return len(self._rows) - 1

    def copy_rows(self, rows: list[int]) -> int:
        """Repeat rows of the table one after another, as a shell reads them; returns the index of the first."""
        first = len(self._rows)
        self._rows.extend([list(self._rows[row]) for row in rows])
        return first

    def add(
        self,
        kind: int,
        center: tuple[float, float, float],
        half: tuple[float, float, float],
        material: int,
        turn: Array | None = None,
    ) -> None:
        """Add a primitive; ``half`` are half sizes or radii along its own axes, ``turn`` [3, 3] local to world axes."""
        size = np.asarray(half, dtype=np.float64)
        axes = np.eye(3) if turn is None else turn
        unbounded = kind in (k.SHELL, k.GROUND)
        radius = float(size.max() if kind == k.ELLIPSOID else np.linalg.norm(size))
        if kind == k.CYLINDER:
            radius = float(math.hypot(max(size[0], size[2]), size[1]))
        inverse = axes.T / size[:, None]
        position = np.asarray(center, dtype=np.float64)
        self._parts.append((kind, inverse, position, size, material, 0.0 if unbounded else radius, not unbounded))

    def build(self, light: Array, sky: Array, caption: str) -> Scene:
        """Pack everything added so far."""
        kinds, inverse, centers, halves, materials, radii, casts = zip(*self._parts, strict=True)
        tables = Tables(
            np.array(kinds, dtype=np.int64),
            np.ascontiguousarray(np.stack(inverse)),
            np.stack(centers),
            np.stack(halves),
            np.array(materials, dtype=np.int64),
            np.array(radii, dtype=np.float64),
            np.array(casts, dtype=np.bool_),
            np.array(self._rows, dtype=np.float64),
            np.asarray(light, dtype=np.float64),
            np.asarray(sky, dtype=np.float64),
        )
        return Scene(tables, caption)
