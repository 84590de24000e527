"""Brings a reconstruction into the world of a data set, and says how well the two agree.

Estimated cameras live in a world of their own: up to a similarity (scale, rotation, translation) nothing distinguishes
it from another. Centres alone do not determine that similarity for two views, nor for views in a row: a rotation about
their line is left. Cameras also have orientations, which settle it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.estimators.base import Reconstruction
from reconx_pl.geometry.procrustes import Similarity, fit_similarity
from reconx_pl.types import AlignmentQuality, Cameras

_ONE_PLACE = 16  # roundings of the distance to the origin: centres nearer to each other are one place


def fit_cameras(source: Cameras, target: Cameras) -> Similarity:
    """The similarity that takes estimated cameras to the same views' cameras of a data set.

    Every camera is a star of six points around its centre, along its own axes, with arms so long that each axis weighs
    as much in the rotation as the centre does; centres that contradict the orientations cannot turn the world over.
    Scale and translation then follow from the centres alone, in the least squares.

    Args:
        source: V >= 2 estimated cameras.
        target: V cameras of the same views in the same order.

    Returns:
        float64, on the device of ``source``.

    Raises:
        ConfigurationError: another number of views.
        BadSceneError: fewer than two views, centres in one place (no scale follows), poses that are not finite, or
            centres that run against the orientations, which no similarity mends.
    """
    if len(source) != len(target):
        raise ConfigurationError(f"{len(source)} cameras cannot be aligned with {len(target)}; give the same views")
    if len(source) < 2:
        raise BadSceneError("one camera does not determine a scale: at least two views are needed to align")
    target = target.to(device=source.world_to_camera.device)
    poses = [cameras.world_to_camera for cameras in (source, target)]
    if not all(bool(torch.isfinite(pose).all()) for pose in poses):
        raise BadSceneError("cameras with NaN or infinite poses cannot be aligned; remove those views")
    (x, arms_x), (y, arms_y) = (_centers_and_arms(pose, name) for pose, name in zip(poses, _WORLDS, strict=True))
    rotation = fit_similarity(_stars(x, arms_x), _stars(y, arms_y)).rotation
    mean_x, mean_y = x.mean(0), y.mean(0)
    turned = (x - mean_x) @ rotation.T
    scale = (turned * (y - mean_y)).sum() / turned.square().sum()
    if scale <= 0:
        raise BadSceneError(
            "the estimated camera centres run against those of the data set while the cameras look the same way; "
            "check that the images are in the order of the poses, and the convention of the poses"
        )
    return Similarity(scale, rotation, mean_y - scale * (rotation @ mean_x))


def align(reconstruction: Reconstruction, target: Cameras) -> tuple[Reconstruction, AlignmentQuality]:
    """The reconstruction in the world of ``target``: its cameras, point map and cloud; and how well it fits.

    The cameras of the result are the estimated ones, moved: where the data set's own shall be used, put them in their
    place and keep the quality beside the result.

    Args:
        reconstruction: of V views, in a world of its own.
        target: V cameras of the data set.

    Raises:
        ConfigurationError, BadSceneError: see ``fit_cameras``.
    """
    similarity = fit_cameras(reconstruction.cameras, target)
    cameras = similarity.transform_cameras(reconstruction.cameras)
    point_map, cloud = reconstruction.point_map, reconstruction.cloud
    views, height, width, _ = point_map.points.shape
    moved = similarity.apply(point_map.points.reshape(-1, 3).double()).view(views, height, width, 3)
    moved = torch.where(point_map.valid[..., None], moved.to(point_map.points), 0.0)
    return (
        Reconstruction(
            cameras,
            replace(point_map, points=moved),
            replace(cloud, points=similarity.apply(cloud.points.double()).to(cloud.points)),
        ),
        alignment_quality(cameras, target),
    )


def alignment_quality(aligned: Cameras, target: Cameras) -> AlignmentQuality:
    """What is left between aligned cameras and those of the data set.

    Args:
        aligned: V >= 2 cameras in the world of ``target``.
        target: V cameras; the largest distance between two of them is the extent that translation is measured by.

    Raises:
        ConfigurationError: another number of views.
        BadSceneError: the cameras of the data set are all in one place.
    """
    if len(aligned) != len(target):
        raise ConfigurationError(f"{len(aligned)} cameras cannot be compared with {len(target)}")
    here, there = aligned.world_to_camera, target.world_to_camera.to(aligned.world_to_camera.device)
    truth, _ = _centers_and_arms(there, _WORLDS[1])
    off = (_centers(here) - truth).norm(dim=-1) / torch.cdist(truth, truth).max()
    turn = here[:, :3, :3].double() @ there[:, :3, :3].double().transpose(1, 2)
    # the angle of a rotation from its chord: the arc cosine of the trace has no digits left near zero
    chord = (turn - torch.eye(3).to(turn)).flatten(1).norm(dim=1) / 8**0.5
    degrees = torch.rad2deg(2 * torch.asin(chord.clamp(max=1)))
    return AlignmentQuality(tuple(degrees.tolist()), tuple((100 * off).tolist()))


_WORLDS = ("estimated cameras", "cameras of the data set")


def _centers_and_arms(pose: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Centres [V, 3], and the axes of every camera [V, 3, 3], rows; both ends of one add up to six squared spreads."""
    rows, centers = pose[:, :3, :3].double(), _centers(pose)
    spread = (centers - centers.mean(0)).square().sum(-1).mean().sqrt()
    if spread <= _ONE_PLACE * torch.finfo(pose.dtype).eps * centers.norm(dim=-1).max():
        raise BadSceneError(f"the {name} are all in one place, so that no scale follows; use views from other places")
    return centers, 3**0.5 * spread * rows


def _centers(pose: Tensor) -> Tensor:  # [V, 3] float64
    pose = pose.double()
    return -(pose[:, :3, :3].transpose(1, 2) @ pose[:, :3, 3:]).squeeze(-1)


def _stars(centers: Tensor, arms: Tensor) -> Tensor:
    """[6 V, 3]: both ends of every arm."""
    return torch.cat([centers[:, None] + arms, centers[:, None] - arms], dim=1).flatten(0, 1)
