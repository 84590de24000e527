"""Pinhole cameras: project, unproject, resize, crop, interpolate, epipolar geometry.

Conventions as in ``reconx_pl.types``: OpenCV axes, ``world_to_camera``, intrinsics in pixels with the image corner at
(0, 0). In that convention a resize is a plain multiplication of the intrinsics and a crop a plain subtraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.types import Cameras

_MIN_DEPTH = 1e-8  # world units; keeps the division finite for points on the camera's own plane


def project(points: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Project world points into every view.

    Args:
        points: [V, N, 3], one set a view, or [N, 3], shared by all views; world units.
        cameras: V views.

    Returns:
        pixels [V, N, 2] as (x, y), corner of the image at (0, 0), and depth [V, N] along the optical axis, world units.
        Pixels are finite everywhere but mean nothing where depth <= 0; the caller masks by depth and by image bounds.
    """
    rotation, translation = cameras.world_to_camera[..., :3, :3], cameras.world_to_camera[..., :3, 3]
    in_camera = points @ rotation.transpose(-1, -2) + translation[..., None, :]  # [V, N, 3]
    depth = in_camera[..., 2]
    safe = torch.where(depth.abs() < _MIN_DEPTH, torch.full_like(depth, _MIN_DEPTH), depth)
    homogeneous = in_camera @ cameras.intrinsics.transpose(-1, -2)  # [V, N, 3]
    return homogeneous[..., :2] / safe[..., None], depth


def projection_matrices(cameras: Cameras) -> Tensor:
    """Intrinsics times pose [V, 3, 4], which takes world points to pixels times depth."""
    return cameras.intrinsics @ cameras.world_to_camera[..., :3, :]


def in_view(points: Tensor, cameras: Cameras) -> Tensor:
    """Whether points fall into the images of cameras, occlusion aside.

    Args:
        points: [N, 3] world points.
        cameras: V views.

    Returns:
        [V, N] bool.
    """
    pixels, z = project(points, cameras)
    size = pixels.new_tensor([cameras.width, cameras.height])
    return (z > 0) & (pixels >= 0).all(-1) & (pixels < size).all(-1)


def unproject(depth: Tensor, cameras: Cameras) -> Tensor:
    """World point of every pixel centre (x + 0.5, y + 0.5).

    Args:
        depth: [V, H, W] along the optical axis, world units; a depth of 0 gives the camera's centre, mask it yourself.
        cameras: V views of H x W pixels.

    Returns:
        points [V, H, W, 3], world units.

    Raises:
        ConfigurationError: the depth maps are not of the cameras' image size.
    """
    if tuple(depth.shape[-2:]) != (cameras.height, cameras.width):
        raise ConfigurationError(
            f"depth of {tuple(depth.shape[-2:])} pixels does not go with cameras of "
            f"{(cameras.height, cameras.width)}; resize the cameras with resize_cameras first"
        )
    rays = pixel_rays(cameras).to(depth.dtype)  # [V, H, W, 3]
    in_camera = rays * depth[..., None]
    rotation, translation = cameras.world_to_camera[..., :3, :3], cameras.world_to_camera[..., :3, 3]
    # R^T (x - t), written for row vectors
    return (in_camera - translation[..., None, None, :]) @ rotation[..., None, :, :]


def pixel_rays(cameras: Cameras) -> Tensor:
    """Rays through the pixel centres in camera axes, with z = 1: [V, H, W, 3]."""
    intrinsics = cameras.intrinsics
    y, x = torch.meshgrid(
        torch.arange(cameras.height, device=intrinsics.device, dtype=intrinsics.dtype) + 0.5,
        torch.arange(cameras.width, device=intrinsics.device, dtype=intrinsics.dtype) + 0.5,
        indexing="ij",
    )
    pixels = torch.stack([x, y, torch.ones_like(x)], dim=-1)  # [H, W, 3]
    return pixels @ torch.linalg.inv(intrinsics).transpose(-1, -2)[..., None, :, :]


def resize_cameras(cameras: Cameras, height: int, width: int) -> Cameras:
    """Cameras of the same views after the images are resized to ``height`` x ``width``, each axis by its factor."""
    if height <= 0 or width <= 0:
        raise ConfigurationError(f"cannot resize images to {height} x {width} pixels")
    scale = cameras.intrinsics.new_tensor([width / cameras.width, height / cameras.height, 1.0])
    return replace(cameras, intrinsics=cameras.intrinsics * scale[:, None], height=height, width=width)


def crop_cameras(cameras: Cameras, top: int, left: int, height: int, width: int) -> Cameras:
    """Cameras of the same views after the images are cut to rows top..top+height and columns left..left+width.

    Raises:
        ConfigurationError: the window is empty or leaves the image.
    """
    if min(top, left) < 0 or min(height, width) <= 0 or top + height > cameras.height or left + width > cameras.width:
        raise ConfigurationError(
            f"a crop of {height} x {width} at row {top}, column {left} leaves an image of "
            f"{cameras.height} x {cameras.width} pixels"
        )
    intrinsics = cameras.intrinsics.clone()
    intrinsics[..., 0, 2] -= left
    intrinsics[..., 1, 2] -= top
    return replace(cameras, intrinsics=intrinsics, height=height, width=width)


def resize_and_crop(cameras: Cameras, height: int, width: int) -> tuple[Cameras, tuple[int, int], tuple[int, int]]:
    """The protocol of pixelSplat, MVSplat and DepthSplat: the short side fits, then a centre crop.

    Do with the images what the result says: resize them to ``resized`` (Lanczos), then cut ``height`` x ``width`` at
    ``(top, left)``.

    Args:
        cameras: V views of the original size.
        height: rows wanted, pixels.
        width: columns wanted, pixels.

    Returns:
        cameras of height x width, the intermediate size ``resized`` = (rows, columns), and the offset (top, left).
    """
    if height <= 0 or width <= 0:
        raise ConfigurationError(f"cannot resize images to {height} x {width} pixels")
    scale = max(height / cameras.height, width / cameras.width)
    resized = max(height, round(cameras.height * scale)), max(width, round(cameras.width * scale))
    top, left = (resized[0] - height) // 2, (resized[1] - width) // 2
    return crop_cameras(resize_cameras(cameras, *resized), top, left, height, width), resized, (top, left)


def interpolate_cameras(cameras: Cameras, positions: Tensor | Sequence[float]) -> Cameras:
    """Cameras between the given ones: spherical rotation, linear centre, linear intrinsics.

    Args:
        cameras: V views, the knots at positions 0, 1, ..., V - 1.
        positions: [M] in units of the view index, each within [0, V - 1].

    Returns:
        M views, on the device and of the type of ``cameras``. Not differentiable.

    Raises:
        ConfigurationError: a position outside the knots.
    """
    at = np.asarray(torch.as_tensor(positions, dtype=torch.float64).detach().cpu())
    views = len(cameras)
    if at.ndim != 1 or not np.isfinite(at).all() or (at < 0).any() or (at > views - 1).any():
        raise ConfigurationError(
            f"positions must be a list within [0, {views - 1}] for {views} views, got {at.tolist()}"
        )
    w2c = cameras.world_to_camera.detach().double().cpu().numpy()
    intrinsics = cameras.intrinsics.detach().double().cpu().numpy()
    left = np.minimum(np.floor(at).astype(int), max(views - 2, 0))
    right = np.minimum(left + 1, views - 1)
    weight = at - left
    to_world = w2c[:, :3, :3].transpose(0, 2, 1)
    centers = -np.einsum("vij,vj->vi", to_world, w2c[:, :3, 3])
    start, end = Rotation.from_matrix(to_world[left]), Rotation.from_matrix(to_world[right])
    turn = Rotation.from_rotvec((start.inv() * end).as_rotvec() * weight[:, None])
    rotation = (start * turn).as_matrix().transpose(0, 2, 1)  # [M, 3, 3] world to camera
    center = centers[left] + weight[:, None] * (centers[right] - centers[left])
    pose = np.tile(np.eye(4), (len(at), 1, 1))
    pose[:, :3, :3] = rotation
    pose[:, :3, 3] = -np.einsum("mij,mj->mi", rotation, center)
    between = intrinsics[left] + weight[:, None, None] * (intrinsics[right] - intrinsics[left])
    return replace(
        cameras,
        world_to_camera=torch.from_numpy(pose).to(cameras.world_to_camera),
        intrinsics=torch.from_numpy(between).to(cameras.intrinsics),
    )


def with_views(cameras: Cameras, places: Sequence[int], views: Cameras) -> Cameras:
    """A copy of ``cameras`` that has ``views`` at ``places``, to the last bit where both are of one type.

    Args:
        cameras: V views.
        places: M of their numbers; negative ones count from the end.
        views: M views.
    """
    world_to_camera, intrinsics = cameras.world_to_camera.clone(), cameras.intrinsics.clone()
    world_to_camera[list(places)] = views.world_to_camera.to(world_to_camera)
    intrinsics[list(places)] = views.intrinsics.to(intrinsics)
    return replace(cameras, world_to_camera=world_to_camera, intrinsics=intrinsics)


def camera_distance(cameras: Cameras, others: Cameras) -> Tensor:
    """Distance between optical centres [V, M], world units; the angle in radians if ``others`` share one."""
    centers, other_centers = cameras.centers.double(), others.centers.double()
    distance = torch.cdist(centers, other_centers)  # [V, M]
    reach = torch.cdist(other_centers, other_centers).max()
    if reach > 1e-6 * (1 + other_centers.abs().max()):
        return distance
    rotations, other_rotations = cameras.world_to_camera[:, :3, :3], others.world_to_camera[:, :3, :3]
    trace = torch.einsum("vij,mij->vm", rotations.double(), other_rotations.double())
    return ((trace - 1) / 2).clamp(-1, 1).acos()


def fundamental_matrix(cameras: Cameras, i: int, j: int) -> Tensor:
    """F with x_j^T F x_i = 0 for the homogeneous pixels of one world point (Hartley and Zisserman, eq. 9.1).

    Returns:
        [3, 3] of Frobenius norm 1; zero if both views have the same centre, where every pair of pixels fulfils it.
    """
    w2c, intrinsics = cameras.world_to_camera.double(), cameras.intrinsics.double()
    relative = w2c[j] @ torch.linalg.inv(w2c[i])
    x, y, z = relative[:3, 3].unbind()
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3)
    essential = cross @ relative[:3, :3]
    matrix = torch.linalg.inv(intrinsics[j]).T @ essential @ torch.linalg.inv(intrinsics[i])
    norm = torch.linalg.matrix_norm(matrix)
    return (matrix / norm if norm > 0 else matrix).to(cameras.intrinsics.dtype)


def relative_to_first(points: Tensor, world_to_camera: Tensor) -> Tensor:
    """World points in the frame of a camera, usually the first of the clip.

    Args:
        points: [*, N, 3] world units.
        world_to_camera: [*, 4, 4] of that camera.

    Returns:
        [*, N, 3] world units, camera axes.
    """
    rotation, translation = world_to_camera[..., :3, :3], world_to_camera[..., :3, 3]
    kind = points.device.type
    # training calls this within autocast, which would round coordinates to bfloat16: 8 bits of a scene's extent
    exact = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
    with exact:
        return points @ rotation.transpose(-1, -2) + translation[..., None, :]
