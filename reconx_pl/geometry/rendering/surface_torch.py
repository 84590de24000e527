"""Meshes of views drawn by plain torch, on every device: the numbers of ``numba_kernels.draw_mesh``.

Every triangle is paired with the pixels of its bounding box. The z-buffer holds depth and triangle in one integer,
depth above, so that one minimum finds the nearest triangle of a pixel and, of equals, the first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reconx_pl.geometry.rendering.limits import CUT, EDGE, MIN_AREA, SKY_TRIANGLE

_PAIRS = 2**22  # of a triangle and a pixel that are looked at together: bounds the memory
_SKY_DEPTH = 3e38  # in the buffer
_NOTHING = torch.iinfo(torch.int64).max
_LOW = 2**32 - 1  # the bits of the triangle


def draw_meshes(
    corners: Tensor, triangles: Tensor, colors: Tensor, near: float, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Draw every view's mesh into every frame.

    Args:
        corners: [F, V, H, W, 3] float64, pixel centres of the views as they fall into the frames: x, y in pixels, z.
        triangles: [V, H - 1, W - 1, 2] uint8, what stands for them in ``limits``.
        colors: [V, H, W, 3] float32.
        near: triangles with a corner at or before this depth are left out.
        height: rows of a frame.
        width: columns of a frame.

    Returns:
        color [F, V, h, w, 3] and depth [F, V, h, w], 0 in holes, infinite for sky; float32.
    """
    frames, views = corners.shape[:2]
    corners, kinds, colors = corners.flatten(2, 3).flatten(0, 1), triangles.flatten(1), colors.flatten(1, 2)
    of_triangle = _corner_numbers(triangles.shape[1], triangles.shape[2], corners.device)  # [T, 3]
    image, number = (kinds != CUT).repeat(frames, 1).nonzero(as_tuple=True)  # [L] each; image = frame * V + view
    places = corners[image[:, None], of_triangle[number]]  # [L, 3, 3]
    box, shown = _bounding_boxes(places, near, height, width)
    image, number, places, box = image[shown], number[shown], places[shown], box[shown]
    sky = kinds[image % views, number] == SKY_TRIANGLE
    buffer = torch.full((frames * views * height * width,), _NOTHING, device=corners.device)
    for part in _parts((box[:, 2] * box[:, 3]).cumsum(0)):
        pair, column, row = _pixels(box[part])
        weights = _barycentric(places[part][pair], column, row)
        inside = (weights >= -EDGE).all(-1)
        pair, column, row, weights = pair[inside], column[inside], row[inside], weights[inside]
        z = 1 / (weights / places[part][pair, :, 2]).sum(-1)
        depth = torch.where(sky[part][pair], _SKY_DEPTH, z).float()
        key = (depth.view(torch.int32).long() << 32) | number[part][pair]  # positive floats are ordered as their bits
        cell = (image[part][pair] * height + row) * width + column
        buffer.scatter_reduce_(0, cell, key, "amin")
    cell = (buffer != _NOTHING).nonzero().squeeze(1)
    image, row, column = cell // (height * width), cell // width % height, cell % width
    number = buffer[cell] & _LOW
    at = of_triangle[number]  # [P, 3]
    places = corners[image[:, None], at]
    weights = _barycentric(places, column, row) / places[..., 2]
    z = 1 / weights.sum(-1)
    view = image % views
    color = torch.zeros(len(buffer), 3, device=corners.device)
    depth = torch.zeros(len(buffer), device=corners.device)
    color[cell] = (z[:, None] * (weights[..., None] * colors[view[:, None], at]).sum(1)).float()
    depth[cell] = torch.where(kinds[view, number] == SKY_TRIANGLE, torch.inf, z).float()
    return color.view(frames, views, height, width, 3), depth.view(frames, views, height, width)


def _corner_numbers(rows: int, columns: int, device: torch.device) -> Tensor:
    """Numbers of the pixels at the corners of each triangle of rows x columns quads: [2 * rows * columns, 3]."""
    across = columns + 1
    y, x = torch.arange(rows, device=device)[:, None], torch.arange(columns, device=device)
    a = y * across + x
    b, c, d = a + 1, a + across, a + across + 1
    return torch.stack([torch.stack([a, b, c], -1), torch.stack([d, c, b], -1)], -2).view(-1, 3)


def _bounding_boxes(places: Tensor, near: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    """First column and row, number of columns and rows [L, 4] of the pixels that may lie in triangles [L, 3, 3], and
    which triangles are shown at all: [L] bool."""
    (ax, ay), (bx, by), (cx, cy) = (places[:, corner, :2].unbind(-1) for corner in range(3))
    front = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax) > MIN_AREA
    size = places.new_tensor([width, height])
    # clipped before the conversion: a corner just before the camera may fall anywhere
    first = (places[..., :2].amin(1) - 0.5 - EDGE).clamp(min=0).minimum(size).ceil().long()
    last = (places[..., :2].amax(1) - 0.5 + EDGE).clamp(min=-1).minimum(size - 1).floor().long()
    count = last - first + 1
    shown = front & (places[..., 2] > near).all(-1) & (count > 0).all(-1)
    return torch.cat([first, count], -1), shown


def _parts(pairs: Tensor) -> list[slice]:
    """Stretches of triangles with about ``_PAIRS`` pairs each, by the running sum [L] of their pairs."""
    if not len(pairs):
        return []
    limits = _PAIRS * torch.arange(1, math.ceil(int(pairs[-1]) / _PAIRS), device=pairs.device)
    ends = torch.unique(torch.searchsorted(pairs, limits, right=True)).tolist() + [len(pairs)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False) if end > start]


def _pixels(box: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All pixels of boxes [L, 4]: the number of the box, column and row, [P] each."""
    left, top, columns, rows = box.unbind(-1)
    count = columns * rows
    pair = torch.arange(len(box), device=box.device).repeat_interleave(count)
    place = torch.arange(len(pair), device=box.device) - (count.cumsum(0) - count)[pair]
    across = columns[pair]
    return pair, left[pair] + place % across, top[pair] + place // across


def _barycentric(places: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Weights [P, 3] of the corners [P, 3, 3] at the centres of pixels, in the image; they add up to 1."""
    (ax, ay), (bx, by), (cx, cy) = (places[:, corner, :2].unbind(-1) for corner in range(3))
    px, py = column + 0.5, row + 0.5
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    first = ((bx - px) * (cy - py) - (by - py) * (cx - px)) / area
    second = ((cx - px) * (ay - py) - (cy - py) * (ax - px)) / area
    return torch.stack([first, second, 1 - first - second], -1)
