"""The tables of a procedural scene: what its rows and columns mean.

The kernels compile these numbers in, and numba does not notice that another file has changed: after an edit here, touch
``kernels.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# kinds of primitives, in unit coordinates
SHELL = 0  # the cube [-1, 1]^3 seen from inside; six materials: x-, x+, y- (ceiling), y+ (floor), z-, z+
BOX = 1  # the cube from outside
ELLIPSOID = 2  # the unit sphere
CYLINDER = 3  # radius 1 about y, y in [-1, 1], with caps
CONE = 4  # apex at y = -1 (up), base of radius 1 at y = 1
GROUND = 5  # the disc x^2 + z^2 <= 1 at y = 0, from above

# kinds of textures
PLAIN, CHECKER, STRIPES, BRICKS, PLANKS, DOTS, WINDOWS, PICTURE, LEAVES = range(9)

# columns of the material table
KIND, PERIOD_U, PERIOD_V = 0, 1, 2
COLOR_A, COLOR_B, COLOR_C = 3, 6, 9  # three columns each, in [0, 1]
GRAIN, GRAIN_LENGTH = 12, 13  # relative amplitude and wavelength (metres) of the fine noise
TINT, TINT_LENGTH = 14, 15  # share of colour C in the coarse noise, and its wavelength
SEED, COS, SIN = 16, 17, 18
GLOSS = 19  # of the highlight, 0 = none


class Tables(NamedTuple):
    """P primitives and M materials."""

    kinds: NDArray[np.int64]  # [P]
    inverse: Array  # [P, 3, 3] world to unit coordinates
    centers: Array  # [P, 3] metres
    halves: Array  # [P, 3] half sizes or radii along the own axes, metres
    materials_of: NDArray[np.int64]  # [P] row of the material table
    radii: Array  # [P] of the bounding spheres, 0 = unbounded
    casts: NDArray[np.bool_]  # [P] throws a shadow
    materials: Array  # [M, 20]
    light: (
        Array  # [13] position (then 1) or direction (then 0), colour, ambient colour, falloff (metres), fill along x, z
    )
    sky: Array  # [10] zenith colour, horizon colour, cloud colour, seed
