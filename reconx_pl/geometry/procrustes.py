"""The similarity that takes one set of points to another: Umeyama, PAMI 1991, with weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.types import Cameras

_LINE = 1e-10  # of the largest variance: what is spread less across its longest axis lies on a line


@dataclass(frozen=True)
class Similarity:
    """x -> scale * rotation @ x + translation; leading axes are batches.

    Args:
        scale: [*], positive, target units for one source unit.
        rotation: [*, 3, 3].
        translation: [*, 3] target units.
    """

    scale: Tensor  # [*]
    rotation: Tensor  # [*, 3, 3]
    translation: Tensor  # [*, 3]

    def apply(self, points: Tensor) -> Tensor:
        """Source points [*, N, 3] to target points [*, N, 3]."""
        turned = points @ self.rotation.to(points).transpose(-1, -2)
        return self.scale.to(points)[..., None, None] * turned + self.translation.to(points)[..., None, :]

    def inverse(self) -> Similarity:
        """The similarity that undoes this one."""
        back = self.rotation.transpose(-1, -2)
        return Similarity(
            1 / self.scale, back, -(back @ self.translation[..., None]).squeeze(-1) / self.scale[..., None]
        )

    def transform_cameras(self, cameras: Cameras) -> Cameras:
        """Cameras of the source world to cameras of the target world that see the moved points in the same pixels.

        Depths grow by ``scale``, as the units of the world do; intrinsics stay. Not for batches.
        """
        w2c = cameras.world_to_camera.double()
        scale, rotation, translation = (part.to(w2c) for part in (self.scale, self.rotation, self.translation))
        pose = w2c.clone()
        pose[:, :3, :3] = w2c[:, :3, :3] @ rotation.T
        pose[:, :3, 3] = scale * w2c[:, :3, 3] - pose[:, :3, :3] @ translation
        return replace(cameras, world_to_camera=pose.to(cameras.world_to_camera))


def fit_similarity(
    source: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    with_scale: bool = True,
) -> Similarity:
    """The similarity with the least weighted sum of squares of scale * rotation @ source + translation - target.

    Umeyama, "Least-squares estimation of transformation parameters between two point patterns", eqs. 40 to 43; no
    mirror images. Computed in float64.

    Args:
        source: [*, N, 3]; leading axes are fitted each by itself.
        target: [*, N, 3].
        weights: [*, N], not negative; None counts every point alike.
        with_scale: False keeps the scale at 1.

    Returns:
        a similarity of float64 tensors on the device of ``source``.

    Raises:
        ConfigurationError: shapes that do not go together.
        BadSceneError: the points, or those with a weight, lie on a line or are not finite: no rotation follows.
    """
    if source.shape != target.shape or source.shape[-1:] != (3,) or source.ndim < 2:
        raise ConfigurationError(
            f"a similarity is fitted to points [N, 3] and [N, 3], got {tuple(source.shape)} and {tuple(target.shape)}"
        )
    if weights is not None and weights.shape != source.shape[:-1]:
        raise ConfigurationError(f"weights {tuple(weights.shape)} do not go with points {tuple(source.shape)}")
    x, y = source.double(), target.double()
    share = torch.ones_like(x[..., 0]) if weights is None else weights.double()
    share = share / share.sum(-1, keepdim=True)
    mean_x, mean_y = ((share[..., None] * points).sum(-2, keepdim=True) for points in (x, y))
    x, y = x - mean_x, y - mean_y
    weighted = share[..., None] * x
    covariance = y.transpose(-1, -2) @ weighted  # [*, 3, 3], target by source
    if not torch.isfinite(covariance).all():
        raise BadSceneError("points or weights are not finite, or all weights are zero: no similarity can be fitted")
    u, singular, vt = torch.linalg.svd(covariance)
    if (singular[..., 1] <= _LINE * singular[..., 0].clamp(min=torch.finfo(x.dtype).tiny)).any():
        raise BadSceneError(
            "the points lie on a line or in one place, so that no rotation follows; give at least three that do not"
        )
    sign = torch.ones_like(singular)
    sign[..., 2] = torch.linalg.det(u @ vt).sign()
    rotation = (u * sign[..., None, :]) @ vt
    scale = (singular * sign).sum(-1) / (weighted * x).sum((-1, -2)) if with_scale else torch.ones_like(sign[..., 0])
    moved = scale[..., None] * (rotation @ mean_x.transpose(-1, -2)).squeeze(-1)
    return Similarity(scale, rotation, mean_y.squeeze(-2) - moved)
