"""Colours of surfaces, compiled with numba: noise, patterns, materials (``layout.py`` has their table)."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from reconx_pl.data.procedural import layout as k

compiled = njit(cache=True, fastmath=True, error_model="numpy")
_PERMUTATION = np.tile(np.random.default_rng(256).permutation(256), 3)  # int64 [768], so that sums need no masks


@compiled
def hashed(i, j, m, seed):
    """A number in [0, 1] for a lattice point: Perlin's permutation (1985), one coordinate after the other."""
    return _PERMUTATION[_PERMUTATION[_PERMUTATION[(i + seed) & 255] + (j & 255)] + (m & 255)] / 255.0


@compiled
def noise(x, y, z, seed):
    """Value noise in [0, 1], one lattice cell a unit, quintic between the corners."""
    fx, fy, fz = math.floor(x), math.floor(y), math.floor(z)
    i, j, m = int(fx) + seed, int(fy) & 255, int(fz) & 255
    x, y, z = x - fx, y - fy, z - fz
    x = x * x * x * (x * (x * 6 - 15) + 10)
    y = y * y * y * (y * (y * 6 - 15) + 10)
    z = z * z * z * (z * (z * 6 - 15) + 10)
    p = _PERMUTATION
    low, high = p[i & 255] + j, p[(i + 1) & 255] + j
    a, b, c, d = p[low] + m, p[high] + m, p[low + 1] + m, p[high + 1] + m
    front = (p[a] * (1 - x) + p[b] * x) * (1 - y) + (p[c] * (1 - x) + p[d] * x) * y
    back = (p[a + 1] * (1 - x) + p[b + 1] * x) * (1 - y) + (p[c + 1] * (1 - x) + p[d + 1] * x) * y
    return (front * (1 - z) + back * z) / 255.0


@compiled
def clamp(x, low, high):
    return min(max(x, low), high)


@compiled
def fractal(x, y, z, seed, wavelength, footprint, octaves):
    """Octaves of noise in about [-0.5, 0.5]; those too fine for the footprint (metres) fade out, so nothing aliases."""
    total, amplitude = 0.0, 1.0
    for octave in range(octaves):
        fade = clamp(wavelength / footprint * 0.5 - 1.0, 0.0, 1.0)
        if fade <= 0:
            break
        total += amplitude * fade * (noise(x / wavelength, y / wavelength, z / wavelength, seed + octave) - 0.5)
        amplitude *= 0.65
        wavelength *= 0.45
    return total


@compiled
def square(x, period, footprint):
    """Square wave in [-1, 1], filtered to the footprint."""
    f = x / period
    f = f - math.floor(f)
    triangle = abs(f * 2 - 1) * 2 - 1
    return clamp(triangle * period / (2 * footprint), -1.0, 1.0)


@compiled
def leaves(u, v, period, footprint, seed):
    """Weights of the colours B and C: shapes of four sizes that cover each other, fine ones above coarse ones.

    Such pictures ("dead leaves") have the edges and the spectrum of photographs (Lee, Mumford and Huang, 2001).
    """
    first, second = 0.5, 0.3
    for octave in range(4):
        pitch = period * 0.45**octave
        fade = clamp(pitch / footprint * 0.5 - 1.0, 0.0, 1.0)
        if octave > 0:  # what is too fine to see still takes its share, at its mean colour
            first += (1 - fade) * 0.5 * (0.5 - first)
            second += (1 - fade) * 0.5 * (0.45 - second)
        if fade <= 0:
            continue
        i, j, top = math.floor(u / pitch), math.floor(v / pitch), -1.0
        mask, b, c = 0.0, 0.0, 0.0
        for di in range(-1, 2):
            for dj in range(-1, 2):
                a, d, s = int(i) + di, int(j) + dj, seed + 17 * octave
                height = hashed(a, d, 1, s)
                if height <= top or (octave > 0 and height < 0.45):  # the coarsest leave no gaps where they can
                    continue
                x = u - (a + hashed(a, d, 2, s)) * pitch
                y = v - (d + hashed(a, d, 3, s)) * pitch
                size = pitch * (0.25 + 0.6 * hashed(a, d, 4, s))
                if hashed(a, d, 5, s) < 0.5:
                    inside = size - math.sqrt(x * x + y * y)
                else:
                    angle = 3.1416 * hashed(a, d, 6, s)
                    along, across = math.cos(angle), math.sin(angle)
                    inside = min(size - abs(x * along + y * across), 0.4 * size - abs(y * along - x * across))
                cover = clamp(inside / footprint + 0.5, 0.0, 1.0)
                if cover > 0:
                    top, mask, b, c = height, cover, hashed(a, d, 7, s), hashed(a, d, 8, s)
        first += fade * mask * (b - first)
        second += fade * mask * (0.9 * c - second)
    return first, second


@compiled
def pattern(table, row, u, v, hu, hv, footprint):
    """Weights of the colours B and C in [0, 1] at (u, v) metres on a face of half size (hu, hv)."""
    kind, seed = int(table[row, k.KIND]), int(table[row, k.SEED])
    pu, pv = table[row, k.PERIOD_U], table[row, k.PERIOD_V]
    if kind == k.CHECKER:
        return 0.5 + 0.5 * square(u, pu, footprint) * square(v, pv, footprint), 0.0
    if kind == k.STRIPES:
        x = u * table[row, k.COS] + v * table[row, k.SIN]
        return 0.5 + 0.35 * square(x, pu, footprint) + 0.15 * square(x + 0.1 * pu, pu * 0.31, footprint), 0.0
    if kind in (k.BRICKS, k.PLANKS):
        course = math.floor(v / pv)
        shift = 0.5 * (int(course) & 1) if kind == k.BRICKS else hashed(int(course), 3, 7, seed)
        column = math.floor(u / pu + shift)
        du = u / pu + shift - column
        dv = v / pv - course
        joint = 0.07 * min(pu, pv) if kind == k.BRICKS else 0.03 * min(pu, pv)
        gap = min(min(du, 1 - du) * pu, min(dv, 1 - dv) * pv)
        mask = clamp((joint - gap) / footprint + 0.5, 0.0, 1.0)
        fade = clamp(2 * footprint / pv - 0.5, 0.0, 1.0)
        mask = mask * (1 - fade) + 0.2 * fade
        return mask, (1 - fade) * 0.8 * hashed(int(column), int(course), 1, seed) + 0.4 * fade
    if kind == k.DOTS:
        i, j = math.floor(u / pu), math.floor(v / pu)
        radius = pu * (0.18 + 0.22 * hashed(int(i), int(j), 2, seed))
        room = 0.5 * pu - radius
        x = (i + 0.5) * pu + room * (2 * hashed(int(i), int(j), 3, seed) - 1)
        y = (j + 0.5) * pu + room * (2 * hashed(int(i), int(j), 4, seed) - 1)
        mask = clamp((radius - math.sqrt((u - x) ** 2 + (v - y) ** 2)) / footprint + 0.5, 0.0, 1.0)
        fade = clamp(2 * footprint / pu - 0.5, 0.0, 1.0)
        mask = mask * (1 - fade) + 0.25 * fade
        return mask, mask * 0.9 * hashed(int(i), int(j), 5, seed) * (1 - fade)
    if kind == k.WINDOWS:
        du = abs(u / pu - math.floor(u / pu) - 0.5) * pu
        dv = abs(v / pv - math.floor(v / pv) - 0.5) * pv
        edge = min(0.28 * pu - du, 0.3 * pv - dv)
        frame = clamp((edge + 0.06 * pu) / footprint + 0.5, 0.0, 1.0)
        glass = clamp(edge / footprint + 0.5, 0.0, 1.0) * clamp(max(du, dv) / (0.02 * pu + footprint), 0.0, 1.0)
        return glass, frame
    if kind == k.LEAVES:
        return leaves(u, v, pu, footprint, seed)
    if kind == k.PICTURE:
        x, y = u / hu, v / hv
        border = clamp((max(abs(x) * hu - hu, abs(y) * hv - hv) + 0.05) / footprint + 0.5, 0.0, 1.0)
        fine = footprint / min(hu, hv)
        hills = 0.9 * fractal(x, 0.0, 0.5, seed, 0.7, fine, 4)
        below = clamp((y - 0.1 - hills) / fine * 0.5 + 0.5, 0.0, 1.0)
        sx, sy = 1.2 * hashed(1, 2, 3, seed) - 0.6, -0.8 * hashed(3, 2, 1, seed)
        disc = clamp((0.25 - math.sqrt((x - sx) ** 2 + (y - sy) ** 2)) / fine * 0.5 + 0.5, 0.0, 1.0)
        weight = (0.15 + 0.2 * (y + 1)) * (1 - below) + below * (0.8 + 0.4 * fractal(x, y, 0.0, seed + 9, 0.4, fine, 3))
        return clamp(weight, 0.0, 1.0) * (1 - border), max(border, disc * (1 - below) * 0.9)
    return 0.0, 0.0


@compiled
def albedo(table, row, u, v, x, y, z, hu, hv, footprint, out):
    """Colour of a material at face coordinates (u, v) and at solid coordinates (x, y, z), metres; writes out [3]."""
    seed = int(table[row, k.SEED])
    b, c = pattern(table, row, u, v, hu, hv, footprint)
    if table[row, k.KIND] == k.PLANKS:  # wood: long fibres along u
        grain = 0.6 * noise(u * 0.6, v * 9, 0.0, seed) * clamp(0.06 / footprint - 0.5, 0.0, 1.0)
        grain += fractal(u * 0.12, v, seed * 0.1, seed, table[row, k.GRAIN_LENGTH], footprint, 3) - 0.3
    else:
        grain = fractal(x, y, z, seed, table[row, k.GRAIN_LENGTH], footprint, 5)
    if table[row, k.TINT] > 0:
        tint = fractal(x, y, z, seed + 31, table[row, k.TINT_LENGTH], footprint, 2)
        c = c + (1 - c) * table[row, k.TINT] * clamp(0.5 + 1.6 * tint, 0.0, 1.0)
    gain = max(0.0, 1 + table[row, k.GRAIN] * grain)
    for channel in range(3):
        color = table[row, k.COLOR_A + channel] * (1 - b) + table[row, k.COLOR_B + channel] * b
        out[channel] = gain * (color * (1 - c) + table[row, k.COLOR_C + channel] * c)
