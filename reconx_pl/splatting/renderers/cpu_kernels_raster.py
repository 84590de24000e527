"""Numba kernels: splats to pixels, and gradients of pixels back to splats.

The image is cut into tiles of 8 x 16 pixels. A tile's splats are kept front to back; what a splat does to its pixels is
one loop over contiguous planes with selects instead of branches, which LLVM turns into vector operations. The
exponential is a polynomial for the same reason.

Per pixel, front to back (Kerbl et al. 2023): sigma = (A dx^2 + C dy^2) / 2 + B dx dy, alpha = min(alpha_max,
opacity * exp(-sigma)), skipped below 1 / 255; weight = alpha * T; T *= 1 - alpha; stop before T would reach 1e-4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from reconx_pl.splatting.renderers.cpu_kernels_project import (
    SPLAT_A,
    SPLAT_B,
    SPLAT_BLUE,
    SPLAT_C,
    SPLAT_DEPTH,
    SPLAT_GREEN,
    SPLAT_OPACITY,
    SPLAT_RADIUS_X,
    SPLAT_RADIUS_Y,
    SPLAT_RED,
    SPLAT_X,
    SPLAT_Y,
)

TILE_WIDTH = 8  # one AVX register of float32
TILE_HEIGHT = 16
PIXELS = TILE_WIDTH * TILE_HEIGHT
MIN_ALPHA = np.float32(1.0 / 255.0)
MIN_TRANSMITTANCE = np.float32(1e-4)
CHECK_EVERY = 16  # splats between two looks at whether the whole tile is opaque

# exp(t) = (1 + t q(t)) on [-0.7, 0] to 1.2e-8, q by Chebyshev interpolation; then three squarings reach exp(-5.6).
_Q0, _Q1, _Q2 = np.float32(0.999999991387109), np.float32(0.49999910700086514), np.float32(0.16665161548572818)
_Q3, _Q4, _Q5 = np.float32(0.04157336471252467), np.float32(0.008068932021857428), np.float32(0.0010338018450516111)
_LOWEST = np.float32(-0.7)  # beyond it alpha is below 1 / 255 whatever the opacity
_EIGHTH = np.float32(-0.125)
_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)

_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "fastmath": {"contract", "nsz", "arcp"}}
# Sums may be taken in another order (that of the vector's lanes), which is the same for any number of threads.
_SUMS: dict[str, Any] = {**_OPTIONS, "fastmath": {"contract", "nsz", "arcp", "reassoc"}}


@njit(inline="always", **_OPTIONS)
def _exp_minus(sigma):
    """exp(-sigma) for sigma in [0, 5.6]; larger ones give exp(-5.6) < 1 / 255."""
    t = sigma * _EIGHTH
    t = t if t > _LOWEST else _LOWEST
    p = _ONE + t * (_Q0 + t * (_Q1 + t * (_Q2 + t * (_Q3 + t * (_Q4 + t * _Q5)))))
    p = p * p
    p = p * p
    return p * p


@njit(**_OPTIONS)
def sort_into_tiles(splats, depth_bits, width, height):
    """Make each tile's list of splats, front to back, ties by index.

    Args:
        splats: float32 [N, 12].
        depth_bits: uint32 [N], the depths' bit patterns; depths are positive, so that their order is that of the bits.

    Returns:
        starts [tiles + 1], members [P]: the splats of each tile. offsets [N + 1]: where the pairs of each splat begin
        if they are ordered splat by splat. places [P]: where in that order each pair of ``members`` stands.
    """
    count = splats.shape[0]
    tiles_x = (width + TILE_WIDTH - 1) // TILE_WIDTH
    tiles_y = (height + TILE_HEIGHT - 1) // TILE_HEIGHT
    order = np.empty(count, np.int32)
    spare = np.empty(count, np.int32)
    boxes = np.empty((count, 4), np.int32)
    offsets = np.zeros(count + 1, np.int64)
    starts = np.zeros(tiles_x * tiles_y + 1, np.int64)
    visible = 0
    for n in range(count):
        offsets[n + 1] = offsets[n]
        radius_x, radius_y = splats[n, SPLAT_RADIUS_X], splats[n, SPLAT_RADIUS_Y]
        if not radius_x > 0.0:
            continue
        x, y = splats[n, SPLAT_X], splats[n, SPLAT_Y]
        # First and last pixel whose centre is inside; clipped before the conversion, since a splat may be huge.
        x0 = max(0, int(np.ceil(max(x - radius_x, -1.0) - 0.51))) // TILE_WIDTH
        y0 = max(0, int(np.ceil(max(y - radius_y, -1.0) - 0.51))) // TILE_HEIGHT
        x1 = int(np.floor(min(x + radius_x, width) - 0.49))
        y1 = int(np.floor(min(y + radius_y, height) - 0.49))
        if x1 < 0 or y1 < 0:
            continue
        x1, y1 = min(x1 // TILE_WIDTH, tiles_x - 1) + 1, min(y1 // TILE_HEIGHT, tiles_y - 1) + 1
        if x1 <= x0 or y1 <= y0:
            continue
        boxes[n, 0], boxes[n, 1], boxes[n, 2], boxes[n, 3] = x0, x1, y0, y1
        offsets[n + 1] += (x1 - x0) * (y1 - y0)
        for row in range(y0, y1):
            for column in range(x0, x1):
                starts[row * tiles_x + column + 1] += 1
        order[visible] = n
        visible += 1

    counts = np.empty(2048, np.int64)  # radix sort, three passes of 11 bits; stable
    for shift in (0, 11, 22):
        counts[:] = 0
        for i in range(visible):
            counts[(depth_bits[order[i]] >> np.uint32(shift)) & np.uint32(2047)] += 1
        total = 0
        for digit in range(2048):
            here = counts[digit]
            counts[digit] = total
            total += here
        for i in range(visible):
            digit = (depth_bits[order[i]] >> np.uint32(shift)) & np.uint32(2047)
            spare[counts[digit]] = order[i]
            counts[digit] += 1
        order, spare = spare, order

    for tile in range(tiles_x * tiles_y):
        starts[tile + 1] += starts[tile]
    cursor = starts[:-1].copy()
    members = np.empty(starts[-1], np.int32)
    places = np.empty(starts[-1], np.int32)
    for i in range(visible):
        n = order[i]
        pair = offsets[n]
        for row in range(boxes[n, 2], boxes[n, 3]):
            for column in range(boxes[n, 0], boxes[n, 1]):
                slot = cursor[row * tiles_x + column]
                cursor[row * tiles_x + column] += 1
                members[slot] = n
                places[slot] = pair
                pair += 1
    return starts, members, offsets, places


@njit(inline="always", **_OPTIONS)
def _pixels(splat, y):
    """The tile's pixels, first and last + 1, in whole pairs of rows, that a splat may touch whose centre is ``y`` below
    the first row's. Pairs of rows fill AVX-512 registers. Unsigned, or else each index would be tested for wrapping."""
    radius = splat[SPLAT_RADIUS_Y] + np.float32(0.01)
    first = int(max(np.ceil(y - radius), _ZERO)) // 2
    last = (int(np.floor(min(y + radius, np.float32(TILE_HEIGHT - 1)))) + 2) // 2
    return np.uint64(first * 2 * TILE_WIDTH), np.uint64(max(first, last) * 2 * TILE_WIDTH)


def interleaved_rows(height: int, threads: int) -> np.ndarray:  # int64 [rows of tiles]
    """Rows of tiles in the order of the work: every ``threads``-th from the first on, then from the second on, ...

    Threads get contiguous shares of the work. In image order one of them would get the sky and another the floor.
    """
    rows = (height + TILE_HEIGHT - 1) // TILE_HEIGHT
    return np.concatenate([np.arange(first, rows, threads) for first in range(threads)])


# Where the planes of the forward scratch start; the last two say where a pixel is in the tile. One flat array for all,
# with constant distances: otherwise LLVM cannot rule out that planes overlap, and gives up on vectors.
_T, _ALIVE, _LAST, _RED, _GREEN, _BLUE, _DEPTH, _COLUMN, _ROW = (np.uint64(PIXELS * plane) for plane in range(9))


@njit(inline="never", **_SUMS)
def _splat_forward(s, order, alpha_max, splat, x, y):
    """Blend one splat, with its centre at (x, y) from the first pixel's, into the tile's state ``s``."""
    a, b, c = splat[SPLAT_A], splat[SPLAT_B], splat[SPLAT_C]
    opacity, z = splat[SPLAT_OPACITY], splat[SPLAT_DEPTH]
    red, green, blue = splat[SPLAT_RED], splat[SPLAT_GREEN], splat[SPLAT_BLUE]
    first, last = _pixels(splat, y)
    for i in range(first, last):
        dx, dy = x - s[_COLUMN + i], y - s[_ROW + i]
        sigma = (_HALF * a * dx + b * dy) * dx + _HALF * c * dy * dy
        alpha = opacity * _exp_minus(sigma)
        alpha = alpha if alpha < alpha_max else alpha_max
        alpha = alpha * s[_ALIVE + i]
        alpha = alpha if alpha >= MIN_ALPHA else _ZERO
        alpha = alpha if sigma >= _ZERO else _ZERO
        before = s[_T + i]
        after = before * (_ONE - alpha)
        go = after > MIN_TRANSMITTANCE
        weight = alpha * before if go else _ZERO
        s[_T + i] = after if go else before
        s[_ALIVE + i] = s[_ALIVE + i] if go else _ZERO
        s[_LAST + i] = order if weight > _ZERO else s[_LAST + i]
        s[_RED + i] += weight * red
        s[_GREEN + i] += weight * green
        s[_BLUE + i] += weight * blue
        s[_DEPTH + i] += weight * z


@njit(inline="never", **_SUMS)
def _alive(s):
    """How many of the tile's pixels still see through."""
    total = _ZERO
    for i in range(np.uint64(PIXELS)):
        total += s[_ALIVE + i]
    return total


@njit(parallel=True, **_OPTIONS)
def rasterise(splats, starts, members, order, background, alpha_max, planes):
    """Blend every tile front to back.

    Args:
        order: rows of tiles as ``interleaved_rows`` gives them.
        background: float32 [3].
        planes: float32 [6, H, W], output: red, green, blue, accumulated depth, final transmittance and the place in the
            tile's list after the last splat that counted.
    """
    height, width = planes.shape[1], planes.shape[2]
    tiles_x = (width + TILE_WIDTH - 1) // TILE_WIDTH
    for item in prange(starts.shape[0] - 1):
        tile_x, tile_y = item % tiles_x, order[item // tiles_x]
        tile, left, top = tile_y * tiles_x + tile_x, tile_x * TILE_WIDTH, tile_y * TILE_HEIGHT
        s = np.zeros(9 * PIXELS, np.float32)
        for row in range(TILE_HEIGHT):
            for column in range(TILE_WIDTH):
                i = np.uint64(row * TILE_WIDTH + column)
                s[_COLUMN + i], s[_ROW + i], s[_T + i] = column, row, _ONE
                s[_ALIVE + i] = _ONE if top + row < height and left + column < width else _ZERO
        for slot in range(starts[tile], starts[tile + 1]):
            place = slot - starts[tile]
            if place % CHECK_EVERY == CHECK_EVERY - 1 and _alive(s) == _ZERO:
                break
            splat = splats[members[slot]]
            x = splat[SPLAT_X] - np.float32(left) - _HALF
            y = splat[SPLAT_Y] - np.float32(top) - _HALF
            _splat_forward(s, np.float32(place + 1), alpha_max, splat, x, y)
        for row in range(min(TILE_HEIGHT, height - top)):
            for column in range(min(TILE_WIDTH, width - left)):
                i, py, px = np.uint64(row * TILE_WIDTH + column), top + row, left + column
                rest = s[_T + i]
                planes[0, py, px] = s[_RED + i] + rest * background[0]
                planes[1, py, px] = s[_GREEN + i] + rest * background[1]
                planes[2, py, px] = s[_BLUE + i] + rest * background[2]
                planes[3, py, px] = s[_DEPTH + i]
                planes[4, py, px] = rest
                planes[5, py, px] = s[_LAST + i]


# Planes of the backward scratch: state and gradients of the pixels, and where they are in the tile.
_BT, _BREST, _BLAST, _BRED, _BGREEN, _BBLUE, _BDEPTH, _BALPHA, _BCOLUMN, _BROW = (
    np.uint64(PIXELS * plane) for plane in range(10)
)


@njit(inline="never", **_SUMS)
def _splat_backward(s, order, alpha_max, splat, x, y, row):
    """Write the gradient ``row`` [10] that one splat gets from the tile's pixels, and take the splat out of the state.
    One loop over pixels with ten sums, which become ten vector registers."""
    a, b, c = splat[SPLAT_A], splat[SPLAT_B], splat[SPLAT_C]
    opacity, z = splat[SPLAT_OPACITY], splat[SPLAT_DEPTH]
    red, green, blue = splat[SPLAT_RED], splat[SPLAT_GREEN], splat[SPLAT_BLUE]
    m0, mx, my, mxx, mxy, myy = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    gr, gg, gb, gz = _ZERO, _ZERO, _ZERO, _ZERO
    first, last = _pixels(splat, y)
    for i in range(first, last):
        dx, dy = x - s[_BCOLUMN + i], y - s[_BROW + i]
        sigma = (_HALF * a * dx + b * dy) * dx + _HALF * c * dy * dy
        raw = opacity * _exp_minus(sigma)
        alpha = raw if raw < alpha_max else alpha_max
        alpha = alpha if alpha >= MIN_ALPHA else _ZERO
        alpha = alpha if sigma >= _ZERO else _ZERO
        alpha = alpha if s[_BLAST + i] >= order else _ZERO
        inverse = _ONE / (_ONE - alpha)
        before = s[_BT + i] * inverse
        weight = alpha * before
        gain = red * s[_BRED + i] + green * s[_BGREEN + i] + blue * s[_BBLUE + i] + z * s[_BDEPTH + i] + s[_BALPHA + i]
        slope = alpha * (before * gain - s[_BREST + i] * inverse)  # by log alpha
        slope = slope if raw < alpha_max else _ZERO
        s[_BT + i] = before
        s[_BREST + i] += weight * gain
        by_x, by_y = slope * dx, slope * dy
        m0 += slope
        mx += by_x
        my += by_y
        mxx += by_x * dx
        mxy += by_x * dy
        myy += by_y * dy
        gr += weight * s[_BRED + i]
        gg += weight * s[_BGREEN + i]
        gb += weight * s[_BBLUE + i]
        gz += weight * s[_BDEPTH + i]
    row[SPLAT_X], row[SPLAT_Y] = -(a * mx + b * my), -(b * mx + c * my)
    row[SPLAT_A], row[SPLAT_B], row[SPLAT_C] = -_HALF * mxx, -mxy, -_HALF * myy
    row[SPLAT_OPACITY] = m0 / opacity
    row[SPLAT_RED], row[SPLAT_GREEN], row[SPLAT_BLUE], row[SPLAT_DEPTH] = gr, gg, gb, gz


@njit(parallel=True, **_OPTIONS)
def rasterise_backward(splats, starts, members, places, order, background, alpha_max, planes, gradient, rows):
    """Gradient of each (tile, splat) pair, back to front.

    Args:
        planes: as ``rasterise`` left them.
        gradient: float32 [5, H, W] of the loss by red, green, blue, accumulated depth and alpha.
        rows: float32 [P, 10], output, by splat columns; a splat's rows stand together.
    """
    height, width = planes.shape[1], planes.shape[2]
    tiles_x = (width + TILE_WIDTH - 1) // TILE_WIDTH
    for item in prange(starts.shape[0] - 1):
        tile_x, tile_y = item % tiles_x, order[item // tiles_x]
        tile, left, top = tile_y * tiles_x + tile_x, tile_x * TILE_WIDTH, tile_y * TILE_HEIGHT
        s = np.zeros(10 * PIXELS, np.float32)
        deepest = 0
        for row in range(TILE_HEIGHT):
            for column in range(TILE_WIDTH):
                i, py, px = np.uint64(row * TILE_WIDTH + column), top + row, left + column
                s[_BCOLUMN + i], s[_BROW + i] = column, row
                if py >= height or px >= width:
                    continue
                rest = planes[4, py, px]
                s[_BT + i] = rest
                s[_BLAST + i] = planes[5, py, px]
                deepest = max(deepest, int(planes[5, py, px]))
                s[_BREST + i] = rest * (
                    background[0] * gradient[0, py, px]
                    + background[1] * gradient[1, py, px]
                    + background[2] * gradient[2, py, px]
                )
                s[_BRED + i] = gradient[0, py, px]
                s[_BGREEN + i] = gradient[1, py, px]
                s[_BBLUE + i] = gradient[2, py, px]
                s[_BDEPTH + i] = gradient[3, py, px]
                s[_BALPHA + i] = gradient[4, py, px]
        for slot in range(starts[tile] + deepest, starts[tile + 1]):
            rows[places[slot]] = _ZERO
        for place in range(deepest - 1, -1, -1):
            slot = starts[tile] + place
            splat = splats[members[slot]]
            x = splat[SPLAT_X] - np.float32(left) - _HALF
            y = splat[SPLAT_Y] - np.float32(top) - _HALF
            _splat_backward(s, np.float32(place + 1), alpha_max, splat, x, y, rows[places[slot]])
