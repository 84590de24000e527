"""Ray casting of textured primitives, compiled with numba.

Numba notices only changes of a cached function's own file: after an edit of ``texture_kernels.py``, touch this one.
A primitive is a unit shape in its own frame: ``inverse`` maps world to unit coordinates (rotation, then division by
``half``), which leaves the ray parameter t untouched. Camera rays have z = 1 in camera axes, so t is the depth along
the optical axis.
World axes: x right, y down (so up is -y), z forward, as in a camera at rest.
"""

from __future__ import annotations

import math

import numpy as np

from reconx_pl.data.procedural import layout as k
from reconx_pl.data.procedural.texture_kernels import albedo, clamp, compiled, fractal

_FAR = 1e30
_TILE = 8  # pixels


@compiled
def _hit(kind, ox, oy, oz, dx, dy, dz, near):
    """Smallest t > near where the ray o + t d, in unit coordinates, meets the unit shape from its visible side."""
    if kind in (k.BOX, k.SHELL):
        ix = 1.0 / dx if abs(dx) > 1e-12 else 1e12
        iy = 1.0 / dy if abs(dy) > 1e-12 else 1e12
        iz = 1.0 / dz if abs(dz) > 1e-12 else 1e12
        ax, bx = (-1 - ox) * ix, (1 - ox) * ix
        ay, by = (-1 - oy) * iy, (1 - oy) * iy
        az, bz = (-1 - oz) * iz, (1 - oz) * iz
        enter = max(max(min(ax, bx), min(ay, by)), min(az, bz))
        leave = min(min(max(ax, bx), max(ay, by)), max(az, bz))
        if kind == k.SHELL:
            return leave if leave > near else _FAR
        return enter if enter <= leave and enter > near else _FAR
    if kind == k.GROUND:
        if dy <= 1e-12:
            return _FAR
        t = -oy / dy
        x, z = ox + t * dx, oz + t * dz
        return t if t > near and x * x + z * z <= 1 else _FAR
    if kind == k.ELLIPSOID:
        a, b, c = dx * dx + dy * dy + dz * dz, ox * dx + oy * dy + oz * dz, ox * ox + oy * oy + oz * oz - 1
        root = b * b - a * c
        if root <= 0:
            return _FAR
        t = (-b - math.sqrt(root)) / a
        return t if t > near else _FAR
    best = _FAR
    if kind == k.CYLINDER:
        a, b, c = dx * dx + dz * dz, ox * dx + oz * dz, ox * ox + oz * oz - 1
    else:
        h, s = 0.5 * (oy + 1), 0.5 * dy
        a, b, c = dx * dx + dz * dz - s * s, ox * dx + oz * dz - h * s, ox * ox + oz * oz - h * h
    root = b * b - a * c
    if root > 0 and abs(a) > 1e-12:
        root = math.sqrt(root)
        for sign in (-1.0, 1.0):
            t = (-b + sign * root) / a
            if near < t < best and abs(oy + t * dy) <= 1:
                best = t
    if abs(dy) > 1e-12:
        for cap in (-1.0, 1.0):
            if kind == k.CONE and cap < 0:
                continue
            t = (cap - oy) / dy
            x, z = ox + t * dx, oz + t * dz
            if near < t < best and x * x + z * z <= 1:
                best = t
    return best


@compiled
def _surface(kind, x, y, z, hx, hy, hz, out):
    """At unit coordinates on a shape: out = unit normal direction [0:3], u, v (metres), hu, hv, face index [7]."""
    out[7] = 0.0
    if kind in (k.BOX, k.SHELL):
        ax, ay, az = abs(x), abs(y), abs(z)
        out[0], out[1], out[2] = 0.0, 0.0, 0.0
        sign = -1.0 if kind == k.SHELL else 1.0
        if ax >= ay and ax >= az:
            out[0] = sign if x > 0 else -sign
            out[3], out[4], out[5], out[6], out[7] = z * hz, y * hy, hz, hy, 1.0 if x > 0 else 0.0
        elif ay >= az:
            out[1] = sign if y > 0 else -sign
            out[3], out[4], out[5], out[6], out[7] = x * hx, z * hz, hx, hz, 3.0 if y > 0 else 2.0
        else:
            out[2] = sign if z > 0 else -sign
            out[3], out[4], out[5], out[6], out[7] = x * hx, y * hy, hx, hy, 5.0 if z > 0 else 4.0
        return
    radial = math.sqrt(x * x + z * z)
    out[5], out[6] = hx, hy
    if kind == k.GROUND or ((kind == k.CYLINDER or (kind == k.CONE and y > 0.5)) and abs(y) > radial):
        out[0], out[1], out[2] = 0.0, -1.0 if kind == k.GROUND or y < 0 else 1.0, 0.0
        out[3], out[4] = x * hx, z * hz
        return
    out[3] = math.atan2(x, -z) * 0.5 * (hx + hz)  # the seam is on the far side, z > 0
    out[0], out[2] = x, z
    if kind == k.ELLIPSOID:
        out[1] = y
        out[4] = math.asin(clamp(y, -1.0, 1.0)) * hy
    else:
        out[1] = 0.0 if kind == k.CYLINDER else -0.25 * (y + 1)
        out[4] = y * hy


@compiled
def _shadowed(x, y, z, lx, ly, lz, reach, me, kinds, inverse, centers, radii, casts):
    """Whether something stands between the point and the light in the unit direction l, nearer than ``reach``."""
    for p in range(kinds.shape[0]):
        if not casts[p] or p == me:  # convex shapes do not shade their own lit side
            continue
        cx, cy, cz = centers[p, 0] - x, centers[p, 1] - y, centers[p, 2] - z
        along = cx * lx + cy * ly + cz * lz
        if along < -radii[p] or cx * cx + cy * cy + cz * cz - along * along > radii[p] * radii[p]:
            continue
        t = _hit(
            kinds[p],
            -(inverse[p, 0, 0] * cx + inverse[p, 0, 1] * cy + inverse[p, 0, 2] * cz),
            -(inverse[p, 1, 0] * cx + inverse[p, 1, 1] * cy + inverse[p, 1, 2] * cz),
            -(inverse[p, 2, 0] * cx + inverse[p, 2, 1] * cy + inverse[p, 2, 2] * cz),
            inverse[p, 0, 0] * lx + inverse[p, 0, 1] * ly + inverse[p, 0, 2] * lz,
            inverse[p, 1, 0] * lx + inverse[p, 1, 1] * ly + inverse[p, 1, 2] * lz,
            inverse[p, 2, 0] * lx + inverse[p, 2, 1] * ly + inverse[p, 2, 2] * lz,
            1e-3,
        )
        if t < reach:
            return True
    return False


@compiled
def _bounds(origin, to_world, lens, centers, radii, height, width, rectangles):
    """Conservative pixel rectangle (x0, y0, x1, y1) of every primitive's bounding sphere; radius 0 = unbounded."""
    for p in range(centers.shape[0]):
        r = radii[p]
        rectangles[p, 0], rectangles[p, 1], rectangles[p, 2], rectangles[p, 3] = 0, 0, width, height
        if r <= 0:
            continue
        a, b, c = centers[p, 0] - origin[0], centers[p, 1] - origin[1], centers[p, 2] - origin[2]
        z = to_world[0, 2] * a + to_world[1, 2] * b + to_world[2, 2] * c
        if z < -r:
            rectangles[p, 2] = -1  # behind the camera
            continue
        if z < r + 0.05:
            continue
        x = to_world[0, 0] * a + to_world[1, 0] * b + to_world[2, 0] * c
        y = to_world[0, 1] * a + to_world[1, 1] * b + to_world[2, 1] * c
        rectangles[p, 0] = math.floor(lens[0] * min((x - r) / (z - r), (x - r) / (z + r)) + lens[2])
        rectangles[p, 1] = math.floor(lens[1] * min((y - r) / (z - r), (y - r) / (z + r)) + lens[3])
        rectangles[p, 2] = math.ceil(lens[0] * max((x + r) / (z - r), (x + r) / (z + r)) + lens[2])
        rectangles[p, 3] = math.ceil(lens[1] * max((y + r) / (z - r), (y + r) / (z + r)) + lens[3])


@compiled
def render_view(
    origin,  # [3] camera centre
    to_world,  # [3, 3] camera axes to world axes
    lens,  # [4] fx, fy, cx, cy, pixels
    scene,  # layout.Tables
    samples,  # 0 = depth only, else samples along each side of a pixel
    image,  # [H, W, 3] uint8, written
    depth,  # [H, W] float32, written, 0 = none
    cosine,  # [H, W] float32, written: between the ray and the surface normal
):
    height, width = depth.shape
    kinds, inverse, centers, halves, materials_of, radii, casts, table, light, sky = scene
    count = kinds.shape[0]
    rectangles = np.empty((count, 4), dtype=np.int64)
    _bounds(origin, to_world, lens, centers, radii, height, width, rectangles)
    local = np.empty((count, 3))  # camera centre in unit coordinates
    for p in range(count):
        ox, oy, oz = origin[0] - centers[p, 0], origin[1] - centers[p, 1], origin[2] - centers[p, 2]
        for n in range(3):
            local[p, n] = inverse[p, n, 0] * ox + inverse[p, n, 1] * oy + inverse[p, n, 2] * oz
    candidates = np.empty(count, dtype=np.int64)
    face = np.empty(8)
    color, total = np.empty(3), np.empty(3)
    for tile_y in range(0, height, _TILE):
        for tile_x in range(0, width, _TILE):
            inside = 0
            for p in range(count):
                across = rectangles[p, 2] >= tile_x and rectangles[p, 0] <= tile_x + _TILE
                if across and rectangles[p, 3] >= tile_y and rectangles[p, 1] <= tile_y + _TILE:
                    candidates[inside] = p
                    inside += 1
            for py in range(tile_y, min(tile_y + _TILE, height)):
                for px in range(tile_x, min(tile_x + _TILE, width)):
                    total[:] = 0.0
                    for sample in range(samples * samples + 1):
                        # the last sample is the ray of the pixel's centre: it alone gives the depth
                        center = sample == samples * samples
                        sx = 0.5 if center else (sample % samples + 0.5) / samples
                        sy = 0.5 if center else (sample // samples + 0.5) / samples
                        rx, ry = (px + sx - lens[2]) / lens[0], (py + sy - lens[3]) / lens[1]
                        dx = to_world[0, 0] * rx + to_world[0, 1] * ry + to_world[0, 2]
                        dy = to_world[1, 0] * rx + to_world[1, 1] * ry + to_world[1, 2]
                        dz = to_world[2, 0] * rx + to_world[2, 1] * ry + to_world[2, 2]
                        t, me = _FAR, -1
                        for n in range(inside):
                            p = candidates[n]
                            ex = inverse[p, 0, 0] * dx + inverse[p, 0, 1] * dy + inverse[p, 0, 2] * dz
                            ey = inverse[p, 1, 0] * dx + inverse[p, 1, 1] * dy + inverse[p, 1, 2] * dz
                            ez = inverse[p, 2, 0] * dx + inverse[p, 2, 1] * dy + inverse[p, 2, 2] * dz
                            found = _hit(kinds[p], local[p, 0], local[p, 1], local[p, 2], ex, ey, ez, 1e-3)
                            if found < t:
                                t, me = found, p
                        length = math.sqrt(dx * dx + dy * dy + dz * dz)
                        if me < 0:
                            if center:
                                depth[py, px] = 0.0
                                cosine[py, px] = 0.0
                            else:
                                up = -dy / length
                                blend = clamp(1 - up * 1.8, 0.0, 1.0)
                                scale = 1.0 / (abs(up) + 0.15) / length
                                cloud = fractal(dx * scale, 0.0, dz * scale, int(sky[9]), 1.4, 0.02, 4)
                                cloud = clamp(0.1 + 2.2 * cloud, 0.0, 1.0) * 0.9
                                for c in range(3):
                                    clear = sky[c] * (1 - blend) + sky[3 + c] * blend
                                    total[c] += clear * (1 - cloud) + sky[6 + c] * cloud
                            continue
                        ux = local[me, 0] + t * (
                            inverse[me, 0, 0] * dx + inverse[me, 0, 1] * dy + inverse[me, 0, 2] * dz
                        )
                        uy = local[me, 1] + t * (
                            inverse[me, 1, 0] * dx + inverse[me, 1, 1] * dy + inverse[me, 1, 2] * dz
                        )
                        uz = local[me, 2] + t * (
                            inverse[me, 2, 0] * dx + inverse[me, 2, 1] * dy + inverse[me, 2, 2] * dz
                        )
                        hx, hy, hz = halves[me, 0], halves[me, 1], halves[me, 2]
                        _surface(kinds[me], ux, uy, uz, hx, hy, hz, face)
                        nx = inverse[me, 0, 0] * face[0] + inverse[me, 1, 0] * face[1] + inverse[me, 2, 0] * face[2]
                        ny = inverse[me, 0, 1] * face[0] + inverse[me, 1, 1] * face[1] + inverse[me, 2, 1] * face[2]
                        nz = inverse[me, 0, 2] * face[0] + inverse[me, 1, 2] * face[1] + inverse[me, 2, 2] * face[2]
                        norm = 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz)
                        nx, ny, nz = nx * norm, ny * norm, nz * norm
                        facing = -(nx * dx + ny * dy + nz * dz) / length
                        if center:
                            depth[py, px] = t
                            cosine[py, px] = clamp(facing, 0.0, 1.0)
                            continue
                        # between the short and the long side of the pixel's ellipse on the surface
                        footprint = 0.75 * t * length / (lens[0] * max(facing, 0.1) ** 0.6)
                        row = materials_of[me]
                        if kinds[me] == k.SHELL:
                            row += int(face[7])
                        albedo(
                            table, row, face[3], face[4], ux * hx, uy * hy, uz * hz, face[5], face[6], footprint, color
                        )
                        x, y, z = origin[0] + t * dx, origin[1] + t * dy, origin[2] + t * dz
                        lx, ly, lz, reach, strength = light[0], light[1], light[2], _FAR, 1.0
                        if light[3] > 0:
                            lx, ly, lz = lx - x, ly - y, lz - z
                            reach = math.sqrt(lx * lx + ly * ly + lz * lz)
                            lx, ly, lz = lx / reach, ly / reach, lz / reach
                            strength = 1.0 / (1.0 + (reach / light[10]) ** 2)
                        lit = max(nx * lx + ny * ly + nz * lz, 0.0) * strength
                        if lit > 0 and _shadowed(
                            x + 1e-3 * nx, y + 1e-3 * ny, z + 1e-3 * nz,
                            lx, ly, lz, reach, me, kinds, inverse, centers, radii, casts,
                        ):  # fmt: skip
                            lit = 0.0
                        # more fill from above, and a little more on one side, so that unlit edges show
                        fill = 0.8 - 0.2 * ny + light[11] * nx + light[12] * nz
                        shine = 0.0
                        if table[row, k.GLOSS] > 0 and lit > 0:  # Blinn-Phong
                            bx, by, bz = lx - dx / length, ly - dy / length, lz - dz / length
                            along = (nx * bx + ny * by + nz * bz) / math.sqrt(bx * bx + by * by + bz * bz)
                            shine = table[row, k.GLOSS] * max(along, 0.0) ** 40 * strength
                        for c in range(3):
                            total[c] += color[c] * (light[4 + c] * lit + light[7 + c] * fill) + light[4 + c] * shine
                    if samples > 0:
                        for c in range(3):
                            value = total[c] * 255.0 / (samples * samples)
                            image[py, px, c] = np.uint8(clamp(value + 0.5, 0.0, 255.0))
