"""Closed camera paths that pass through photographs: frame 0 follows the last frame, and every photograph has a frame.

They are not differentiable, and on the device and of the type of their input.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.cameras import interpolate_cameras, with_views
from reconx_pl.types import Cameras


def closed_loop(cameras: Cameras, frames: int) -> tuple[Cameras, list[int]]:
    """From each photograph to the next and from the last to the first, as far as one clip reaches each time.

    Args:
        cameras: V >= 3 photographs; of two the loop would return the way it came.
        frames: T of a clip.

    Returns:
        V (T - 1) cameras, and the places of the photographs among them, T - 1 apart.

    Raises:
        ConfigurationError: fewer than three photographs, or two frames.
    """
    views, step = len(cameras), frames - 1
    if views < 3 or step < 1:
        raise ConfigurationError(
            f"a loop takes 3 photographs and clips of 2 frames at least, got {views} and {frames}; around two "
            "photographs take an orbit (path_through)"
        )
    positions = torch.arange(views * step, dtype=torch.float64) / step
    places = [view * step for view in range(views)]
    return with_views(interpolate_cameras(cameras[[*range(views), 0]], positions), places, cameras), places


def path_through(path: Cameras, cameras: Cameras) -> tuple[Cameras, list[int]]:
    """A closed path, an orbit for instance, bent so that it passes through photographs in their order.

    Each photograph takes the frame whose camera is nearest to its own, the first one frame 0; the path is turned round
    where it goes against their order, and with two photographs goes the shorter way to the second. What is left between
    a photograph and its frame, a rigid motion in camera axes, is spread over the frames to its neighbours (spherical
    rotation, linear centre); so are the intrinsics.

    Args:
        path: M cameras, closed.
        cameras: V >= 2 photographs, of the same image size.

    Returns:
        M cameras, those of the photographs among them to the bit, and the places of the photographs, from 0.

    Raises:
        ConfigurationError: photographs that do not lie along the path one after the other, or are too dense for it.
    """
    total, views = len(path), len(cameras)
    if views < 2 or (path.height, path.width) != (cameras.height, cameras.width):
        raise ConfigurationError(
            f"a path is bent through two photographs of its image size or more, got {views} of {cameras.height} x "
            f"{cameras.width} pixels for a path of {path.height} x {path.width}"
        )
    nearest = _distance(path, cameras).argmin(dim=1).tolist()
    ways = [(way, [way * (frame - nearest[0]) % total for frame in nearest]) for way in (1, -1)]
    ways = [(way, places) for way, places in ways if all(a < b for a, b in pairwise(places))]
    if not ways:
        raise ConfigurationError(
            f"photographs lie nearest to the frames {nearest} of a path of {total}: give them in the order in which "
            "the path passes them, or a path of more frames"
        )
    direction, places = min(ways, key=lambda one: one[1][1])  # of two photographs both ways are in order
    path = path[[(nearest[0] + direction * frame) % total for frame in range(total)]]
    knots = [*range(views), 0]
    off = cameras.world_to_camera.double() @ torch.linalg.inv(path.world_to_camera[places].double())
    positions = [
        view + step / (end - start)
        for view, (start, end) in enumerate(pairwise([*places, total]))
        for step in range(end - start)
    ]
    bend = interpolate_cameras(Cameras(off, cameras.intrinsics.double(), path.height, path.width)[knots], positions)
    bent = replace(
        path,
        world_to_camera=(bend.world_to_camera @ path.world_to_camera.double()).to(path.world_to_camera),
        intrinsics=bend.intrinsics.to(path.intrinsics),
    )
    return with_views(bent, places, cameras), places


def _distance(path: Cameras, cameras: Cameras) -> Tensor:
    """[V, M]: way over the extent of the path, and angle in radians, added."""
    there, here = path.centers.double(), cameras.centers.double()
    extent = (there - there.mean(dim=0)).norm(dim=-1).max().clamp(min=1e-12)
    way = torch.cdist(here, there) / extent
    one, other = cameras.world_to_camera.double()[:, :3, :3], path.world_to_camera.double()[:, :3, :3]
    turn = torch.einsum("vij,mij->vm", one, other)  # trace of the rotation between them
    return way + ((turn - 1) / 2).clamp(-1, 1).acos()
