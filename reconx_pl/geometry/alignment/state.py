"""The unknowns of an alignment, in the parametrisation that DUSt3R's optimiser steps in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

FOCAL_SCALE = 20.0  # a focal parameter is 20 log f: focals move slowly


@dataclass
class AlignmentState:
    """Raw parameters: quaternions of any norm, translations as sign(t) log(1 + |t|), logarithms of scales and depths.

    ``pair_*`` take the frame of an edge's first camera to the world, ``view_*`` that of a view's camera.
    """

    pair_quaternion: Tensor  # [E, 4] xyzw
    pair_translation: Tensor  # [E, 3]
    pair_log_scale: Tensor  # [E]
    view_quaternion: Tensor  # [V, 4] xyzw
    view_translation: Tensor  # [V, 3]
    view_focal: Tensor  # [V] 20 log(pixels)
    log_depth: list[Tensor]  # per group of views: [Vg, H * W]

    def parameters(self) -> list[Tensor]:
        """All of them, as leaves that want gradients."""
        named = [
            self.pair_quaternion,
            self.pair_translation,
            self.pair_log_scale,
            self.view_quaternion,
            self.view_translation,
            self.view_focal,
            *self.log_depth,
        ]
        return [tensor.requires_grad_() for tensor in named]


@dataclass(frozen=True)
class Gauge:
    """What is held: the mean of the pairs' scales, or cameras.

    Args:
        pair_scale: geometric mean of the pairs' scales; None leaves it to the known cameras.
        poses: [V] bool, held.
        rotation: [V, 3, 3] camera to world of the held.
        translation: [V, 3].
        lenses: [V] bool, held.
        focal: [V] pixels.
        ruler: distances count in the unit of the pair that says them, times this; None: in world units.
    """

    pair_scale: float | None
    poses: Tensor
    rotation: Tensor
    translation: Tensor
    lenses: Tensor
    focal: Tensor
    ruler: float | None = None

    @classmethod
    def free(cls, views: int, pair_scale: float, like: Tensor) -> Gauge:
        """No camera is held."""
        unknown = torch.zeros(views, dtype=torch.bool, device=like.device)
        return cls(
            pair_scale,
            unknown,
            torch.eye(3).to(like).repeat(views, 1, 1),
            torch.zeros(views, 3).to(like),
            unknown,
            torch.ones(views).to(like),
        )


class Geometry(NamedTuple):
    """What the parameters mean."""

    pair_matrix: Tensor  # [E, 3, 3] scale times rotation
    pair_offset: Tensor  # [E, 3] scale times translation
    rotation: Tensor  # [V, 3, 3] camera to world
    translation: Tensor  # [V, 3]
    focal: Tensor  # [V] pixels
    ruler: Tensor | None = None  # [E] what the distances of an edge are multiplied by


def geometry_of(state: AlignmentState, gauge: Gauge) -> Geometry:
    """Differentiable in the raw parameters; those of what is held get no gradient."""
    log_scale = state.pair_log_scale
    if gauge.pair_scale is not None:
        log_scale = log_scale - log_scale.mean()
    scale = log_scale.exp() * (gauge.pair_scale or 1.0)
    rotation = torch.where(gauge.poses[:, None, None], gauge.rotation, matrices(state.view_quaternion))
    translation = torch.where(gauge.poses[:, None], gauge.translation, unsquashed(state.view_translation))
    return Geometry(
        scale[:, None, None] * matrices(state.pair_quaternion),
        scale[:, None] * unsquashed(state.pair_translation),
        rotation,
        translation,
        torch.where(gauge.lenses, gauge.focal, (state.view_focal / FOCAL_SCALE).exp()),
        None if gauge.ruler is None else gauge.ruler / scale,
    )


def squashed(translation: Tensor) -> Tensor:
    """sign(t) log(1 + |t|)."""
    return translation.sign() * translation.abs().log1p()


def unsquashed(parameter: Tensor) -> Tensor:
    """The inverse of ``squashed``."""
    return parameter.sign() * parameter.abs().expm1()


def matrices(quaternion: Tensor) -> Tensor:
    """xyzw of any norm [*, 4] to rotations [*, 3, 3]: I + 2 w [v] + 2 [v]^2, v and w of the unit quaternion."""
    x, y, z, w = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(*x.shape, 3, 3)
    identity = torch.eye(3, dtype=x.dtype, device=x.device)
    return identity + 2 * (w[..., None, None] * cross + cross @ cross)


def quaternions(rotation: Tensor) -> Tensor:
    """Rotations [N, 3, 3] to unit quaternions xyzw [N, 4]."""
    found = Rotation.from_matrix(rotation.detach().double().cpu().numpy()).as_quat()
    return torch.from_numpy(found).to(rotation)
