"""One view of a plane sweep: which views it is compared with, between which depths, and the best plane of a pixel.

Collins (A Space-Sweep Approach to True Multi-Image Matching, CVPR 1996) sweeps a plane through space; Gallup et al.
(Real-Time Plane-Sweeping Stereo with Multiple Sweeping Directions, CVPR 2007) space planes by what they move in the
images. Costs along lines are summed as by Hirschmüller (Stereo Processing by Semiglobal Matching, PAMI 2008).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reconx_pl.geometry.cameras import in_view, pixel_rays, project
from reconx_pl.types import Cameras

_NOISE = 1.0 / 255  # standard deviation of grey below which a window shows nothing but noise
_ANGLE, _BELOW, _ABOVE = 8.0, 4.0, 14.0  # degrees: rays that meet under the first match best (ours, after Yao 2018)
_ELEMENTS = 2**24, 2**18  # of a chunk of planes, on a GPU and in the cache of a processor
_LEAST_POINTS = 8  # that a view has to see for bounds of its depth


class Winner(NamedTuple):
    """The best plane of every pixel of one view."""

    inverse: Tensor  # [H, W] inverse depth, between planes
    score: Tensor  # [H, W] NCC of the nearest plane, -1 to 1
    inside: Tensor  # [H, W] bool: neither the first nor the last plane


def neighbours(points: Tensor, cameras: Cameras, view: int, count: int) -> list[int]:
    """The views that a view is compared with, best first.

    A view counts by the points that both see, each weighed by the angle under which its two rays meet, as MVSNet does
    (Yao et al., ECCV 2018, section 4.1): small angles tell no depth, under large ones nothing looks alike.

    Args:
        points: [N, 3] of the scene.
        cameras: V views.
        view: number of the view.
        count: most views.

    Returns:
        numbers of at most ``count`` views; none of them shares no point with it.
    """
    seen = in_view(points, cameras)  # [V, N]
    rays = F.normalize(points - cameras.centers[:, None], dim=-1)  # [V, N, 3]
    angle = torch.rad2deg(torch.acos((rays * rays[view]).sum(-1).clamp(-1, 1)))  # [V, N]
    width = torch.where(angle < _ANGLE, _BELOW, _ABOVE)
    worth = (torch.exp(-0.5 * ((angle - _ANGLE) / width) ** 2) * (seen & seen[view])).sum(-1)
    worth[view] = 0
    order = worth.argsort(descending=True, stable=True).tolist()
    return [other for other in order if worth[other] > 0][:count]


def inverse_bounds(points: Tensor, camera: Cameras, quantile: float, margin: float) -> Tensor | None:
    """Smallest and largest inverse depth of what a view sees: [2], or None where it sees too few points.

    Args:
        points: [N, 3] of the scene.
        camera: one view.
        quantile: share of the points that may be wrong at either end.
        margin: factor beyond those quantiles.
    """
    seen = in_view(points, camera)[0]
    if int(seen.sum()) < _LEAST_POINTS:
        return None
    inverse = 1 / project(points[seen], camera)[1][0]
    low, high = torch.quantile(inverse, inverse.new_tensor([quantile, 1 - quantile]))
    return torch.stack([low / margin, high * margin])


def plane_inverses(bounds: Tensor, camera: Cameras, others: Cameras, step: float, most: int) -> Tensor:
    """Planes evenly spaced in inverse depth, so close that none moves a pixel of a neighbour by more than ``step``.

    Args:
        bounds: [2] inverse depth.
        camera: the view.
        others: S neighbours.
        step: pixels, from one plane to the next, of the pixel that moves most but for a tenth.
        most: planes, whatever the step then is.
    """
    rays = pixel_rays(camera)[0, ::16, ::16].reshape(-1, 3)
    ends = []
    for inverse in bounds:
        points = (rays / inverse - camera.world_to_camera[0, :3, 3]) @ camera.world_to_camera[0, :3, :3]
        pixels, depth = project(points, others)
        ends.append(torch.where((depth > 0)[..., None], pixels, torch.nan))
    moved = (ends[0] - ends[1]).norm(dim=-1)
    moved = moved[torch.isfinite(moved)]
    reach = float(torch.quantile(moved, 0.9)) if len(moved) else 0.0
    count = min(most, max(8, 1 + int(reach / step)))
    return torch.linspace(0, 1, count, dtype=bounds.dtype, device=bounds.device) * (bounds[1] - bounds[0]) + bounds[0]


def box(values: Tensor, window: int) -> Tensor:
    """Sum over a square window [*, H, W], cut off at the borders. Shifted sums: pooling takes nine times as long."""
    half = window // 2
    for axis in (-2, -1):
        length = values.shape[axis]
        padded = F.pad(values, (0, 0, half, half) if axis == -2 else (half, half))
        values = padded.narrow(axis, 0, length).clone()
        for shift in range(1, window):
            values += padded.narrow(axis, shift, length)
    return values


class _Way(NamedTuple):
    """From the pixels of the reference to a neighbour: at inverse depth w it is fixed + w moving, homogeneous."""

    grey: Tensor  # [1, 1, H, W]
    fixed: Tensor  # [3, H, W]
    moving: list[float]


def sweep_scores(grey: Tensor, cameras: Cameras, view: int, others: list[int], inverses: Tensor, window: int) -> Tensor:
    """How alike the neighbours look on every plane: [D, H, W], zero-mean normalised cross-correlation, -1 to 1.

    A variance below that of noise pulls it to 0. Of the neighbours the better half counts (at least one): what one of
    them does not see another may see. A neighbour that does not see a pixel of a plane has -1 there.

    Args:
        grey: [V, H, W] in [0, 1].
        cameras: V views, float64.
        view: the reference.
        others: S neighbours.
        inverses: [D] inverse depth of planes parallel to the image.
        window: pixels, odd.
    """
    height, width = grey.shape[-2:]
    grey = grey - grey[view].mean()  # variances are differences: small numbers keep their digits
    reference, area = grey[view], box(torch.ones_like(grey[view]), window)
    mean = box(reference, window) / area
    spread = (box(reference * reference, window) / area - mean * mean).clamp(min=0) + _NOISE**2
    ways = [_way(grey, cameras, view, other) for other in others]
    kept = (len(others) + 1) // 2
    chunk = max(1, _ELEMENTS[grey.device.type == "cpu"] // (height * width))
    scores = grey.new_empty(len(inverses), height, width)
    for start in range(0, len(inverses), chunk):
        part = inverses[start : start + chunk, None, None].to(grey)
        best: list[Tensor] = []
        for way in ways:
            warped, visible = _warped(way, part)
            there = box(warped, window) / area
            variance = (box(warped * warped, window) / area - there * there).clamp(min=0) + _NOISE**2
            covariance = box(warped * reference, window) / area - there * mean
            alike = torch.where(visible, covariance * (variance * spread).rsqrt(), -1.0)
            for place, other in enumerate(best):  # an insertion into a list in falling order
                best[place], alike = torch.maximum(other, alike), torch.minimum(other, alike)
            if len(best) < kept:
                best.append(alike)
        scores[start : start + chunk] = sum(best[1:], best[0]) / kept
    return scores


def _way(grey: Tensor, cameras: Cameras, view: int, other: int) -> _Way:
    """Pixels are those of ``grid_sample``: -1 and 1 are the borders of the image."""
    relative = cameras.world_to_camera[other] @ torch.linalg.inv(cameras.world_to_camera[view])
    intrinsics = cameras.intrinsics[other].clone()
    size = intrinsics.new_tensor([cameras.width, cameras.height])
    intrinsics[:2] *= 2 / size[:, None]
    intrinsics[:2] -= intrinsics[2]
    fixed = pixel_rays(cameras[view])[0] @ (intrinsics @ relative[:3, :3]).T
    moving: list[float] = (intrinsics @ relative[:3, 3]).tolist()
    return _Way(grey[other][None, None], fixed.permute(2, 0, 1).to(grey), moving)


def _warped(way: _Way, inverses: Tensor) -> tuple[Tensor, Tensor]:
    """The neighbour as seen through planes of inverse depth [d, 1, 1]: [d, H, W], and where it is seen at all."""
    x, y, z = (fixed + inverses * moving for fixed, moving in zip(way.fixed, way.moving, strict=True))
    front = z > 1e-6
    scale = 1 / z.clamp(min=1e-6)
    x, y = x * scale, y * scale
    grid = torch.stack([x, y], dim=-1).view(1, -1, z.shape[-1], 2)
    warped = F.grid_sample(way.grey, grid, padding_mode="border", align_corners=False)
    return warped.view(z.shape), front & (x.abs() <= 1) & (y.abs() <= 1)


def smoothed(cost: Tensor, grey: Tensor, small: float, large: float, edge: float) -> Tensor:
    """Sum of costs along the four axis-parallel paths (Hirschmüller 2008, equation 13), divided by four.

    Args:
        cost: [D, H, W].
        grey: [H, W] in [0, 1] of the view.
        small: penalty of a step by one plane.
        large: penalty of a jump; it falls where the image has an edge.
        edge: difference of grey that halves the penalty of a jump.
    """
    volume = cost.permute(1, 2, 0).contiguous()  # [H, W, D]
    total = torch.zeros_like(volume)
    for axis in (0, 1):
        lines, out, shade = volume.transpose(0, axis), total.transpose(0, axis), grey.transpose(0, axis)
        length = len(lines)
        for order in (range(length), range(length - 1, -1, -1)):
            before = -1
            for at in order:
                if before < 0:
                    carried = lines[at].clone()
                else:
                    jump = (large / (1 + (shade[at] - shade[before]).abs() / edge)).clamp(min=small)[:, None]
                    least = carried.amin(-1, keepdim=True)
                    best = torch.minimum(carried, least + jump)
                    best[:, 1:] = torch.minimum(best[:, 1:], carried[:, :-1] + small)
                    best[:, :-1] = torch.minimum(best[:, :-1], carried[:, 1:] + small)
                    carried = lines[at] + best - least
                out[at] += carried
                before = at
    return (total / 4).permute(2, 0, 1)


def winner(cost: Tensor, scores: Tensor, inverses: Tensor) -> Winner:
    """The plane of least cost, refined by the parabola through it and its two neighbours.

    Args:
        cost: [D, H, W], D >= 3.
        scores: [D, H, W] NCC.
        inverses: [D] inverse depth, evenly spaced.
    """
    planes = len(inverses)
    at = cost.argmin(dim=0)  # [H, W]
    middle = at.clamp(1, planes - 2)
    before, here, after = (cost.gather(0, (middle + shift)[None])[0] for shift in (-1, 0, 1))
    bend = before - 2 * here + after
    shift = torch.where(bend > 1e-9, 0.5 * (before - after) / bend.clamp(min=1e-9), 0.0).clamp(-0.5, 0.5)
    inside = (at > 0) & (at < planes - 1)
    step = (inverses[1] - inverses[0]).to(cost)
    inverse = inverses.to(cost)[at] + step * torch.where(inside, shift, 0.0)
    return Winner(inverse, scores.gather(0, at[None])[0], inside)
