"""From images to points: the seam that DUSt3R, Depth-Anything-3, known depth and a ready reconstruction share."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from reconx_pl.errors import BadSceneError
from reconx_pl.geometry.cameras import unproject
from reconx_pl.geometry.point_maps import cloud_from_maps, point_map_from_depth
from reconx_pl.geometry.rendering.cloud_view import view_cloud
from reconx_pl.types import Cameras, PointCloud, PointMap


@dataclass(frozen=True)
class Reconstruction:
    """What an estimator knows about a set of views."""

    cameras: Cameras
    point_map: PointMap
    cloud: PointCloud


class PointMapEstimator(Protocol):
    """Anything that turns images into cameras and points.

    One whose maps are its sparse points drawn as discs, and no depth that was found pixel by pixel, says so with an
    attribute ``dense_maps = False`` (``has_dense_maps``).
    """

    def estimate(self, images: Tensor, cameras: Cameras | None = None) -> Reconstruction:
        """Reconstruct.

        Args:
            images: [V, 3, H, W] float in [0, 1].
            cameras: V known cameras; None if the estimator shall find them.

        Raises:
            BadSceneError: the views cannot be reconstructed, with the reason.
        """
        ...


def has_dense_maps(estimator: PointMapEstimator) -> bool:
    """Whether the point maps of an estimator are depth of their own; where not, its cloud is all that it knows."""
    return bool(getattr(estimator, "dense_maps", True))


def arguments_of(estimator: PointMapEstimator) -> frozenset[str]:
    """What the ``estimate`` of an estimator takes, by name.

    One that is wrapped around another says so in an attribute ``takes``, as that depends on the other.
    """
    own = getattr(estimator, "takes", None)
    return frozenset(inspect.signature(estimator.estimate).parameters) if own is None else frozenset(own)


def name_of(estimator: PointMapEstimator) -> str:
    """What notes call an estimator: its class, and that of the one that it is wrapped around (``inner``)."""
    inner = getattr(estimator, "inner", None)
    return type(estimator).__name__ + ("" if inner is None else f" of {name_of(inner)}")


class KnownDepth:
    """Point maps from depth that came with the data: procedural scenes, sensors, a multi-view stereo.

    Args:
        depth: [V, H, W] along the optical axis, world units; 0 or not finite = none.
        confidence: [V, H, W] on DUSt3R's scale; None trusts every pixel alike, with 2 = 1 + exp(0).
        points: size of the cloud.
        generator: see ``cloud_from_maps``.
    """

    def __init__(
        self,
        depth: Tensor,
        confidence: Tensor | None = None,
        points: int = 16384,
        generator: torch.Generator | None = None,
    ) -> None:
        self.depth = depth
        self.confidence = confidence
        self.points = points
        self.generator = generator

    def estimate(self, images: Tensor, cameras: Cameras | None = None) -> Reconstruction:
        """See ``PointMapEstimator``; the cameras are required."""
        cameras = _required(cameras, "KnownDepth", images)
        if self.depth.shape != images[:, 0].shape:
            raise BadSceneError(
                f"depth {tuple(self.depth.shape)} does not go with images {tuple(images.shape)}; "
                "give one depth map a view, of the size of the images"
            )
        point_map = point_map_from_depth(self.depth, cameras, self.confidence)
        cloud = cloud_from_maps(point_map, images, self.points, generator=self.generator)
        return Reconstruction(cameras, point_map, cloud)


class KnownPoints:
    """Point maps from a cloud that came with the data: structure from motion, or the cloud cached in a shard.

    The maps are as sparse as the cloud: a pixel is valid where a point, drawn as a disc as large as the gap to its
    neighbours, covers it.

    Args:
        cloud: points in the world coordinates of the cameras that ``estimate`` is given.
    """

    dense_maps = False

    def __init__(self, cloud: PointCloud) -> None:
        self.cloud = cloud

    def estimate(self, images: Tensor, cameras: Cameras | None = None) -> Reconstruction:
        """See ``PointMapEstimator``; the cameras are required."""
        cameras = _required(cameras, "KnownPoints", images)
        if len(self.cloud) == 0:
            raise BadSceneError("the cloud has no points; pack the scene again with its reconstruction")
        seen = view_cloud(self.cloud, cameras)
        if not seen.covered.any():
            raise BadSceneError(
                "no point of the cloud falls into any view; check that cloud and cameras share one coordinate system"
            )
        points = torch.where(seen.covered[..., None], unproject(seen.depth, cameras), 0.0)
        confidence = torch.where(seen.covered, seen.confidence.clamp(min=1.0), 1.0)
        return Reconstruction(cameras, PointMap(points, confidence, seen.covered), self.cloud)


def reprojection_confidence(
    images: Tensor,
    cameras: Cameras,
    cloud: PointCloud,
    ceiling: float = 10.0,
    tolerance: float = 0.06,
) -> Tensor:
    """Confidence of generated views from how well they agree with the cloud of the input views.

    A stand-in for C_i of ReconX (IV-E), the confidence DUSt3R gives a generated frame when all frames are aligned
    globally. Where the cloud projects into a view and its colour agrees the confidence nears ``ceiling``; it falls as
    1 + (ceiling - 1) exp(-(e / tolerance)^2) with the colour error e, which is 1 + exp(x) with x falling quadratically;
    where nothing projects it is the floor 1. Colours are compared after a 3 x 3 mean, as a disc has no finer detail,
    with the best of the discs up to one pixel away, so that the jagged outlines of discs cast no doubt on true edges.

    Args:
        images: [V, 3, H, W] in [0, 1].
        cameras: V views of H x W pixels.
        cloud: world points with colours.
        ceiling: confidence of perfect agreement, > 1.
        tolerance: colour error (root mean square over the channels) where the excess over 1 falls to 1/e.

    Returns:
        [V, H, W], >= 1.
    """
    cameras = _required(cameras, "reprojection_confidence", images)
    seen = view_cloud(cloud, cameras)
    return agreement(images, seen.color, seen.covered, ceiling, tolerance)


def agreement(images: Tensor, color: Tensor, covered: Tensor, ceiling: float = 10.0, tolerance: float = 0.06) -> Tensor:
    """Confidence of views from how well they agree with what is known there; see ``reprojection_confidence``.

    Args:
        images: [V, 3, H, W] in [0, 1].
        color: [V, 3, H, W] of what is known.
        covered: [V, H, W] bool, where something is.
        ceiling: confidence of perfect agreement, > 1.
        tolerance: colour error where the excess over 1 falls to 1/e.

    Returns:
        [V, H, W], >= 1.
    """
    weight = covered[:, None].float()  # [V, 1, H, W]
    share = F.avg_pool2d(weight, 3, 1, 1)

    def smooth(values: Tensor) -> Tensor:  # the mean over the covered pixels around
        return F.avg_pool2d(values * weight, 3, 1, 1) / share.clamp(min=1e-6)

    views, _, height, width = images.shape
    padded = F.pad(smooth(color), (1, 1, 1, 1), mode="replicate")
    around = F.unfold(padded, 3).view(views, 3, 9, height, width)
    known = F.unfold(F.pad(weight, (1, 1, 1, 1)), 3).view(views, 9, height, width) > 0
    error = (smooth(images.float())[:, :, None] - around).pow(2).mean(1)  # [V, 9, H, W]
    error = torch.where(known, error, torch.inf).amin(1)  # [V, H, W]
    confidence = 1 + (ceiling - 1) * torch.exp(-error / tolerance**2)
    return torch.where(covered, confidence, 1.0)


def _required(cameras: Cameras | None, who: str, images: Tensor) -> Cameras:
    if cameras is None:
        raise BadSceneError(
            f"{who} needs the cameras of the images; pass cameras, or use an estimator that finds poses itself"
        )
    if len(cameras) != images.shape[0] or (cameras.height, cameras.width) != tuple(images.shape[-2:]):
        raise BadSceneError(
            f"{who}: {len(cameras)} cameras of {cameras.height} x {cameras.width} pixels do not go with images "
            f"{tuple(images.shape)}; resize or crop both alike"
        )
    return cameras
