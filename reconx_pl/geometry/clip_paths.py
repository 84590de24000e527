"""Camera paths of generated clips: T cameras from each view to the next, through every view exactly.

Both are on the device and of the type of their input; neither is differentiable.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.cameras import interpolate_cameras, with_views
from reconx_pl.types import Cameras

_OPPOSITE = 1e-6  # length of an interpolated axis below which it has no direction


def path_cameras(views: Cameras, frames: int) -> Cameras:
    """Cameras of all frames, interpolated between neighbouring input views, which keep theirs to the last bit.

    Args:
        views: C >= 2 input views in the order of visiting.
        frames: T of each clip from one to the next, both included.

    Returns:
        (C - 1) (T - 1) + 1 cameras; input view i is number i (T - 1).
    """
    step = frames - 1
    input_places = [view * step for view in range(len(views))]
    positions = torch.linspace(0, len(input_places) - 1, input_places[-1] + 1, dtype=torch.float64)
    return with_views(interpolate_cameras(views, positions), input_places, views)


def viewcrafter_path(cameras: Cameras, frames: int) -> Cameras:
    """The path on which ViewCrafter renders its point clouds (Yu et al., 2024), with its timing.

    From one view to the next, camera j = 0 ... T - 2 stands at u = j / T, and then the next view follows: the last step
    is twice as long as the others. The centre is linear in u. So are the forward and the down axis; forward is then
    normalised, right = down x forward normalised, down = forward x right. Intrinsics are linear in j / (T - 2): they
    arrive one camera before the pose does. ``path_cameras`` is even; this one is for renders as the model saw them.

    Args:
        cameras: n >= 2 views in the order of visiting.
        frames: T >= 2 of each clip from one to the next, both included.

    Returns:
        (n - 1) (T - 1) + 1 cameras; view i is number i (T - 1), to the last bit.

    Raises:
        ConfigurationError: fewer than two views or frames; neighbours of one and the same pose, which the original
            refuses as well; neighbours that look in opposite directions.
    """
    step = frames - 1
    if len(cameras) < 2 or step < 1:
        raise ConfigurationError(
            f"a path needs at least 2 views and clips of 2 frames, got {len(cameras)} and {frames} frames"
        )
    pose = cameras.world_to_camera.detach().double()
    same = (pose[1:] == pose[:-1]).flatten(1).all(dim=1)
    if same.any():
        view = int(same.nonzero()[0])
        raise ConfigurationError(
            f"views {view} and {view + 1} have one and the same pose, and a ViewCrafter path has no way from one to "
            "the other; remove one of them, or take the path interpolated"
        )
    axes = pose[:, :3, :3]  # rows right, down, forward in world coordinates
    centers = -(axes.transpose(1, 2) @ pose[:, :3, 3:])[..., 0]
    even = torch.arange(step, dtype=torch.float64, device=pose.device)
    share = even / frames
    forward, down = _between(axes[:, 2], share), _between(axes[:, 1], share)
    right = torch.linalg.cross(down, forward)
    lengths = torch.stack([forward.norm(dim=1), right.norm(dim=1)])
    if (lengths < _OPPOSITE).any():
        view = int((lengths < _OPPOSITE).any(dim=0).nonzero()[0]) // step
        raise ConfigurationError(
            f"views {view} and {view + 1} look in opposite directions, or stand upside down to each other; give a view "
            "between them, or take the path interpolated"
        )
    forward, right = forward / lengths[0, :, None], right / lengths[1, :, None]
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
    path = torch.eye(4, dtype=torch.float64, device=pose.device).repeat(len(rotation) + 1, 1, 1)
    path[:-1, :3, :3] = rotation
    path[:-1, :3, 3] = -(rotation @ _between(centers, share)[..., None])[..., 0]
    lenses = cameras.intrinsics.detach().double()
    way = replace(
        cameras,
        world_to_camera=path.to(cameras.world_to_camera),
        intrinsics=torch.cat([_between(lenses, even / max(step - 1, 1)), lenses[-1:]]).to(cameras.intrinsics),
    )
    return with_views(way, range(0, len(path), step), cameras)


def _between(knots: Tensor, share: Tensor) -> Tensor:
    """Linear from each knot to the next: [n, *] at shares [S] of the way to [(n - 1) S, *]."""
    share = share.view(1, -1, *(1 for _ in knots.shape[1:]))
    return ((1 - share) * knots[:-1, None] + share * knots[1:, None]).flatten(0, 1)
