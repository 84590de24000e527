"""What an estimator makes of the first and the last frame of a clip, as members of its shard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch

from reconx_pl.data.shards.schema import CLOUD, CLOUD_CONFIDENCE, CLOUD_RGB, CONFIDENCE, DEPTH, encode_geometry
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.files.identity import identity_of
from reconx_pl.geometry.cameras import project
from reconx_pl.geometry.estimators.base import PointMapEstimator, Reconstruction
from reconx_pl.geometry.similarity import align
from reconx_pl.types import Cameras, Clip

Poses = Literal["dataset", "estimated"]


class CloudPrecomputer:
    """Depth and confidence of the two condition views, and their cloud in farthest-point order, in float16.

    Args:
        estimator: sees the first and the last frame.
        points: most points of the cloud; the next clip may have fewer.
        min_confidence: pixels below are left out of the cloud, and have depth 0 (DUSt3R's scale, 1 is the floor).
        poses: "dataset" hands it the clip's poses. "estimated" lets it find its own, and moves what it found into the
            clip's world; a pair whose poses then disagree with the clip's gets no cloud.

    Raises:
        ConfigurationError: numbers out of range.
    """

    names = (DEPTH, CONFIDENCE, CLOUD, CLOUD_RGB, CLOUD_CONFIDENCE)

    def __init__(
        self,
        estimator: PointMapEstimator,
        points: int = 16384,
        min_confidence: float = 1.0,
        poses: Poses = "dataset",
    ) -> None:
        if points < 1 or min_confidence < 1:
            raise ConfigurationError(f"points and min_confidence are at least 1, got {points} and {min_confidence:g}")
        self.estimator, self.points = estimator, points
        self.min_confidence, self.poses = min_confidence, poses

    @property
    def settings(self) -> dict[str, Any]:
        """What the members follow from, for the manifest."""
        return {
            "estimator": identity_of(self.estimator),
            "points": self.points,
            "min_confidence": self.min_confidence,
            "poses": self.poses,
        }

    def __call__(self, clip: Clip) -> Mapping[str, bytes]:
        """The members of one clip.

        Raises:
            BadSceneError: the two frames cannot be reconstructed, or not in the clip's world.
        """
        cameras = clip.cameras[[0, -1]]
        try:
            found = self._found(clip, cameras)
        except BadSceneError as error:
            raise BadSceneError(f"clip {clip.key}: {error}") from error
        usable = found.point_map.valid & (found.point_map.confidence >= self.min_confidence)
        # what is left of a farthest-point order, and a prefix of it, are in that order
        cloud = found.cloud[found.cloud.confidence >= self.min_confidence][: self.points]
        if not len(cloud):
            raise BadSceneError(f"clip {clip.key}: no point has a confidence of {self.min_confidence:g}")
        depth = torch.stack(
            [project(points.flatten(0, 1), cameras[[view]])[1][0] for view, points in enumerate(found.point_map.points)]
        ).view(usable.shape)
        depth = torch.where(usable & (depth > 0), depth, 0.0).float()
        confidence = torch.where(depth > 0, found.point_map.confidence, 1.0).float()
        return encode_geometry(replace(clip, depth=depth, confidence=confidence, cloud=cloud), half=True)

    def _found(self, clip: Clip, cameras: Cameras) -> Reconstruction:
        images = clip.images[[0, -1]]
        if self.poses == "dataset":
            return self.estimator.estimate(images, cameras)
        found, quality = align(self.estimator.estimate(images), cameras)
        if quality.suspicious:
            raise BadSceneError(f"found poses do not agree with those of the clip: {quality}")
        return found
