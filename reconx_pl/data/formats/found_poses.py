"""Cameras and points that an estimator finds for the images of a scene."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reconx_pl.data.formats.scene import RawScene
from reconx_pl.data.shards.clouds import Poses
from reconx_pl.errors import BadSceneError, UnplacedViewsError
from reconx_pl.geometry.cameras import resize_cameras
from reconx_pl.geometry.estimators.base import PointMapEstimator, Reconstruction, has_dense_maps, name_of
from reconx_pl.geometry.point_maps import depth_from_point_map
from reconx_pl.geometry.similarity import align
from reconx_pl.types import AlignmentQuality, Cameras, PointCloud

log = logging.getLogger(__name__)

MAX_SIDE = 1024  # pixels; larger photographs are reduced before an estimator sees them
_SUSPECTS = 5  # named in a warning


@dataclass(frozen=True)
class EstimatedScene:
    """A scene with what was found for it.

    Attributes:
        scene: the scene, with points.
        geometry: where its points, and its poses if they were found too, come from.
        alignment: of found cameras with those of the data set, where both are there.
        maps: depth and confidence, each [V, h, w], of the V frames that the estimator saw; None where it knows points
            alone.
    """

    scene: RawScene
    geometry: str
    alignment: AlignmentQuality | None = None
    maps: tuple[Tensor, Tensor] | None = None


def with_found_poses(blank: RawScene, estimator: PointMapEstimator, geometry: str = "") -> EstimatedScene:
    """The scene with the cameras and the points that an estimator finds for its images; those it has are ignored.

    Args:
        blank: the images.
        estimator: finds both.
        geometry: what is said of their origin.

    Raises:
        UnplacedViewsError: some frames have no place among the others.
        BadSceneError: images of different sizes, or that cannot be reconstructed; names them.
        BadDataError: an image that cannot be decoded.
    """
    found = _estimate(blank, estimator, with_poses=False)
    cameras = resize_cameras(found.cameras, blank.frames[0].height, blank.frames[0].width)
    posed = tuple(
        replace(
            frame,
            intrinsics=cameras.intrinsics[view].double().numpy(),
            world_to_camera=_rigid(cameras.world_to_camera[view]),
        )
        for view, frame in enumerate(blank.frames)
    )
    posed_scene = replace(blank, frames=posed, cloud=_plain(found.cloud))
    return EstimatedScene(posed_scene, geometry, maps=_maps(found, estimator))


def with_estimated_points(raw: RawScene, estimator: PointMapEstimator, poses: Poses = "dataset") -> EstimatedScene:
    """Find points for photographs with poses; depth and points that came with them are put aside.

    Args:
        raw: the photographs that the estimator may see.
        estimator: finds the points.
        poses: "dataset" hands it the poses of the scene. "estimated" lets it find its own; its points are then moved
            into the scene's world by the similarity between both sets of poses, and the residual of that is kept. The
            scene's own cameras stay in either case.

    Raises:
        BadSceneError: not to be reconstructed or aligned; names the photographs.
        BadDataError: an image that cannot be decoded.
    """
    found = _estimate(raw, estimator, with_poses=poses == "dataset")
    quality, which = None, "the poses of the data set"
    if poses == "estimated":
        try:
            found, quality = align(found, resize_cameras(raw.cameras, found.cameras.height, found.cameras.width))
        except BadSceneError as error:
            raise BadSceneError(f"{raw.source}: {error}") from error
        which = "poses of its own, aligned with those of the data set"
        report_alignment(raw, quality)
    bare = tuple(replace(frame, load_depth=None, observed=None) for frame in raw.frames)
    views = "the two input views" if len(raw) == 2 else f"{len(raw)} photographs, targets included"
    return EstimatedScene(
        replace(raw, frames=bare, cloud=_plain(found.cloud)),
        f"points found by {name_of(estimator)} from {views}, with {which}",
        quality,
        _maps(found, estimator),
    )


def with_points_of(
    raw: RawScene, seen: Sequence[int], estimator: PointMapEstimator, poses: Poses = "dataset"
) -> EstimatedScene:
    """``with_estimated_points`` where the estimator sees some frames only; the scene that is returned has all."""
    part = replace(raw, frames=tuple(raw.frames[index] for index in seen))
    found = with_estimated_points(part, estimator, poses)
    bare = tuple(replace(frame, load_depth=None, observed=None) for frame in raw.frames)
    return replace(found, scene=replace(raw, frames=bare, cloud=found.scene.cloud))


def report_alignment(raw: RawScene, quality: AlignmentQuality) -> None:
    """Log how well found cameras agree with those of the data set, and warn where they do not."""
    if not quality.suspicious:
        log.info("%s: found poses agree with those of the data set: %s", raw.source, quality)
        return
    worst = sorted(range(len(raw)), key=lambda view: -quality.rotation_degrees[view])[:_SUSPECTS]
    names = ", ".join(f"{Path(raw.frames[view].name).name} ({quality.rotation_degrees[view]:.1f}°)" for view in worst)
    log.warning(
        "%s: found poses do NOT agree with those of the data set: %s. Worst: %s. Scores mean little then",
        raw.source, quality, names,
    )  # fmt: skip


def _estimate(raw: RawScene, estimator: PointMapEstimator, with_poses: bool) -> Reconstruction:
    """Run an estimator on all frames; its messages, which count images, are told the names."""
    raw.check_one_size()
    images = torch.stack([_image(raw, view) for view in range(len(raw))])
    cameras: Cameras | None = None
    if with_poses:
        cameras = resize_cameras(raw.cameras, *images.shape[-2:])
    try:
        return estimator.estimate(images, cameras)
    except BadSceneError as error:
        numbers = sorted({int(number) for number in re.findall(r"image (\d+)", str(error))})
        legend = ", ".join(f"image {at} is {raw.frames[at].name}" for at in numbers if at < len(raw))
        message = f"{raw.source}: {error}{f' ({legend})' if legend else ''}"
        if isinstance(error, UnplacedViewsError):
            raise UnplacedViewsError(message, error.views) from error
        raise BadSceneError(message) from error


def _maps(found: Reconstruction, estimator: PointMapEstimator) -> tuple[Tensor, Tensor] | None:
    if not has_dense_maps(estimator):
        return None
    depth = depth_from_point_map(found.point_map, found.cameras)
    return depth.detach().cpu().float(), found.point_map.confidence.detach().cpu().float()


def _image(raw: RawScene, view: int) -> Tensor:  # [3, H, W] in [0, 1]
    image = Image.fromarray(raw.load_image(view))
    if max(image.size) > MAX_SIDE:
        scale = MAX_SIDE / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255.0


def _rigid(pose: Tensor) -> np.ndarray:
    """[4, 4] float64 with a rotation that is one to float64."""
    matrix = pose.double().numpy().copy()
    u, _, vt = np.linalg.svd(matrix[:3, :3])
    matrix[:3, :3] = u @ vt
    return matrix


def _plain(cloud: PointCloud) -> PointCloud:
    return PointCloud(*(part.detach().cpu().float() for part in (cloud.points, cloud.colors, cloud.confidence)))
