"""Mistakes such as a generator makes, put into true frames: blurred patches, objects in wrong places, shifted poses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from scipy.stats import rankdata
from torch import Tensor

from reconx_pl.geometry.cameras import project
from reconx_pl.types import Cameras, PointCloud

SHARE = 1 / 3  # of the training frames
PATCH = 0.4  # side of a patch or an object, share of the frame's sides: two of them cover a third of the picture
PATCHES = 2  # blurred ones a frame
BLUR = 0.05  # standard deviation of the blur, share of the short side
TURN = 1.0  # degrees that a pose turns by, about a random axis
MOVE = 0.02  # that its centre moves by, share of the median distance of the points that it sees


@dataclass(frozen=True)
class Corrupted:
    """Frames and cameras with mistakes in some, and where they are.

    Attributes:
        wrong: [V, H, W], 1 where a picture is wrong; of a shifted pose no pixel, the picture itself is true.
        views: the corrupted frames.
    """

    frames: Tensor  # [V, 3, H, W]
    cameras: Cameras
    wrong: Tensor
    views: tuple[int, ...]


def corrupted_views(training: Sequence[int], seed: int) -> tuple[int, ...]:
    """Every third of the training views, from a random start: the mistakes are spread over the scene as a generator's
    are, whose frames lie between known ones."""
    start = int(torch.randint(3, (1,), generator=torch.Generator().manual_seed(seed)))
    return tuple(training[start::3])


def corrupt(frames: Tensor, cameras: Cameras, cloud: PointCloud, views: Sequence[int], seed: int) -> Corrupted:
    """Every frame of ``views`` gets all three: two blurred patches, an object of another frame, a shifted pose.

    Args:
        frames: [V, 3, H, W] in [0, 1].
        cameras: of the frames.
        cloud: tells how far the scene is from a camera.
        views: the frames to corrupt.
        seed: of places, axes and directions.
    """
    g = torch.Generator().manual_seed(seed + 1)
    frames, wrong = frames.clone(), torch.zeros_like(frames[:, 0])
    poses = cameras.world_to_camera.clone()
    true = frames.clone()
    for view in views:
        blurred = _blur(true[view], BLUR * min(frames.shape[-2:]))
        for _ in range(PATCHES):
            rows, columns = _window(frames, g)
            frames[view, :, rows, columns] = blurred[:, rows, columns]
            wrong[view, rows, columns] = 1
        source = int(torch.randint(len(frames), (1,), generator=g))
        rows, columns = _window(frames, g)
        from_rows, from_columns = _window(frames, g)
        ellipse = _ellipse(rows.stop - rows.start, columns.stop - columns.start)
        piece = true[source][:, from_rows, from_columns]
        frames[view, :, rows, columns] = torch.where(ellipse, piece, frames[view, :, rows, columns])
        wrong[view, rows, columns] = torch.maximum(wrong[view, rows, columns], ellipse.float())
        poses[view] = _shifted(poses[view], _distance(cloud, cameras[view]), g)
    return Corrupted(frames, replace(cameras, world_to_camera=poses), wrong, tuple(views))


def told_apart(score: Tensor, wrong: Tensor) -> float:
    """Share of the pairs of a wrong and a right pixel in which the right one has the higher score: 0.5 is chance."""
    ranks = torch.from_numpy(rankdata(score.double().flatten().numpy()))
    bad = wrong.flatten() > 0
    good_count, bad_count = int((~bad).sum()), int(bad.sum())
    return float((ranks[~bad].sum() - good_count * (good_count + 1) / 2) / (good_count * bad_count))


def _window(frames: Tensor, g: torch.Generator) -> tuple[slice, slice]:
    size = [round(PATCH * side) for side in frames.shape[-2:]]
    corner = [
        int(torch.randint(side - part + 1, (1,), generator=g))
        for side, part in zip(frames.shape[-2:], size, strict=True)
    ]
    return slice(corner[0], corner[0] + size[0]), slice(corner[1], corner[1] + size[1])


def _ellipse(height: int, width: int) -> Tensor:  # [h, w] bool
    y = torch.linspace(-1, 1, height)[:, None]
    x = torch.linspace(-1, 1, width)[None, :]
    return x * x + y * y <= 1


def _blur(image: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(3 * sigma)
    window = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    window = (window / window.sum()).expand(3, 1, 1, -1)
    padded = F.pad(image[None], (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, window, groups=3), window.transpose(2, 3), groups=3)[0]


def _distance(cloud: PointCloud, camera: Cameras) -> float:
    pixels, depth = project(cloud.points, camera)
    seen = (depth > 0) & (pixels >= 0).all(-1) & (pixels[..., 0] < camera.width) & (pixels[..., 1] < camera.height)
    return float(depth[seen].median())


def _shifted(pose: Tensor, distance: float, g: torch.Generator) -> Tensor:
    axis, direction = (F.normalize(torch.randn(3, generator=g, dtype=torch.float64), dim=0) for _ in range(2))
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = torch.from_numpy(Rotation.from_rotvec(math.radians(TURN) * axis.numpy()).as_matrix())
    turn[:3, 3] = MOVE * distance * direction
    return (turn @ pose.double()).to(pose)
