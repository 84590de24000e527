"""Smooth camera paths that keep clear of things and whose ends still see the same place."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reconx_pl.data.procedural.primitives import Array, Scene
from reconx_pl.data.procedural.render import render_scene
from reconx_pl.geometry.cameras import project, unproject
from reconx_pl.types import Cameras

MIN_OVERLAP = 0.45  # share of the pixels with depth that the other end sees too, at gap 1
_PROBE = 32  # pixels; size of the depth maps that judge a path


@dataclass(frozen=True)
class CameraPath:
    """A camera that moves from position 0 to position 1 while its look-at point drifts.

    The centre follows ``middle + baseline * ((s - 1/2) * direction + ((s - 1/2)^2 - 1/12) * bend)`` with a slow sway.
    """

    middle: Array  # [3] metres
    direction: Array  # [3] unit
    bend: Array  # [3] curvature of the path, 0 = a straight one
    baseline: float  # metres from end to end
    target: Array  # [3] looked at in the middle of the path
    drift: Array  # [3] of the target from end to end, metres
    sway: tuple[float, float]  # share of the baseline, phase
    tilt: float  # roll, radians
    field_of_view: float  # radians, across the longer side

    def centers(self, positions: Array) -> Array:
        """[M] in [0, 1] -> [M, 3] metres."""
        s = np.asarray(positions, dtype=np.float64)[:, None] - 0.5
        offset = s * self.direction + (s**2 - 1 / 12) * self.bend
        offset = offset + self.sway[0] * np.sin(2 * math.pi * s + self.sway[1]) * np.array([0.0, 1.0, 0.0])
        return self.middle + self.baseline * offset

    def cameras(self, positions: Array, height: int, width: int) -> Cameras:
        """float32 cameras at ``positions`` [M] in [0, 1]."""
        at = np.asarray(positions, dtype=np.float64)
        centers = self.centers(at)
        forward = self.target + (at[:, None] - 0.5) * self.drift - centers
        forward /= np.linalg.norm(forward, axis=1, keepdims=True)
        down = np.array([math.sin(self.tilt), math.cos(self.tilt), 0.0])
        right = np.cross(down, forward)
        right /= np.linalg.norm(right, axis=1, keepdims=True)
        rows = np.stack([right, np.cross(forward, right), forward], axis=1)  # [M, 3, 3] world to camera
        pose = np.tile(np.eye(4), (len(at), 1, 1))
        pose[:, :3, :3] = rows
        pose[:, :3, 3] = -np.einsum("mij,mj->mi", rows, centers)
        focal = 0.5 * max(height, width) / math.tan(0.5 * self.field_of_view)
        intrinsics = np.array([[focal, 0, 0.5 * width], [0, focal, 0.5 * height], [0, 0, 1]])
        return Cameras(
            torch.from_numpy(pose).float(),
            torch.from_numpy(np.tile(intrinsics, (len(at), 1, 1))).float(),
            height,
            width,
        )


def overlap(scene: Scene, cameras: Cameras) -> float:
    """Share of the pixels with depth in the first view that the last one sees too, or the reverse if that is less."""
    ends = cameras[[0, len(cameras) - 1]]
    depth = render_scene(scene, ends, samples=0).depth
    points = unproject(depth, ends)
    shares = []
    for here, there in ((0, 1), (1, 0)):
        valid = depth[here] > 0
        if not valid.any():
            return 0.0
        pixels, distance = project(points[here][valid], ends[there])
        x, y = pixels[0].floor().long().unbind(-1)
        inside = (distance[0] > 0) & (x >= 0) & (y >= 0) & (x < ends.width) & (y < ends.height)
        seen = depth[there][y.clamp(0, ends.height - 1), x.clamp(0, ends.width - 1)]
        shares.append(float((inside & (distance[0] < 1.1 * seen)).float().mean()))
    return min(shares)


def _too_near(depth: Tensor) -> bool:
    """Whether things right before the lens hide the scene."""
    valid = depth[depth > 0]
    return len(valid) == 0 or float(valid.quantile(0.1)) < max(0.9, 0.25 * float(valid.median()))


def choose_path(
    scene: Scene, rng: np.random.Generator, start: Array, target: Array, gap: float, attempts: int = 12
) -> CameraPath | None:
    """A path near ``start`` that looks at ``target``, or None if nothing near there is clear of things.

    The baseline is a share of the median depth, so that near and far scenes move alike across the image.
    """
    for _ in range(attempts):
        middle = start + rng.uniform(-0.3, 0.3, 3) * np.array([1.0, 0.4, 1.0])
        aim = target + rng.uniform(-0.4, 0.4, 3)
        forward = (aim - middle) / np.linalg.norm(aim - middle)
        right = np.array([forward[2], 0.0, -forward[0]])
        right /= np.linalg.norm(right)
        style = rng.choice(["lateral", "arc", "dolly", "crane"], p=[0.3, 0.4, 0.15, 0.15])
        side = float(rng.choice([-1.0, 1.0]))
        bend = np.zeros(3)
        direction = side * right + rng.uniform(-0.25, 0.25) * forward + np.array([0.0, rng.uniform(-0.15, 0.15), 0.0])
        if style == "arc":
            bend = -rng.uniform(0.3, 0.8) * forward
        elif style == "dolly":
            direction = forward + side * rng.uniform(0.5, 0.9) * right
        elif style == "crane":
            direction = direction + np.array([0.0, rng.uniform(-0.8, 0.8), 0.0])
        path = CameraPath(
            middle,
            direction / np.linalg.norm(direction),
            bend,
            0.0,
            aim,
            np.zeros(3),
            (rng.uniform(0.0, 0.05), rng.uniform(0, 2 * math.pi)),
            rng.uniform(-0.05, 0.05),
            math.radians(rng.uniform(60, 75)),
        )
        if scene.clearance(path.centers(np.array([0.5])))[0] < 0.3:
            continue
        depth = render_scene(scene, path.cameras(np.array([0.5]), _PROBE, _PROBE), samples=0).depth
        valid = depth[depth > 0]
        if valid.numel() < 0.35 * depth.numel() or _too_near(depth):
            continue
        share = rng.uniform(0.35, 0.6)
        wander = rng.uniform(-0.35, 0.35) * right + np.array([0.0, rng.uniform(-0.08, 0.08), 0.0])
        for shrink in (1.0, 0.8, 0.65, 0.5):
            baseline = gap * share * shrink * float(valid.median())
            moved = CameraPath(
                path.middle, path.direction, path.bend, baseline, aim, wander * baseline,
                path.sway, path.tilt, path.field_of_view,
            )  # fmt: skip
            if scene.clearance(moved.centers(np.linspace(0, 1, 33))).min() < 0.3:
                continue
            cameras = moved.cameras(np.array([0.0, 1.0]), _PROBE, _PROBE)
            ends = render_scene(scene, cameras, samples=0).depth
            if any(_too_near(end) for end in ends):
                continue
            if overlap(scene, cameras) >= MIN_OVERLAP / max(1.0, gap):
                return moved
    return None
