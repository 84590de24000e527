"""Small corrections of the poses of generated frames, found together with the scene.

Every frame that is no photograph has a twist xi = (omega, v) in se(3), zero at the start, and the pose exp(xi^) P: the
increment acts in the camera's own axes, after the given ``world_to_camera`` P. The photographs keep their poses to the
last bit; they fix the coordinate system, which poses and Gaussians could otherwise change together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from reconx_pl.errors import ConfigurationError
from reconx_pl.types import Cameras


@dataclass(frozen=True)
class PoseRefinement:
    """How fast poses may move. A rate is about what Adam moves a pose by in each step that draws its frame.

    A frame that is drawn n times can thus go about n (1 - final) / ln(1 / final) rates, with the defaults a third of n:
    more steps, or higher rates, for more frames.

    Args:
        rotation: degrees.
        translation: share of the median distance between the points and the camera. A share of 0.01 moves the picture
            as far as a turn of 0.57 degrees.
        final: share of both rates that is left at the last step; they decay exponentially.
        start: share of the steps before poses move. 0 measures best: the scene is smooth at first, and so is the way to
            the right pose; later it has taken the shape that the wrong pose gave it.
    """

    rotation: float = 0.2
    translation: float = 4e-3
    final: float = 0.05
    start: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.rotation < math.inf and 0 <= self.translation < math.inf):
            raise ConfigurationError(f"rates of poses must be >= 0 and finite, got {self}")
        if not (0 < self.final <= 1 and 0 <= self.start < 1):
            raise ConfigurationError(f"poses need final within (0, 1] and start within [0, 1), got {self}")

    def factor(self, progress: float) -> float:
        """Of the rates at a share of the steps; 0 before ``start``."""
        if progress < self.start:
            return 0.0
        return float(self.final ** ((progress - self.start) / (1.0 - self.start)))


def se3_exp(twists: Tensor) -> Tensor:
    """Rigid transforms [*, 4, 4] of twists [*, 6] = (omega, v): radians and units of length.

    The matrix exponential of [[omega^, v], [0, 0]]: exact, and differentiable at zero, where the closed form by
    Rodrigues divides by the angle.
    """
    x, y, z, *v = twists.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [zero, -z, y, v[0], z, zero, -x, v[1], -y, x, zero, v[2], zero, zero, zero, zero]
    return torch.linalg.matrix_exp(torch.stack(rows, dim=-1).unflatten(-1, (4, 4)))


class RefinedPoses(nn.Module):
    """The cameras of a fit, those of unknown frames with an increment that is optimised.

    One parameter a frame: Adam leaves alone the frames that a step does not draw.

    Args:
        cameras: V views as given.
        fixed: indices of the views that never move.
        means: [N, 3] points of the scene; their distance is the unit of translations.
        config: see ``PoseRefinement``.

    Raises:
        ConfigurationError: no view is known, so that nothing holds the coordinate system.
    """

    def __init__(self, cameras: Cameras, fixed: set[int], means: Tensor, config: PoseRefinement) -> None:
        super().__init__()
        if not fixed:
            raise ConfigurationError(
                "poses are refined against known views, and there are none: name the photographs among the frames "
                "(input_views), or fit with poses=None"
            )
        self.given = cameras
        self.free = [view for view in range(len(cameras)) if view not in fixed]
        # Twists are in units of their first rates, so that one learning rate, 1, does for radians and world units.
        distance = torch.cdist(cameras.centers, means).median(dim=1).values  # [V]
        units = cameras.world_to_camera.new_full((len(cameras), 6), math.radians(config.rotation))
        units[:, 3:] = (config.translation * distance)[:, None]
        self.register_buffer("units", units)
        self.twists = nn.ParameterDict({str(view): nn.Parameter(units.new_zeros(6)) for view in self.free})

    def pick(self, views: Sequence[int]) -> Cameras:
        """Cameras of some views, differentiable by their twists."""
        moving = [place for place, view in enumerate(views) if str(view) in self.twists]
        poses = self.given.world_to_camera[list(views)]
        if moving:
            chosen = [views[place] for place in moving]
            twists = torch.stack([self.twists[str(view)] for view in chosen]) * self.get_buffer("units")[chosen]
            moved = (se3_exp(twists.double()) @ poses[moving].double()).to(poses.dtype)
            poses = poses.index_copy(0, torch.tensor(moving, device=poses.device), moved)
        return replace(self.given[list(views)], world_to_camera=poses)

    @torch.no_grad()
    def refined(self) -> Cameras:
        """All cameras, detached; the known ones are the given ones."""
        return self.pick(range(len(self.given)))


def pose_changes(before: Cameras, after: Cameras) -> tuple[Tensor, Tensor]:
    """By how much poses differ: angles [V] in degrees, and distances of the centres [V] in world units."""
    a, b = before.world_to_camera.double(), after.world_to_camera.double()
    turn = b[:, :3, :3] @ a[:, :3, :3].transpose(1, 2)
    # atan2 of |2 sin| and |2 cos| parts: acos of the trace loses small angles
    skew = torch.stack(
        [turn[:, 2, 1] - turn[:, 1, 2], turn[:, 0, 2] - turn[:, 2, 0], turn[:, 1, 0] - turn[:, 0, 1]], dim=1
    )
    trace = turn.diagonal(dim1=1, dim2=2).sum(dim=1)
    angle = torch.rad2deg(torch.atan2(skew.norm(dim=1), trace - 1.0))
    centers = (-(m[:, :3, :3].transpose(1, 2) @ m[:, :3, 3:]).squeeze(2) for m in (a, b))
    first, second = centers
    return angle, (second - first).norm(dim=1)
