"""Numba kernels: splats to pixels, and gradients of pixels back to splats.

The image is cut into tiles of 8 x 16 pixels. A tile's splats are kept front to back; each row of 8 pixels is one
vector operation, so all inner loops run over constant lanes and use selects instead of branches. The exponential is a
polynomial for the same reason.

Per pixel, front to back (Kerbl et al. 2023): sigma = (A dx^2 + C dy^2) / 2 + B dx dy, alpha = min(alpha_max,
opacity * exp(-sigma)), skipped below 1 / 255; weight = alpha * T; T *= 1 - alpha; stop before T would reach 1e-4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange

from reconx_pl.splatting.cpu_kernels_project import (
    GRADIENT_COLUMNS,
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
        starts [tiles + 1], members [P] (splat of each pair), offsets [N + 1] and slots [P] (pairs of each splat).
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
    slots = np.empty(starts[-1], np.int32)
    for i in range(visible):
        n = order[i]
        pair = offsets[n]
        for row in range(boxes[n, 2], boxes[n, 3]):
            for column in range(boxes[n, 0], boxes[n, 1]):
                slot = cursor[row * tiles_x + column]
                cursor[row * tiles_x + column] += 1
                members[slot] = n
                slots[pair] = slot
                pair += 1
    return starts, members, offsets, slots


# Planes of the forward scratch.
_T, _ALIVE, _LAST, _RED, _GREEN, _BLUE, _DEPTH = 0, 1, 2, 3, 4, 5, 6


@njit(parallel=True, **_OPTIONS)
def rasterise(splats, starts, members, background, alpha_max, planes):
    """Blend every tile front to back.

    Args:
        background: float32 [3].
        planes: float32 [6, H, W], output: red, green, blue, accumulated depth, final transmittance and the place in the
            tile's list after the last splat that counted.
    """
    height, width = planes.shape[1], planes.shape[2]
    tiles_x = (width + TILE_WIDTH - 1) // TILE_WIDTH
    for tile in prange(starts.shape[0] - 1):
        left, top = (tile % tiles_x) * TILE_WIDTH, (tile // tiles_x) * TILE_HEIGHT
        s = np.zeros((7, TILE_HEIGHT, TILE_WIDTH), np.float32)
        for row in range(TILE_HEIGHT):
            for i in range(TILE_WIDTH):
                s[_T, row, i] = _ONE
                s[_ALIVE, row, i] = _ONE if top + row < height and left + i < width else _ZERO
        for slot in range(starts[tile], starts[tile + 1]):
            place = slot - starts[tile]
            if place % CHECK_EVERY == CHECK_EVERY - 1:
                alive = _ZERO
                for row in range(TILE_HEIGHT):
                    for i in range(TILE_WIDTH):
                        alive = max(alive, s[_ALIVE, row, i])
                if alive == _ZERO:
                    break
            n = members[slot]
            a, b, c = splats[n, SPLAT_A], splats[n, SPLAT_B], splats[n, SPLAT_C]
            opacity, z = splats[n, SPLAT_OPACITY], splats[n, SPLAT_DEPTH]
            red, green, blue = splats[n, SPLAT_RED], splats[n, SPLAT_GREEN], splats[n, SPLAT_BLUE]
            x = splats[n, SPLAT_X] - np.float32(left) - _HALF
            y = splats[n, SPLAT_Y] - np.float32(top) - _HALF
            radius = splats[n, SPLAT_RADIUS_Y]
            first = int(np.ceil(max(y - radius - np.float32(0.01), _ZERO)))
            last = int(np.floor(min(y + radius + np.float32(0.01), np.float32(TILE_HEIGHT - 1)))) + 1
            order = np.float32(place + 1)
            for row in range(first, last):
                dy = y - np.float32(row)
                half_c, b_dy = _HALF * c * dy * dy, b * dy
                for i in range(TILE_WIDTH):
                    dx = x - np.float32(i)
                    sigma = (_HALF * a * dx + b_dy) * dx + half_c
                    alpha = opacity * _exp_minus(sigma)
                    alpha = alpha if alpha < alpha_max else alpha_max
                    alpha = alpha * s[_ALIVE, row, i]
                    alpha = alpha if alpha >= MIN_ALPHA else _ZERO
                    alpha = alpha if sigma >= _ZERO else _ZERO
                    before = s[_T, row, i]
                    after = before * (_ONE - alpha)
                    go = after > MIN_TRANSMITTANCE
                    weight = alpha * before if go else _ZERO
                    s[_T, row, i] = after if go else before
                    s[_ALIVE, row, i] = s[_ALIVE, row, i] if go else _ZERO
                    s[_LAST, row, i] = order if weight > _ZERO else s[_LAST, row, i]
                    s[_RED, row, i] += weight * red
                    s[_GREEN, row, i] += weight * green
                    s[_BLUE, row, i] += weight * blue
                    s[_DEPTH, row, i] += weight * z
        for row in range(min(TILE_HEIGHT, height - top)):
            for i in range(min(TILE_WIDTH, width - left)):
                rest = s[_T, row, i]
                planes[0, top + row, left + i] = s[_RED, row, i] + rest * background[0]
                planes[1, top + row, left + i] = s[_GREEN, row, i] + rest * background[1]
                planes[2, top + row, left + i] = s[_BLUE, row, i] + rest * background[2]
                planes[3, top + row, left + i] = s[_DEPTH, row, i]
                planes[4, top + row, left + i] = rest
                planes[5, top + row, left + i] = s[_LAST, row, i]


# Planes of the backward scratch: state and gradients of the pixels, then what the current splat gets from each pixel.
# One array for all of it: with two, LLVM cannot rule out that they overlap, and gives up on vectors.
_BT, _BREST, _BLAST, _BRED, _BGREEN, _BBLUE, _BDEPTH, _BALPHA = 0, 1, 2, 3, 4, 5, 6, 7
_SLOPE, _SLOPE_Y, _SLOPE_YY, _BY_RED, _BY_GREEN, _BY_BLUE, _BY_DEPTH = 8, 9, 10, 11, 12, 13, 14


@njit(parallel=True, **_OPTIONS)
def rasterise_backward(splats, starts, members, background, alpha_max, planes, gradient, rows):
    """Gradient of each (tile, splat) pair, back to front.

    Args:
        planes: as ``rasterise`` left them.
        gradient: float32 [5, H, W] of the loss by red, green, blue, accumulated depth and alpha.
        rows: float32 [P, 10], output, by splat columns.
    """
    height, width = planes.shape[1], planes.shape[2]
    tiles_x = (width + TILE_WIDTH - 1) // TILE_WIDTH
    for tile in prange(starts.shape[0] - 1):
        left, top = (tile % tiles_x) * TILE_WIDTH, (tile // tiles_x) * TILE_HEIGHT
        s = np.zeros((15, TILE_HEIGHT, TILE_WIDTH), np.float32)
        deepest = 0
        for row in range(min(TILE_HEIGHT, height - top)):
            for i in range(min(TILE_WIDTH, width - left)):
                py, px = top + row, left + i
                rest = planes[4, py, px]
                s[_BT, row, i] = rest
                s[_BLAST, row, i] = planes[5, py, px]
                deepest = max(deepest, int(planes[5, py, px]))
                s[_BREST, row, i] = rest * (
                    background[0] * gradient[0, py, px]
                    + background[1] * gradient[1, py, px]
                    + background[2] * gradient[2, py, px]
                )
                s[_BRED, row, i] = gradient[0, py, px]
                s[_BGREEN, row, i] = gradient[1, py, px]
                s[_BBLUE, row, i] = gradient[2, py, px]
                s[_BDEPTH, row, i] = gradient[3, py, px]
                s[_BALPHA, row, i] = gradient[4, py, px]
        for slot in range(starts[tile] + deepest, starts[tile + 1]):
            for column in range(GRADIENT_COLUMNS):
                rows[slot, column] = _ZERO
        for place in range(deepest - 1, -1, -1):
            slot = starts[tile] + place
            n = members[slot]
            a, b, c = splats[n, SPLAT_A], splats[n, SPLAT_B], splats[n, SPLAT_C]
            opacity, z = splats[n, SPLAT_OPACITY], splats[n, SPLAT_DEPTH]
            red, green, blue = splats[n, SPLAT_RED], splats[n, SPLAT_GREEN], splats[n, SPLAT_BLUE]
            x = splats[n, SPLAT_X] - np.float32(left) - _HALF
            y = splats[n, SPLAT_Y] - np.float32(top) - _HALF
            radius = splats[n, SPLAT_RADIUS_Y]
            first = int(np.ceil(max(y - radius - np.float32(0.01), _ZERO)))
            last = int(np.floor(min(y + radius + np.float32(0.01), np.float32(TILE_HEIGHT - 1)))) + 1
            order = np.float32(place + 1)
            if last <= first:
                for column in range(GRADIENT_COLUMNS):
                    rows[slot, column] = _ZERO
                continue
            for row in range(first, last):
                dy = y - np.float32(row)
                half_c, b_dy = _HALF * c * dy * dy, b * dy
                for i in range(TILE_WIDTH):
                    dx = x - np.float32(i)
                    sigma = (_HALF * a * dx + b_dy) * dx + half_c
                    raw = opacity * _exp_minus(sigma)
                    alpha = raw if raw < alpha_max else alpha_max
                    alpha = alpha if alpha >= MIN_ALPHA else _ZERO
                    alpha = alpha if sigma >= _ZERO else _ZERO
                    alpha = alpha if s[_BLAST, row, i] >= order else _ZERO
                    inverse = _ONE / (_ONE - alpha)
                    before = s[_BT, row, i] * inverse
                    s[_BT, row, i] = before
                    weight = alpha * before
                    gain = (
                        red * s[_BRED, row, i]
                        + green * s[_BGREEN, row, i]
                        + blue * s[_BBLUE, row, i]
                        + z * s[_BDEPTH, row, i]
                        + s[_BALPHA, row, i]
                    )
                    slope = alpha * (before * gain - s[_BREST, row, i] * inverse)  # by log alpha
                    slope = slope if raw < alpha_max else _ZERO
                    s[_BREST, row, i] += weight * gain
                    s[_SLOPE, row, i] = slope
                    s[_SLOPE_Y, row, i] = slope * dy
                    s[_SLOPE_YY, row, i] = slope * dy * dy
                    s[_BY_RED, row, i] = weight * s[_BRED, row, i]
                    s[_BY_GREEN, row, i] = weight * s[_BGREEN, row, i]
                    s[_BY_BLUE, row, i] = weight * s[_BBLUE, row, i]
                    s[_BY_DEPTH, row, i] = weight * s[_BDEPTH, row, i]
            m0, mx, my, mxx, mxy, myy = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
            gr, gg, gb, gz = _ZERO, _ZERO, _ZERO, _ZERO
            for row in range(first + 1, last):  # first by column, then along the row
                for k in range(_SLOPE, _BY_DEPTH + 1):
                    for i in range(TILE_WIDTH):
                        s[k, first, i] += s[k, row, i]
            for i in range(TILE_WIDTH):
                dx = x - np.float32(i)
                m0 += s[_SLOPE, first, i]
                mx += s[_SLOPE, first, i] * dx
                mxx += s[_SLOPE, first, i] * dx * dx
                my += s[_SLOPE_Y, first, i]
                mxy += s[_SLOPE_Y, first, i] * dx
                myy += s[_SLOPE_YY, first, i]
                gr += s[_BY_RED, first, i]
                gg += s[_BY_GREEN, first, i]
                gb += s[_BY_BLUE, first, i]
                gz += s[_BY_DEPTH, first, i]
            rows[slot, SPLAT_X] = -(a * mx + b * my)
            rows[slot, SPLAT_Y] = -(b * mx + c * my)
            rows[slot, SPLAT_A], rows[slot, SPLAT_B] = -_HALF * mxx, -mxy
            rows[slot, SPLAT_C], rows[slot, SPLAT_OPACITY] = -_HALF * myy, m0 / opacity
            rows[slot, SPLAT_RED], rows[slot, SPLAT_GREEN] = gr, gg
            rows[slot, SPLAT_BLUE], rows[slot, SPLAT_DEPTH] = gb, gz
