"""Dense depth of posed photographs by plane-sweep stereo: no weights, any device, the same numbers every time.

Every view is compared with its neighbours on planes parallel to its image (``plane_sweep_matching``). Depth is kept
where another view agrees, as multi-view stereo filters it (Schönberger et al., Pixelwise View Selection for
Unstructured Multi-View Stereo, ECCV 2016; Yao et al., MVSNet, ECCV 2018, section 4.2).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import project, resize_cameras, unproject
from reconx_pl.geometry.estimators.plane_sweep_matching import (
    inverse_bounds,
    neighbours,
    plane_inverses,
    smoothed,
    sweep_scores,
    winner,
)
from reconx_pl.types import Cameras, PointCloud

log = logging.getLogger(__name__)

_LUMA = 0.299, 0.587, 0.114  # grey of RGB, ITU-R BT.601


@dataclass(frozen=True)
class PlaneSweepOptions:
    """How depth is found. The defaults were chosen on four scenes and measured on others (benchmarks/README.md).

    Args:
        short_side: pixels at which views are compared; smaller ones stay as they are.
        neighbours: most views that a view is compared with.
        window: pixels along a side of what is compared, odd.
        step: pixels that a pixel moves in a neighbour from one plane to the next.
        planes: most planes, whatever the step then is. Memory is twice planes x pixels of a view, in float32.
        quantile: share of the sparse points of a view that is not believed, at either end of their depth.
        margin: factor by which planes lie before the nearest and behind the farthest of the others.
        slope: cost (0 to 1) of neighbouring pixels one plane apart.
        jump: cost of neighbouring pixels more than one plane apart, where the image has no edge; 0 takes every pixel
            on its own.
        edge: difference of grey in [0, 1] that halves ``jump``.
        min_score: normalised cross-correlation of the best plane, at least.
        pixels: a pixel that goes to the depth of another view and back returns within so many pixels.
        relative: and the two depths differ by this share at most.
        agreeing: other views that agree, at least; 0 keeps everything.
        company: share of the ``window`` around a pixel that has to have its depth within ``relative``; what agrees by
            chance is alone.

    Raises:
        ConfigurationError: options out of range.
    """

    short_side: int = 256
    neighbours: int = 4
    window: int = 7
    step: float = 0.5
    planes: int = 256
    quantile: float = 0.02
    margin: float = 1.4
    slope: float = 0.05
    jump: float = 0.3
    edge: float = 0.05
    min_score: float = 0.1
    pixels: float = 1.0
    relative: float = 0.05
    agreeing: int = 1
    company: float = 0.4

    def __post_init__(self) -> None:
        if self.short_side < 32 or self.planes < 8 or self.neighbours < 1 or self.agreeing < 0:
            raise ConfigurationError(
                f"short_side is 32 or more, planes 8 or more, neighbours 1 or more, agreeing 0 or more, got {self}"
            )
        if self.window < 3 or self.window % 2 == 0:
            raise ConfigurationError(f"window is an odd number of pixels, 3 or more, not {self.window}")
        if not (self.step > 0 and self.edge > 0 and self.pixels > 0 and self.relative > 0 and self.margin >= 1):
            raise ConfigurationError(f"step, edge, pixels and relative are positive, margin is 1 or more, got {self}")
        if not (
            0 <= self.quantile < 0.5
            and self.jump >= 0
            and self.slope >= 0
            and -1 <= self.min_score < 1
            and 0 <= self.company <= 1
        ):
            raise ConfigurationError(f"quantile, jump, slope, min_score or company is out of range, got {self}")


class DenseDepth(NamedTuple):
    """Depth of every view, and how far it is trusted."""

    depth: Tensor  # [V, H, W] float32 along the optical axis, world units, 0 = none
    confidence: Tensor  # [V, H, W] float32, >= 1


def dense_depth(
    images: Tensor,
    cameras: Cameras,
    cloud: PointCloud,
    options: PlaneSweepOptions = PlaneSweepOptions(),
) -> DenseDepth:
    """Depth on which at least two views agree.

    Confidence (ours) is 1 + n sum 1 / (1 + e²) over the agreeing views, with n the normalised cross-correlation and e
    the pixels by which a pixel misses itself after going there and back: what ``sfm_cloud`` gives a point that is seen
    in so many views, times n. It is 1 where there is no depth.

    Args:
        images: [V, 3, H, W] in [0, 1], V >= 2; their device computes.
        cameras: V views of H x W pixels.
        cloud: sparse points in their world, which say between which depths to look.
        options: see there.

    Returns:
        maps of the images' size, on their device. Where the images are larger than ``short_side``, each pixel has the
        mean of what lies around it at that size, or the nearest value at edges.

    Raises:
        BadSceneError: fewer than two views, cameras that do not go with the images or are all in one place, or no two
            views that see points in common.
    """
    _check(images, cameras)
    grey = (images.float() * images.new_tensor(_LUMA, dtype=torch.float32)[:, None, None]).sum(1)
    height, width = grey.shape[-2:]
    scale = min(1.0, options.short_side / min(height, width))
    size = round(height * scale), round(width * scale)
    if size != (height, width):
        grey = F.interpolate(grey[:, None], size, mode="bilinear", antialias=True, align_corners=False)[:, 0]
    small = resize_cameras(cameras.to(images.device, torch.float64), *size)
    depth, score = _sweep(grey, small, cloud.points.to(images.device, torch.float64), options)
    support, agreeing = agreement(depth, small, options.pixels, options.relative)
    depth = torch.where(agreeing >= options.agreeing, depth, 0.0)
    keep = (depth > 0) & (company(depth, options.window, options.relative) >= options.company)
    depth = torch.where(keep, depth, 0.0)
    confidence = torch.where(keep, 1 + score.clamp(min=0) * support, 1.0)
    if size == (height, width):
        return DenseDepth(depth, confidence)
    return DenseDepth(*_enlarged(depth, confidence, height, width, options.relative))


def agreement(depth: Tensor, cameras: Cameras, pixels: float, relative: float) -> tuple[Tensor, Tensor]:
    """Which other views confirm a depth: a pixel goes to its place in the other view, and back with the depth there.

    Args:
        depth: [V, H, W] world units, 0 = none.
        cameras: V views of H x W pixels, float64.
        pixels: most that it may miss itself by.
        relative: most that the two depths in the other view may differ by, as a share.

    Returns:
        sum over the agreeing views of 1 / (1 + e²), e the miss in pixels [V, H, W], and their number [V, H, W].
    """
    views, height, width = depth.shape
    support, agreeing = torch.zeros_like(depth), torch.zeros_like(depth, dtype=torch.long)
    size = torch.tensor([width, height], device=depth.device)
    rows, columns = torch.arange(height, device=depth.device), torch.arange(width, device=depth.device)
    own = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).reshape(-1, 2) + 0.5  # (x, y)
    points = unproject(depth.double(), cameras).flatten(1, 2)  # [V, H * W, 3]
    for view in range(views):
        there, z = project(points[view], cameras)  # [V, H * W, 2], [V, H * W]
        seen = (depth[view].flatten() > 0) & (z > 0) & (there >= 0).all(-1) & (there < size).all(-1)
        for other in (other for other in range(views) if other != view):
            at = torch.minimum(there[other].clamp(min=0).long(), size - 1)
            found = depth[other, at[:, 1], at[:, 0]].double()
            rays = F.pad(there[other], (0, 1), value=1.0) @ torch.linalg.inv(cameras.intrinsics[other]).T
            pose = cameras.world_to_camera[other]
            back, _ = project((rays * found[:, None] - pose[:3, 3]) @ pose[:3, :3], cameras[view])
            miss = (back[0] - own).norm(dim=-1)
            agrees = seen[other] & (found > 0) & (miss <= pixels) & ((z[other] - found).abs() <= relative * found)
            support[view] += torch.where(agrees, 1 / (1 + miss**2), 0.0).view(height, width).to(support)
            agreeing[view] += agrees.view(height, width)
    return support, agreeing


def company(depth: Tensor, window: int, relative: float) -> Tensor:
    """Share of the pixels around each whose depth is the same but for ``relative``: [V, H, W] in [0, 1].

    Args:
        depth: [V, H, W], 0 = none.
        window: pixels along a side, odd; pixels beyond the border have no depth.
        relative: share of the depth.
    """
    height, width = depth.shape[-2:]
    padded = F.pad(depth, (window // 2,) * 4)
    alike = torch.zeros_like(depth)
    for row in range(window):
        for column in range(window):
            around = padded[:, row : row + height, column : column + width]
            alike += (around > 0) & ((around - depth).abs() <= relative * depth)
    return alike / window**2


def _sweep(grey: Tensor, cameras: Cameras, points: Tensor, options: PlaneSweepOptions) -> tuple[Tensor, Tensor]:
    """Depth [V, H, W] of every view on its own, 0 where it is doubtful, and its NCC [V, H, W]."""
    depth, score = torch.zeros_like(grey), torch.zeros_like(grey)
    blind = []
    for view in range(len(grey)):
        others = neighbours(points, cameras, view, options.neighbours)
        bounds = inverse_bounds(points, cameras[view], options.quantile, options.margin)
        if not others or bounds is None:
            blind.append(view)
            continue
        inverses = plane_inverses(bounds, cameras[view], cameras[others], options.step, options.planes)
        scores = sweep_scores(grey, cameras, view, others, inverses, options.window)
        cost = (1 - scores) / 2
        if options.jump > 0:
            cost = smoothed(cost, grey[view], options.slope, options.jump, options.edge)
        found = winner(cost, scores, inverses)
        sure = found.inside & (found.score >= options.min_score)
        depth[view] = torch.where(sure, 1 / found.inverse, 0.0)
        score[view] = found.score
    if len(blind) == len(grey):
        raise BadSceneError(
            f"no two of {len(grey)} views see sparse points in common ({len(points)} points in all); check that points "
            "and cameras share one coordinate system, or use photographs that overlap more"
        )
    if blind:
        log.warning("no dense depth of views %s: too few sparse points are seen there", blind)
    return depth, score


def _enlarged(depth: Tensor, confidence: Tensor, height: int, width: int, relative: float) -> tuple[Tensor, Tensor]:
    """Maps at a larger size: bilinear where the four pixels around are one surface, else the nearest."""

    def resized(values: Tensor, mode: str) -> Tensor:
        corners = False if mode == "bilinear" else None
        return F.interpolate(values[:, None], (height, width), mode=mode, align_corners=corners)[:, 0]

    nearest, sure = resized(depth, "nearest-exact"), resized((depth > 0).float(), "bilinear") > 1 - 1e-6
    inverse = torch.where(depth > 0, 1 / depth.clamp(min=1e-12), 0.0)  # planes are linear in inverse depth
    between = 1 / resized(inverse, "bilinear").clamp(min=1e-12)
    one = sure & ((between - nearest).abs() <= relative * nearest)
    return torch.where(one, between, nearest), resized(confidence, "nearest-exact")


def _check(images: Tensor, cameras: Cameras) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ConfigurationError(f"images are [V, 3, H, W], got {tuple(images.shape)}")
    if len(images) < 2:
        raise BadSceneError(f"depth by stereo needs two views at least, got {len(images)}")
    if (len(cameras), cameras.height, cameras.width) != tuple(images[:, 0].shape):
        raise BadSceneError(
            f"{len(cameras)} cameras of {cameras.height} x {cameras.width} pixels do not go with images "
            f"{tuple(images.shape)}; resize or crop both alike"
        )
    cameras.check("the cameras of the plane sweep")
