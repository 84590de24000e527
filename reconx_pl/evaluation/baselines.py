"""What the painted scene is compared with on the same targets."""

from __future__ import annotations

import torch
from torch import Tensor

from reconx_pl.types import Cameras

METHODS = {
    "reconx": "ReconX: splats fitted to the painted frames",
    "painted": "Painted frames themselves",
    "two_views": "Splats from the two input views alone",
    "nearest_input": "Nearest input view, copied",
    "ceiling": "Splats from the true frames (ceiling)",
}


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


def nearest_view(targets: Cameras, inputs: Cameras) -> Tensor:
    """Index of the nearest input view of each target: [V]; the first one of equals."""
    return camera_distance(targets, inputs).argmin(dim=1)


def ceiling_split(frames: int) -> tuple[list[int], list[int]]:
    """Frames to fit (even ones and the last, an input view anyway) and to score (the odd ones between)."""
    fitted = sorted({*range(0, frames, 2), frames - 1})
    return fitted, [index for index in range(frames) if index not in fitted]
