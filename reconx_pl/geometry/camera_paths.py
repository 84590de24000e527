"""Camera paths for videos of a scene: through the given cameras, around what they look at, in a spiral before it.

All give ``frames`` cameras of the same image size, on the device and of the type of the input; none is differentiable.
An orbit and a spiral may start from one camera, and then stay near it. The up axis is found from the cameras, since a
reconstruction has no agreed one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, RotationSpline
from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.types import Cameras

_CONVERGENT = 0.02  # mean squared sine of the angle between optical axes and their mean: about 8 degrees
_FORWARD = 0.7  # length of the mean viewing direction above which cameras count as facing one way
_SPREAD = 0.01  # the same of the x axes, above which they span a plane: about 6 degrees, more than hands shake
_SPIRAL_TURNS = 2
_SLOW = 1e-9  # radians; steps below it are the same camera again
# (ours) how far an orbit of a single camera goes, seen from what it looks at: beyond lies what no photograph shows
_ASIDE = math.radians(10)  # to the right and to the left
_ABOVE = 0.5  # of that, upwards, so that it does not come back the way it went
_NEAR = 0.1  # (ours) half-axes of a spiral about one camera, over its distance from what it looks at


@dataclass(frozen=True)
class _Poses:
    """Cameras in float64: centres [V, 3], axes [V, 3, 3] with rows right, down, forward in world coordinates."""

    centers: np.ndarray
    axes: np.ndarray

    @property
    def forward(self) -> np.ndarray:  # [V, 3]
        return self.axes[:, 2]


def interpolated_path(cameras: Cameras, frames: int, points: Tensor | None = None) -> Cameras:
    """A smooth path through every camera in their order: cubic splines of centre and rotation, linear intrinsics.

    The cameras stand on the path at distances of the angle by which the view moves: the turn of the camera, and its way
    over the depth of interest. So the fly-through is even where the cameras are unevenly spaced.

    Args:
        cameras: V >= 2 views.
        frames: M >= 2; the first and the last are the first and the last camera.
        points: [N, 3] of the scene; tells the depth of interest.

    Raises:
        ConfigurationError: fewer than two cameras or frames, or all cameras are one and the same.
    """
    poses = _poses(cameras, frames)
    depth = _interest(poses, points)[1]
    way = np.linalg.norm(np.diff(poses.centers, axis=0), axis=1)
    to_world = Rotation.from_matrix(poses.axes.transpose(0, 2, 1))
    steps = np.hypot(way / depth, (to_world[:-1].inv() * to_world[1:]).magnitude())
    kept = np.concatenate([[0], 1 + np.flatnonzero(steps > _SLOW)])
    if len(kept) < 2:
        raise ConfigurationError("a path needs two cameras that differ; these are one and the same")
    knots = np.concatenate([[0.0], np.cumsum(steps[kept[1:] - 1])])
    at = np.linspace(0.0, knots[-1], frames)
    centers = CubicSpline(knots, poses.centers[kept], bc_type="natural")(at)
    axes = RotationSpline(knots, to_world[kept])(at).as_matrix().transpose(0, 2, 1)
    lens = cameras.intrinsics.detach().double().cpu().numpy()[kept].reshape(len(kept), 9)
    intrinsics = np.stack([np.interp(at, knots, column) for column in lens.T], axis=1).reshape(frames, 3, 3)
    return _cameras(cameras, centers, axes, intrinsics)


def orbit_path(cameras: Cameras, frames: int, points: Tensor | None = None) -> Cameras:
    """A full circle about the up axis around the point that the cameras look at, at their mean height and distance.

    It starts at the azimuth of the first camera; the first frame follows the last as it follows its other neighbour.

    (ours) Of a single camera it is a small loop that starts and ends with it: 10 degrees to the right and to the left
    around the point at the median depth of ``points``, and up by 5 degrees.

    Args:
        cameras: V >= 1 views.
        frames: M >= 2.
        points: [N, 3] of the scene; needed where the cameras look the same way, and of a single one.

    Raises:
        ConfigurationError: no camera or fewer than two frames, no point that all look at, cameras straight above it.
    """
    poses = _poses(cameras, frames, least=1)
    focus, distance = _interest(poses, points, required=True)
    up = _up(poses)
    turn = np.linspace(0.0, 2 * math.pi, frames, endpoint=False)[:, None]
    rise = np.zeros_like(turn)
    if len(cameras) == 1:
        rise = distance * _ABOVE * _ASIDE * (1 - np.cos(turn)) / 2
        turn = _ASIDE * np.sin(turn)
    offset = poses.centers - focus
    height = float((offset @ up).mean())
    outward = offset - (offset @ up)[:, None] * up
    radius = float(np.linalg.norm(outward, axis=1).mean())
    start = outward[0] if np.linalg.norm(outward[0]) > 1e-3 * radius else outward.sum(axis=0)
    if radius < 1e-3 * abs(height) or np.linalg.norm(start) < 1e-9 * radius or radius == 0:
        raise ConfigurationError(
            "an orbit needs cameras beside what they look at, these are above it; take interpolated"
        )
    first = start / np.linalg.norm(start)
    second = np.cross(up, first)
    centers = focus + (height + rise) * up + radius * (np.cos(turn) * first + np.sin(turn) * second)
    return _cameras(cameras, centers, _looking_at(centers, focus, up))


def spiral_path(cameras: Cameras, frames: int, points: Tensor | None = None) -> Cameras:
    """A spiral around the mean camera that looks at the depth of interest, as for forward-facing scenes in LLFF.

    (Mildenhall et al., Local Light Field Fusion, 2019.) Two turns while it moves back and forth once, closed. Its
    half-axes are the 90th percentiles of the cameras' offsets in the axes of the mean camera, at least a tenth of the
    largest. Cameras around an object have no mean camera: there it goes around the middle one of the list, with
    half-axes of a tenth of the depth of interest. So it does around a single camera.

    Args:
        cameras: V >= 1 views.
        frames: M >= 2.
        points: [N, 3] of the scene; needed where the cameras look the same way, and of a single one.

    Raises:
        ConfigurationError: no camera or fewer than two frames, or no depth of interest.
    """
    poses = _poses(cameras, frames, least=1)
    focus, depth = _interest(poses, points, required=True)
    up = _up(poses)
    mean = poses.forward.mean(axis=0)
    if len(cameras) > 1 and np.linalg.norm(mean) >= _FORWARD:
        center, forward = poses.centers.mean(axis=0), mean / np.linalg.norm(mean)
        target = center + forward * max(float((focus - center) @ forward), 1e-3 * depth)
        axes = _looking_at(center[None], target, up)[0]
        radii = np.percentile(np.abs((poses.centers - center) @ axes.T), 90, axis=0)
        radii = np.maximum(radii, 0.1 * radii.max()) if radii.max() > 0 else np.full(3, 0.02 * depth)
    else:
        center, target = poses.centers[len(cameras) // 2], focus
        axes = _looking_at(center[None], target, up)[0]
        radii = np.full(3, _NEAR * np.linalg.norm(target - center))
    angle = np.linspace(0.0, 2 * math.pi * _SPIRAL_TURNS, frames, endpoint=False)
    swing = np.stack([np.cos(angle), np.sin(angle), np.sin(angle / _SPIRAL_TURNS)], axis=1)
    centers = center + (swing * radii) @ axes
    return _cameras(cameras, centers, _looking_at(centers, target, up))


PATHS: dict[str, Callable[[Cameras, int, Tensor | None], Cameras]] = {
    "interpolated": interpolated_path,
    "orbit": orbit_path,
    "spiral": spiral_path,
}


def up_axis(cameras: Cameras) -> Tensor:
    """The direction against gravity that the cameras agree on, [3], unit length, on their device.

    People hold cameras level: their x axes lie in the horizontal plane, also where all look down. Where these axes
    do not span it, the mean of the image's upward directions decides.

    Raises:
        ConfigurationError: cameras that are turned upside down against each other.
    """
    return torch.from_numpy(_up(_poses(cameras, 2, least=1))).to(cameras.world_to_camera)


def focus_point(cameras: Cameras, points: Tensor | None = None) -> Tensor:
    """The point that the cameras look at, [3], world units, on their device.

    Where their optical axes converge in front of all it is the point nearest to these axes; else it lies before the
    mean camera at the median depth of ``points``.

    Raises:
        ConfigurationError: the axes do not converge and there are no points in front, or the cameras look outward.
    """
    return torch.from_numpy(_interest(_poses(cameras, 2, least=1), points, required=True)[0]).to(
        cameras.world_to_camera
    )


def _poses(cameras: Cameras, frames: int, least: int = 2) -> _Poses:
    if len(cameras) < least or frames < 2:
        raise ConfigurationError(
            f"a camera path needs at least {least} cameras and 2 frames, got {len(cameras)} and {frames}"
        )
    pose = cameras.world_to_camera.detach().double().cpu().numpy()
    axes = pose[:, :3, :3]
    return _Poses(-np.einsum("vji,vj->vi", axes, pose[:, :3, 3]), axes)


def _up(poses: _Poses) -> np.ndarray:
    right, down, forward = poses.axes.transpose(1, 0, 2)
    against = -down.mean(axis=0), -forward.mean(axis=0)  # the second for flights, where the first may cancel
    across, axes = np.linalg.eigh(right.T @ right / len(right))
    if across[1] > _SPREAD:
        up = axes[:, 0]
        return up if (against[0] + 0.3 * against[1]) @ up >= 0 else -up
    for guess in against:
        up = guess - (guess @ axes[:, 2]) * axes[:, 2]
        if np.linalg.norm(up) > 0.1:
            return up / np.linalg.norm(up)
    raise ConfigurationError("these cameras agree on no up axis: they are turned against each other")


def _interest(poses: _Poses, points: Tensor | None, required: bool = False) -> tuple[np.ndarray, float]:
    """What the cameras look at: a point, and its mean distance from them.

    Where nothing tells and it is not ``required``, the extent of the cameras stands in for that distance.
    """
    forward = poses.forward
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]  # [V, 3, 3], projection along the axis
    normal = across.mean(axis=0)
    if np.linalg.eigvalsh(normal)[0] > _CONVERGENT:
        point = np.linalg.solve(normal, np.einsum("vij,vj->vi", across, poses.centers).mean(axis=0))
        ahead = np.einsum("vi,vi->v", point - poses.centers, forward)
        if (ahead > 0).all():
            return point, float(np.linalg.norm(point - poses.centers, axis=1).mean())
    mean = forward.mean(axis=0)
    center = poses.centers.mean(axis=0)
    depths = np.zeros(0)
    if points is not None and np.linalg.norm(mean) > 0.1:
        every = points.detach().double().cpu().numpy()
        depths = np.concatenate([(every - at) @ ahead for at, ahead in zip(poses.centers, forward, strict=True)])
        depths = depths[depths > 0]
    if len(depths):
        depth = float(np.median(depths))
        return center + depth * mean / np.linalg.norm(mean), depth
    if required:
        raise ConfigurationError(
            "these cameras look at no common point and no points of the scene lie before them; "
            + ("take the path interpolated" if len(poses.centers) > 1 else "give points that the camera sees")
        )
    extent = float(np.linalg.norm(poses.centers - center, axis=1).max())
    return center, extent or 1.0


def _looking_at(centers: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Axes [M, 3, 3] of level cameras at ``centers`` [M, 3] that look at ``target``."""
    forward = target - centers
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    right = np.cross(forward, up)
    length = np.linalg.norm(right, axis=1, keepdims=True)
    if (length < 1e-6).any():
        raise ConfigurationError("this path looks straight up or down, where no camera is level; take interpolated")
    right /= length
    return np.stack([right, np.cross(forward, right), forward], axis=1)


def _cameras(like: Cameras, centers: np.ndarray, axes: np.ndarray, intrinsics: np.ndarray | None = None) -> Cameras:
    """Cameras of these centres and axes; intrinsics default to the mean of ``like``."""
    pose = np.tile(np.eye(4), (len(centers), 1, 1))
    pose[:, :3, :3] = axes
    pose[:, :3, 3] = -np.einsum("mij,mj->mi", axes, centers)
    if intrinsics is None:
        lens = like.intrinsics.detach().double().mean(dim=0).expand(len(centers), 3, 3)
    else:
        lens = torch.from_numpy(intrinsics)
    return replace(
        like, world_to_camera=torch.from_numpy(pose).to(like.world_to_camera), intrinsics=lens.to(like.intrinsics)
    )
