"""How the materials of varied scenes differ from those that a scene names: textures, colours and highlights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reconx_pl.data.procedural import layout as k

_REGULAR = (k.PLAIN, k.CHECKER, k.STRIPES, k.DOTS)  # what photographs seldom show


@dataclass
class Look:
    """Draws of one scene.

    Args:
        rng: of its own, so that the things of a scene stand where they stand without it.
    """

    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.leaves = self.rng.uniform(0.2, 0.7)  # share of regular textures that become irregular
        self.glossy = self.rng.uniform(0.0, 0.5)
        self.gray = self.rng.uniform(0.0, 0.7)  # how far colours go to gray
        self.dark = self.rng.uniform(0.55, 1.0)

    def __call__(self, row: list[float]) -> list[float]:
        """Another row of the table of materials."""
        rng, new = self.rng, list(row)
        if int(row[k.KIND]) in _REGULAR and rng.random() < self.leaves:
            new[k.KIND] = float(k.LEAVES)
            new[k.PERIOD_U] = row[k.PERIOD_U] * rng.uniform(0.7, 2.0)
        if rng.random() < self.glossy:
            new[k.GLOSS] = rng.uniform(0.1, 0.9)
        gray, gain = self.gray * rng.random(), rng.uniform(self.dark, 1.0)
        for first in (k.COLOR_A, k.COLOR_B, k.COLOR_C):
            color = np.asarray(row[first : first + 3])
            new[first : first + 3] = (gain * ((1 - gray) * color + gray * color.mean())).tolist()
        new[k.GRAIN] = row[k.GRAIN] * rng.uniform(0.6, 2.0)
        return new
