"""Photographs to cameras and points by Depth-Anything-3: one pass, no alignment of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.alignment.checks import view_names
from reconx_pl.geometry.cameras import with_views
from reconx_pl.geometry.da3.cameras import failed_fields
from reconx_pl.geometry.da3.inference import Da3Inference, predict
from reconx_pl.geometry.da3.model import Da3Output, DepthAnything3
from reconx_pl.geometry.da3.poses import normalised_poses, scale_of_prediction
from reconx_pl.geometry.da3.preprocess import Da3Preprocessing, prepare_image
from reconx_pl.geometry.da3.rays import cameras_of_rays
from reconx_pl.geometry.dust3r.preprocess import Window
from reconx_pl.geometry.dust3r.resample import to_photograph
from reconx_pl.geometry.estimators.base import Reconstruction
from reconx_pl.geometry.estimators.held_views import held_views
from reconx_pl.geometry.point_maps import cloud_from_maps, point_map_from_depth
from reconx_pl.geometry.similarity import fit_cameras
from reconx_pl.types import Cameras, PointMap, Progress

# of the original's exporters: at least so much, and 60 % of all pixels, but never fewer than 10 % of them
_LEAST_CONFIDENCE, _LOWER_SHARE, _UPPER_SHARE = 1.05, 40, 90
_ROUNDING = 1e-6  # of the resampling: a confidence that is the same everywhere is at its own threshold


@dataclass(frozen=True)
class Da3Options:
    """How photographs become points.

    Args:
        preprocessing: sizes that the network sees.
        inference: memory and precision.
        min_confidence: from which on a pixel of the point map is valid; None takes, over the pixels of all views,
            ``min(max(1.05, 40th percentile), 90th percentile)`` as the original's exporters do. (ours) Of one view it
            is ``min(1.05, 90th percentile)``: what is left out there, no other view fills.
        poses: who finds cameras that are not known: the camera decoder, or the rays of all pixels
            (``cameras_of_rays``), which cost another half of the head. Which serves better was not measured.
        two_view_baseline: the poses of two known views are divided by their baseline, and not by the original's 0.1
            (``normalised_poses``). Which serves better was not measured.
        points: size of the cloud.

    Raises:
        ConfigurationError: a threshold below 1, the floor of the confidence; no points; another word for ``poses``.
    """

    preprocessing: Da3Preprocessing = Da3Preprocessing()
    inference: Da3Inference = Da3Inference()
    min_confidence: float | None = None
    poses: Literal["decoder", "rays"] = "decoder"
    two_view_baseline: bool = False
    points: int = 16384

    def __post_init__(self) -> None:
        if self.min_confidence is not None and self.min_confidence < 1:
            raise ConfigurationError(
                f"min_confidence is at least 1, the floor of the confidence, not {self.min_confidence}"
            )
        if self.poses not in ("decoder", "rays"):
            raise ConfigurationError(f"poses is 'decoder' or 'rays', not {self.poses!r}")
        if self.points < 1:
            raise ConfigurationError(f"points is at least 1, got {self.points}")


class DepthAnything3Estimator:
    """Depth-Anything-3 behind the ``PointMapEstimator`` protocol.

    Args:
        model: on the device that computes, in evaluation mode.
        options: see there.
        generator: see ``cloud_from_maps``.
    """

    def __init__(
        self,
        model: DepthAnything3,
        options: Da3Options = Da3Options(),
        generator: torch.Generator | None = None,
    ) -> None:
        self.model = model
        self.options = options
        self.generator = generator

    @torch.autocast("cpu", enabled=False)  # predict decides for the network
    def estimate(
        self,
        images: Tensor,
        cameras: Cameras | None = None,
        fixed: Tensor | None = None,
        names: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Reconstruction:
        """Reconstruct; see ``PointMapEstimator``.

        - No camera is known: the network finds them. The first camera is the world; its units mean nothing.
        - All cameras are known: the network is told them, and its depth is brought to their world by the scale between
          their centres and those that it finds itself. Of one view no scale follows, and its depth keeps the network's.
        - (ours) Some are known: the network, which can be told all or none, is told none. What it finds is moved onto
          the known ones by a similarity of their poses; onto a single one without a scale.

        Args:
            images: [V, 3, H, W] in [0, 1], V >= 1; of one view depth and focal length are the network's guess.
            cameras: of the images; those that are known are returned as they are, and the world is theirs.
            fixed: [V] bool, which of ``cameras`` are known; None: all. Generated frames beside the inputs are not.
            names: of the images, for errors.
            progress: of the network, which counts its blocks and pieces of its head.

        Returns:
            cameras of the images, point maps of their size (what a crop left out is not valid), and a cloud.

        Raises:
            BadSceneError: no image; more views than fit into the memory; views whose cameras the network could not
                find; known cameras in one place; no pixel that is confident enough.
            ConfigurationError: cameras or names that do not go with the images.
            BadCameraError: a known camera that cannot be used.
        """
        called = view_names(len(images), names)
        held = held_views(images, cameras, fixed)
        if not called:
            raise BadSceneError("no image; a reconstruction needs at least one")
        prepared = [prepare_image(image, self.options.preprocessing) for image in images]
        window = prepared[0].window
        pixels = torch.stack([one.pixels for one in prepared])
        known = None if cameras is None else cameras.to("cpu", torch.float32)
        if known is not None and held.all():
            output = self._predicted(pixels, window.cut(known), progress)
            found, scale = known, 1 / scale_of_prediction(known.world_to_camera, output.world_to_camera)
        else:
            output = self._predicted(pixels, None, progress)
            found, scale = _own_cameras(output, window, called), 1.0
            if known is not None and held.any():
                found, scale = _onto_known(found, known, held)
        _check_finite(output, found, called)
        threshold = self._threshold(output.confidence)
        depth, confidence, inside = to_photograph(scale * output.depth, output.confidence, window)
        valid = inside & (confidence >= (1 - _ROUNDING) * threshold)
        if not valid.any():
            raise BadSceneError(
                f"no pixel of {', '.join(called)} has a confidence of {threshold:g} (the largest is "
                f"{confidence.max():.3g}); lower min_confidence or use other images"
            )
        maps = point_map_from_depth(torch.where(valid, depth, 0.0), found)
        maps = PointMap(maps.points, confidence, maps.valid)  # of pixels that are not valid too
        cloud = cloud_from_maps(maps, images.float().cpu(), self.options.points, generator=self.generator)
        return Reconstruction(found, maps, cloud)

    def _predicted(self, pixels: Tensor, known: Cameras | None, progress: Progress | None) -> Da3Output:
        poses = intrinsics = None
        if known is not None:
            poses = normalised_poses(known.world_to_camera, self.options.two_view_baseline)
            intrinsics = known.intrinsics
        with_rays = known is None and self.options.poses == "rays"
        return predict(self.model, pixels, poses, intrinsics, self.options.inference, progress, with_rays)

    def _threshold(self, confidence: Tensor) -> float:
        if self.options.min_confidence is not None:
            return self.options.min_confidence
        lower, upper = np.percentile(confidence.numpy(), [_LOWER_SHARE, _UPPER_SHARE])
        return float(min(_LEAST_CONFIDENCE if len(confidence) == 1 else max(_LEAST_CONFIDENCE, lower), upper))


def _own_cameras(output: Da3Output, window: Window, called: list[str]) -> Cameras:
    """The network's cameras for the photographs, in the frame of the first.

    Raises:
        BadSceneError: fields of view that no camera has; names the views.
    """
    if output.rays is not None:
        poses, intrinsics = cameras_of_rays(output.rays, window.height, window.width)
        return window.restore(Cameras(_from_the_first(poses), intrinsics, window.height, window.width))
    failed = failed_fields(output.encoding)
    if failed.any():
        names = [name for name, bad in zip(called, failed.tolist(), strict=True) if bad]
        fields = torch.rad2deg(output.encoding[failed][:, 7:]).flatten().tolist()
        degrees = ", ".join(f"{angle:.0f}" for angle in fields)
        raise BadSceneError(
            f"{', '.join(names)}: the network found no camera (fields of view of {degrees} degrees). Leave these out, "
            "give their cameras, or take another estimator"
        )
    poses = _from_the_first(output.world_to_camera)
    return window.restore(Cameras(poses, output.intrinsics, window.height, window.width))


def _from_the_first(world_to_camera: Tensor) -> Tensor:
    poses = world_to_camera.double()
    return (poses @ torch.linalg.inv(poses[:1])).float()


def _onto_known(found: Cameras, known: Cameras, held: Tensor) -> tuple[Cameras, float]:
    """Found cameras in the world of the known ones, which stand in their places, and the scale of the depth."""
    places = held.nonzero()[:, 0].tolist()
    if len(places) > 1:
        similarity = fit_cameras(found[places], known[places])
        moved, scale = similarity.transform_cameras(found), float(similarity.scale)
    else:
        (place,) = places
        here = found.world_to_camera.double()
        poses = here @ torch.linalg.inv(here[place]) @ known.world_to_camera[place].double()
        moved, scale = replace(found, world_to_camera=poses.float()), 1.0
    return with_views(moved, places, known[places]), scale


def _check_finite(output: Da3Output, found: Cameras, called: list[str]) -> None:
    finite = torch.isfinite(output.depth).flatten(1).all(1) & torch.isfinite(output.confidence).flatten(1).all(1)
    finite &= torch.isfinite(found.world_to_camera).flatten(1).all(1)
    if not finite.all():
        names = [name for name, good in zip(called, finite.tolist(), strict=True) if not good]
        raise BadSceneError(f"{', '.join(names)}: the network gave values that are not finite; use other images")
