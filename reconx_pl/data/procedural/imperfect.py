"""The errors of estimated geometry and of real cameras, drawn onto an exact clip.

Which errors, and how large, was taken from what estimators do: DUSt3R-like maps are complete but smooth, off in scale
from view to view, smeared over the edges of things, and put the sky somewhere; plane sweeps are nearly right where
there is texture and know nothing elsewhere. Poses found from photographs are off by a fraction of a degree.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor

from reconx_pl.geometry.cameras import project
from reconx_pl.types import Cameras, Clip, PointCloud

EXACT = 0.25  # share of the clips that keep their exact geometry
_DENSE = 0.5  # share of the others whose depth is of the DUSt3R-like kind
_TRIANGULATED = 0.25  # errors of a plane sweep's depth, where it has any, as a share of those of the other kind


def imperfect_clip(clip: Clip, rng: np.random.Generator) -> Clip:
    """A clip as estimators and a camera would have delivered it.

    The frames keep what they show, but their exposure changes slowly along the path. The cameras of the frames between
    the ends are a little off, those of the ends are not. Depth of the ends is distorted, smeared or full of holes, and
    the cloud is distorted with it.

    Args:
        clip: exact, with depth, confidence and cloud.
        rng: of all errors.
    """
    assert clip.depth is not None and clip.confidence is not None and clip.cloud is not None
    frames = _exposed(clip.frames, rng)
    if rng.random() < EXACT:
        return replace(clip, frames=frames)
    amount, dense = float(rng.uniform(0.2, 1.0)), bool(rng.random() < _DENSE)
    cameras = _shaken(clip.cameras, rng, amount)
    wrong = amount if dense else _TRIANGULATED * amount
    ratio = torch.stack([_distortion(tuple(clip.depth.shape[1:]), rng, wrong) for _ in clip.depth])
    ends = clip.cameras[[0, len(clip.cameras) - 1]]
    cloud = _moved(clip.cloud, clip.depth, ends, ratio)
    depth = clip.depth * ratio
    if dense:
        depth, confidence = _dense(depth, clip.confidence, rng, amount)
    else:
        depth, confidence = _sparse(depth, clip.confidence, clip.images[[0, -1]], rng)
    return replace(clip, frames=frames, cameras=cameras, depth=depth, confidence=confidence, cloud=cloud)


def _exposed(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Gain and white balance that move slowly from the first frame to the last."""
    if rng.random() < 0.5:
        return frames
    gain = torch.from_numpy(rng.normal(0, 0.06, (2, 1)) + rng.normal(0, 0.015, (2, 3))).float().exp()  # [2, 3]
    along = torch.linspace(0, 1, len(frames))[:, None]
    gains = gain[0] * (1 - along) + gain[1] * along  # [T, 3]
    return (frames.float() * gains[:, :, None, None]).round().clamp(0, 255).to(torch.uint8)


def _shaken(cameras: Cameras, rng: np.random.Generator, amount: float) -> Cameras:
    """Smooth errors of pose that vanish at both ends: up to a quarter of a degree and a hundredth of the baseline."""
    frames = len(cameras)
    along = np.linspace(0, 1, frames)
    waves = np.stack([np.sin(np.pi * along), np.sin(2 * np.pi * along)])  # [2, T]
    turns = 0.12 * amount * (rng.normal(size=(3, 2)) @ waves).T  # [T, 3] degrees
    centers = cameras.centers.double()
    baseline = float((centers[-1] - centers[0]).norm())
    shifts = torch.from_numpy(0.005 * amount * baseline * (rng.normal(size=(3, 2)) @ waves).T)  # [T, 3]
    rotation = cameras.world_to_camera[:, :3, :3].double()
    rotation = torch.from_numpy(Rotation.from_rotvec(turns, degrees=True).as_matrix()) @ rotation
    moved = cameras.world_to_camera.double().clone()
    moved[:, :3, :3] = rotation
    moved[:, :3, 3] = -(rotation @ (centers + shifts)[:, :, None])[:, :, 0]
    moved = moved.to(cameras.world_to_camera)
    moved[[0, -1]] = cameras.world_to_camera[[0, -1]]
    return replace(cameras, world_to_camera=moved)


def _distortion(size: tuple[int, ...], rng: np.random.Generator, amount: float) -> Tensor:
    """[H, W] factor of the depth: an error of scale, a slow one over the image, and a little fine noise."""
    error = torch.full(size, float(rng.normal(0, 0.025)))
    for cells, deviation in ((4, 0.03), (16, 0.008)):
        noise = torch.from_numpy(rng.normal(0, deviation, (1, 1, cells, cells))).float()
        error += F.interpolate(noise, size=size, mode="bicubic", align_corners=True)[0, 0]
    return (amount * error).exp()


def _dense(depth: Tensor, confidence: Tensor, rng: np.random.Generator, amount: float) -> tuple[Tensor, Tensor]:
    """Depth everywhere, smeared over the edges of things; the sky known, or at some distance."""
    known = depth.isfinite() & (depth > 0)
    largest = depth[known].max() if known.any() else depth.new_tensor(1.0)
    if rng.random() < 0.6:  # the sky as a backdrop with a shape of its own
        backdrop = largest * float(rng.uniform(1.2, 4.0))
        depth = torch.where(depth.isinf(), backdrop, depth)
    if rng.random() < 0.7:
        radius = 1 + int(amount * max(depth.shape[-2:]) / 96)
        finite = torch.where(depth.isinf(), 100 * largest, depth)
        inverse = F.pad(1 / finite[:, None], [radius] * 4, mode="replicate")
        smooth = 1 / F.avg_pool2d(inverse, 2 * radius + 1, 1)[:, 0]
        depth = torch.where(depth.isinf(), depth, smooth)
    return depth, torch.where(known, confidence, 1 + 0.3 * (confidence - 1))


def _sparse(depth: Tensor, confidence: Tensor, images: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Depth where there is texture, and not in patches; nothing of the sky."""
    gray = images.mean(1, keepdim=True)
    strength = (gray - F.avg_pool2d(gray, 5, 1, 2, count_include_pad=False)).abs()
    strength = F.avg_pool2d(strength, 5, 1, 2)[:, 0]
    keep = strength > strength.flatten(1).quantile(float(rng.uniform(0.05, 0.6)), dim=1)[:, None, None]
    patches = torch.from_numpy(rng.random((len(depth), 1, 8, 8))).float()
    patches = F.interpolate(patches, size=depth.shape[1:], mode="bilinear")[:, 0]
    keep &= patches > float(rng.uniform(0.0, 0.35))
    keep &= depth.isfinite()
    keep[0, depth.shape[1] // 2] |= depth[0, depth.shape[1] // 2].isfinite()  # never nothing at all
    return torch.where(keep, depth, 0.0), torch.where(keep, confidence, 1.0)


def _moved(cloud: PointCloud, depth: Tensor, ends: Cameras, ratio: Tensor) -> PointCloud:
    """The cloud with each point where the distorted depth of the first end that sees it puts it."""
    points = cloud.points.clone()
    pixels, distance = project(cloud.points, ends)  # [2, N, 2], [2, N]
    left = torch.ones(len(points), dtype=torch.bool)
    for view in range(2):
        x, y = pixels[view].floor().long().unbind(-1)
        inside = (distance[view] > 0) & (x >= 0) & (y >= 0) & (x < ends.width) & (y < ends.height)
        x, y = x.clamp(0, ends.width - 1), y.clamp(0, ends.height - 1)
        seen = left & inside & ((distance[view] / depth[view, y, x] - 1).abs() < 0.05)
        center = ends.centers[view].to(points)
        points[seen] = center + (points[seen] - center) * ratio[view, y, x][seen, None]
        left &= ~seen
    return replace(cloud, points=points)
