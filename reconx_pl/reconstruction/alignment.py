"""Poses of generated frames by global alignment with the input views held fixed (pose policy "aligned")."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError
from reconx_pl.geometry.estimators.base import PointMapEstimator, Reconstruction, arguments_of
from reconx_pl.types import Cameras


class AligningEstimator(Protocol):
    """An estimator that finds cameras while it holds some of them, as ``Dust3rEstimator`` does."""

    def estimate(
        self, images: Tensor, cameras: Cameras | None = None, input_places: Tensor | None = None
    ) -> Reconstruction:
        """See ``geometry.dust3r.estimator.Dust3rEstimator.estimate``; ``input_places`` [V] bool says which are held."""
        ...


def holds_fixed_views(estimator: PointMapEstimator | AligningEstimator) -> bool:
    """Whether an estimator can hold the cameras of some views and find those of the others."""
    return "fixed" in arguments_of(estimator)


def aligned_frames(
    key: str, frames: Tensor, cameras: Cameras, input_places: list[int], estimator: AligningEstimator
) -> Reconstruction:
    """Cameras, point maps and confidence of all frames in the world of the known views.

    Args:
        key: of the scene, for errors.
        frames: [S, 3, H, W] in [0, 1], the input views among them.
        cameras: S views; those of ``input_places`` are held to the last bit, of the others nothing is read.
        input_places: places of the input views.
        estimator: see ``AligningEstimator``.

    Raises:
        BadSceneError: the frames cannot be aligned; names the scene.
    """
    held = torch.zeros(len(frames), dtype=torch.bool)
    held[input_places] = True
    try:
        found = estimator.estimate(frames.cpu(), cameras.to("cpu"), held)
    except BadSceneError as error:
        raise BadSceneError(f"{key}: the generated frames could not be aligned: {error}") from error
    cameras_found = found.cameras.world_to_camera
    if not bool(torch.isfinite(cameras_found).all()):
        raise BadSceneError(f"{key}: the alignment of the generated frames gave poses that are not finite")
    return found
