"""Numba kernels of the renderers: one view's mesh into one image, one frame's points into one image.

They decide hits, depth and order as the torch paths do, number by number: geometry in float64, depth compared in
float32, equal depths by index.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
_SKY = 2  # as in ``limits``; numba's cache does not see a change of another file
_BEHIND_ALL = np.float32(3e38)  # a sky's depth in the buffer: less than that of a pixel where nothing is


@njit(**_OPTIONS)
def _place(points, camera, places):
    """Project points [N, 3] by a matrix [3, 4] of intrinsics times pose: x, y in pixels, z into places [N, 3]."""
    for n in range(points.shape[0]):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        depth = camera[2, 0] * x + camera[2, 1] * y + camera[2, 2] * z + camera[2, 3]
        places[n, 0] = (camera[0, 0] * x + camera[0, 1] * y + camera[0, 2] * z + camera[0, 3]) / depth
        places[n, 1] = (camera[1, 0] * x + camera[1, 1] * y + camera[1, 2] * z + camera[1, 3]) / depth
        places[n, 2] = depth


@njit(**_OPTIONS)
def draw_mesh(points, camera, triangles, image, near, edge, min_area, color, depth):
    """Draw the mesh of one view with a z-buffer.

    Args:
        points: float64 [H, W, 3], the view's pixel centres in the world.
        camera: float64 [3, 4], intrinsics times pose of the target.
        triangles: uint8 [H - 1, W - 1, 2], 0 where a triangle is cut (``limits``).
        image: float32 [H, W, 3] of the view.
        near: triangles with a corner at or before this depth are left out.
        edge, min_area: ``limits.EDGE`` and ``limits.MIN_AREA``.
        color: float32 [h, w, 3], written where the mesh is.
        depth: float32 [h, w], all zero; becomes the depth of the mesh, infinite for sky.
    """
    height, width = depth.shape
    corners = np.empty(points.shape)
    _place(points.reshape(-1, 3), camera, corners.reshape(-1, 3))
    buffer = np.full((height, width), np.float32(np.inf))
    for y in range(triangles.shape[0]):
        for x in range(triangles.shape[1]):
            for k in range(2):
                kind = triangles[y, x, k]
                if kind == 0:
                    continue
                # (y, x), (y, x + 1), (y + 1, x) and the other half, both clockwise as the image's y points down
                y0, x0 = y + k, x + k
                y1, x1 = y + k, x + 1 - k
                y2, x2 = y + 1 - k, x + k
                ax, ay, az = corners[y0, x0, 0], corners[y0, x0, 1], corners[y0, x0, 2]
                bx, by, bz = corners[y1, x1, 0], corners[y1, x1, 1], corners[y1, x1, 2]
                cx, cy, cz = corners[y2, x2, 0], corners[y2, x2, 1], corners[y2, x2, 2]
                if not (az > near and bz > near and cz > near):
                    continue
                area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
                if not area > min_area:  # seen from behind, or edge on
                    continue
                # clipped before the conversion: a corner just before the camera may fall anywhere
                left = int(np.ceil(max(min(ax, min(bx, cx)) - 0.5 - edge, 0.0)))
                right = int(np.floor(min(max(ax, max(bx, cx)) - 0.5 + edge, width - 1.0)))
                top = int(np.ceil(max(min(ay, min(by, cy)) - 0.5 - edge, 0.0)))
                bottom = int(np.floor(min(max(ay, max(by, cy)) - 0.5 + edge, height - 1.0)))
                for row in range(top, bottom + 1):
                    for column in range(left, right + 1):
                        px, py = column + 0.5, row + 0.5
                        w0 = ((bx - px) * (cy - py) - (by - py) * (cx - px)) / area
                        w1 = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) / area
                        w2 = 1.0 - w0 - w1
                        if w0 < -edge or w1 < -edge or w2 < -edge:
                            continue
                        w0, w1, w2 = w0 / az, w1 / bz, w2 / cz
                        z = 1.0 / (w0 + w1 + w2)
                        seen = _BEHIND_ALL if kind == _SKY else np.float32(z)
                        if not seen < buffer[row, column]:
                            continue
                        buffer[row, column] = seen
                        depth[row, column] = np.inf if kind == _SKY else z
                        for channel in range(3):
                            color[row, column, channel] = z * (
                                w0 * image[y0, x0, channel] + w1 * image[y1, x1, channel] + w2 * image[y2, x2, channel]
                            )


@njit(**_OPTIONS)
def draw_points(points, camera, colors, radius, count, color, coverage, depth):
    """Composite a frame's points, at every pixel the nearest ones that hit it.

    Args:
        points: float64 [N, 3], world.
        camera: float64 [3, 4], intrinsics times pose; points at or behind it are left out.
        colors: float32 [N, 3].
        radius: of the points, pixels.
        count: of a pixel's points that are composited.
        color, coverage, depth: float32 [h, w, 3], [h, w], [h, w], all zero; become the image.
    """
    height, width = depth.shape
    held = np.zeros((height, width), np.int32)
    kept_depth = np.empty((height, width, count), np.float32)  # the nearest first
    kept_point = np.empty((height, width, count), np.int32)
    places = np.empty(points.shape)
    _place(points, camera, places)
    for n in range(points.shape[0]):
        x, y, z = places[n, 0], places[n, 1], np.float32(places[n, 2])  # what is equal in float32 is a tie
        if not (0 < z < np.inf and -radius < x < width + radius and -radius < y < height + radius):
            continue
        left, right = max(0, int(np.ceil(x - radius - 0.5))), min(width - 1, int(np.floor(x + radius - 0.5)))
        top, bottom = max(0, int(np.ceil(y - radius - 0.5))), min(height - 1, int(np.floor(y + radius - 0.5)))
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                dx, dy = x - (column + 0.5), y - (row + 0.5)
                if not dx * dx + dy * dy < radius * radius:
                    continue
                place = held[row, column]
                if place == count:
                    if not z < kept_depth[row, column, count - 1]:  # of equals the first one stays before
                        continue
                    place -= 1  # the last one goes
                else:
                    held[row, column] = place + 1
                while place > 0 and z < kept_depth[row, column, place - 1]:
                    kept_depth[row, column, place] = kept_depth[row, column, place - 1]
                    kept_point[row, column, place] = kept_point[row, column, place - 1]
                    place -= 1
                kept_depth[row, column, place] = z
                kept_point[row, column, place] = n
    for row in range(height):
        for column in range(width):
            transparency = 1.0
            for place in range(held[row, column]):
                n = kept_point[row, column, place]
                dx, dy = places[n, 0] - (column + 0.5), places[n, 1] - (row + 0.5)
                weight = 1.0 - (dx * dx + dy * dy) / (radius * radius)
                for channel in range(3):
                    color[row, column, channel] += np.float32(weight * transparency * colors[n, channel])
                transparency *= 1.0 - weight
            coverage[row, column] = 1.0 - transparency
            if held[row, column] > 0:
                depth[row, column] = kept_depth[row, column, 0]
