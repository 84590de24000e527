"""Gaussians and the cameras around them as a scene of viser, for a browser.

viser draws base colours only: spherical harmonics above degree 0, the view dependence, are not shown.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.camera_paths import focus_point, up_axis
from reconx_pl.splatting.io.splat import base_colors, by_importance
from reconx_pl.types import Cameras, Gaussians

logger = logging.getLogger(__name__)

_WIDTH = 0.1  # of the median Gaussian in the browser; viser sends covariances as float16: from 2.4e-4 to 255 wide
_WIDEST = 200.0
_FAR = 1000.0  # viser's default
_PYRAMID = 0.08  # height of an input view's pyramid, of the depth of interest
_VIEWS, _FRAMES = (255, 190, 60), (120, 170, 255)  # colours of input views and of generated frames


@dataclass(frozen=True)
class Pose:
    """A camera in the browser's unit of length: position [3], wxyz [4] of camera to world, what it looks at [3], and
    its vertical angle of view, radians."""

    position: np.ndarray
    rotation: np.ndarray
    target: np.ndarray
    angle: float


@dataclass(frozen=True)
class ShownScene:
    """What stands in the browser.

    Attributes:
        unit: the browser's unit of length for one of the world, in which covariances fit into float16.
        poses: of the input views.
        frustums: viser's handles of all pyramids.
    """

    unit: float
    poses: list[Pose] = field(default_factory=list)
    frustums: list[Any] = field(default_factory=list)


def show_scene(
    server: Any,
    gaussians: Gaussians,
    cameras: Cameras | None = None,
    *,
    max_gaussians: int | None = None,
    images: Tensor | None = None,
    frames: Cameras | None = None,
) -> ShownScene:
    """Put a scene into a server of viser.

    Args:
        server: a ``viser.ViserServer`` without a scene.
        gaussians: on any device.
        cameras: input views, drawn as pyramids; the browser starts at the first, and its up axis is theirs. Without
            them it starts before the scene, with -y up.
        max_gaussians: of more, the most important (opacity times volume) are shown, with a log line.
        images: [V, 3, H, W] in [0, 1], small ones, shown in the pyramids of ``cameras``.
        frames: generated frames, drawn as smaller pyramids of another colour.

    Raises:
        ConfigurationError: ``max_gaussians`` below 1.
        BadSceneError: the scene has no Gaussians, values that are not finite, or a rotation of length zero.
    """
    if max_gaussians is not None and max_gaussians < 1:
        raise ConfigurationError(f"max_gaussians must be at least 1, got {max_gaussians}")
    if len(gaussians) == 0:
        raise BadSceneError("there are no Gaussians to show")
    shown = most_important(gaussians, max_gaussians)
    unit = _WIDTH / float(shown.log_scales.mean(dim=1).median().exp())
    centers = shown.means.numpy() * unit
    usable = math.isfinite(unit) and np.isfinite(centers).all()
    if not usable or not bool((shown.quaternions.norm(dim=1) > 0).all()):
        raise BadSceneError("the scene has NaN or infinite values, or a rotation of length zero; fit it again")
    backdrop = (shown.background.clamp(0, 1) * 255).round().byte().numpy()
    server.scene.set_background_image(np.tile(backdrop, (2, 2, 1)), format="png")
    server.scene.add_gaussian_splats(
        "/scene",
        centers=centers,
        covariances=_covariances(shown, unit),
        rgbs=base_colors(shown).numpy(),
        opacities=shown.opacity_logits.sigmoid().numpy()[:, None],
    )
    middle = np.median(centers, axis=0)
    extent = float(np.median(np.linalg.norm(centers - middle, axis=1)))
    if cameras is None or len(cameras) == 0:
        _start(server, middle - np.array([0, 0, 3 * extent]), middle, np.array([0.0, -1.0, 0.0]), extent)
        return ShownScene(unit)
    cameras = cameras.to("cpu", torch.float64)
    depth = _depth_of_interest(cameras, shown) * unit
    poses = [_pose(cameras[view], unit, depth) for view in range(len(cameras))]
    first = poses[0]
    _start(server, first.position, first.target, up_axis(cameras).numpy(), max(extent, depth))
    server.initial_camera.fov = first.angle
    server.initial_camera.near = 1.05 * _PYRAMID * depth  # who stands in a pyramid looks through its picture
    pictures = None if images is None else (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()

    def frustum(name: str, pose: Pose, camera: Cameras, high: float, color: tuple[int, int, int], view: int) -> Any:
        aspect, slope = camera.width / camera.height, math.tan(pose.angle / 2)
        return server.scene.add_camera_frustum(
            name,
            fov=pose.angle,
            aspect=aspect,
            scale=high * depth * math.cbrt(slope * slope * aspect / 3),  # viser's scale goes by the volume
            thickness=1.5,
            thickness_units="screen",
            color=color,
            image=None if pictures is None or view < 0 else pictures[view],
            wxyz=pose.rotation,
            position=pose.position,
        )

    frustums = [frustum(f"/cameras/{view}", pose, cameras, _PYRAMID, _VIEWS, view) for view, pose in enumerate(poses)]
    for number in range(0 if frames is None else len(frames)):
        assert frames is not None
        camera = frames[number].to("cpu", torch.float64)
        frustums.append(frustum(f"/frames/{number}", _pose(camera, unit, depth), camera, 0.4 * _PYRAMID, _FRAMES, -1))
    return ShownScene(unit, poses, frustums)


def _start(server: Any, position: np.ndarray, look_at: np.ndarray, up: np.ndarray, extent: float) -> None:
    server.scene.set_up_direction(tuple(up.tolist()))
    camera = server.initial_camera
    camera.position, camera.look_at = tuple(position.tolist()), tuple(look_at.tolist())
    camera.far = max(_FAR, 20 * extent)


def _pose(camera: Cameras, unit: float, depth: float) -> Pose:
    """``depth`` is in the browser's unit."""
    to_world = camera.camera_to_world[0].numpy()
    position = to_world[:3, 3] * unit
    x, y, z, w = Rotation.from_matrix(to_world[:3, :3]).as_quat()
    angle = 2 * math.atan(camera.height / (2 * float(camera.intrinsics[0, 1, 1])))
    return Pose(position, np.array([w, x, y, z]), position + depth * to_world[:3, 2], angle)


def most_important(gaussians: Gaussians, count: int | None) -> Gaussians:
    """At most ``count`` of the Gaussians, on the CPU, float32."""
    keep = slice(None) if count is None or count >= len(gaussians) else by_importance(gaussians)[:count].cpu()
    if not isinstance(keep, slice):
        logger.info("showing the %d most important of %d Gaussians", count, len(gaussians))
    parts = (gaussians.means, gaussians.quaternions, gaussians.log_scales, gaussians.opacity_logits, gaussians.sh)
    means, quaternions, log_scales, logits, sh = (part.detach().float().cpu()[keep] for part in parts)
    return Gaussians(means, quaternions, log_scales, logits, sh, gaussians.background.detach().float().cpu())


def _covariances(gaussians: Gaussians, unit: float) -> np.ndarray:
    """R S S R^T in the browser's unit of length, [N, 3, 3] float32."""
    rotation = Rotation.from_quat(gaussians.quaternions[:, [1, 2, 3, 0]].double().numpy()).as_matrix()
    widths = (gaussians.log_scales.double().exp() * unit).clamp(max=_WIDEST).numpy()
    spread = rotation * widths[:, None, :]
    return (spread @ spread.transpose(0, 2, 1)).astype(np.float32)


def _depth_of_interest(cameras: Cameras, gaussians: Gaussians) -> float:
    """How far before the first camera the browser turns around; world units."""
    first = cameras.world_to_camera[0]
    try:
        depth = float(first[2, :3] @ focus_point(cameras, gaussians.means) + first[2, 3])
    except ConfigurationError:
        depth = 0.0  # cameras that look outward
    return depth if depth > 0 else float((gaussians.means.double() - cameras.centers[0]).norm(dim=1).median())
