"""What an alignment has found."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import project
from reconx_pl.types import Cameras, PointMap

MIN_CONFIDENCE = 3.0  # DUSt3R's threshold, on the raw confidence


@dataclass(frozen=True)
class Alignment:
    """Cameras and points of all views in one world.

    Without known poses the world is the frame of the first view's camera, in a unit of no meaning. Sizes of the views
    may differ.
    """

    world_to_camera: Tensor  # [V, 4, 4]
    intrinsics: Tensor  # [V, 3, 3] pixels, convention of reconx_pl.types
    points: list[Tensor]  # V of [H, W, 3], world units, on the rays of the cameras
    confidence: list[Tensor]  # V of [H, W], raw (1 is the floor): the largest that any edge gives the pixel
    edges: Tensor  # [E, 2], those that were used
    edge_distances: Tensor  # [E] weighted mean distance of an edge's points from the world's, world units
    losses: Tensor  # before each step and after the last, world units; empty for a closed form

    def camera(self, view: int) -> Cameras:
        """One view, as ``Cameras``."""
        height, width = self.confidence[view].shape
        return Cameras(self.world_to_camera[view : view + 1], self.intrinsics[view : view + 1], height, width)

    @property
    def cameras(self) -> Cameras:
        """All views.

        Raises:
            ConfigurationError: their images are not of one size; see ``camera``.
        """
        height, width = self._one_size()
        return Cameras(self.world_to_camera, self.intrinsics, height, width)

    def point_map(self, min_confidence: float = MIN_CONFIDENCE) -> PointMap:
        """All views; pixels of at most ``min_confidence`` are not valid.

        The threshold is on the raw confidence. DUSt3R's own demo compares the logarithm of its threshold with it, so
        that a "3" there is 1.1 here.

        Raises:
            ConfigurationError: the images of the views are not of one size.
            BadSceneError: no pixel is as confident.
        """
        self._one_size()
        confidence = torch.stack(self.confidence)
        valid = confidence > min_confidence
        if not valid.any():
            raise BadSceneError(
                f"no pixel has a confidence above {min_confidence:g} (the largest is {confidence.max():.3g}); lower "
                "min_confidence or use images that overlap"
            )
        return PointMap(torch.where(valid[..., None], torch.stack(self.points), 0.0), confidence, valid)

    def _one_size(self) -> tuple[int, int]:
        sizes = {tuple(one.shape) for one in self.confidence}
        if len(sizes) > 1:
            raise ConfigurationError(
                f"the images of the views have different sizes: {sorted(sizes)}; take view by view"
            )
        height, width = sizes.pop()
        return height, width


def cleaned(alignment: Alignment, tolerance: float = 0.001) -> Alignment:
    """Confidence to its floor where a point stands in front of what a more confident view sees there.

    A pixel of one view is projected into every other; if it is nearer than that view's depth by more than the
    tolerance, and less confident, one of the two is wrong, and it is taken to be that pixel.

    Args:
        alignment: see there.
        tolerance: fraction of the depth.
    """
    views = len(alignment.points)
    cameras = [alignment.camera(view) for view in range(views)]
    depths = [
        project(points.flatten(0, 1), camera)[1][0] for points, camera in zip(alignment.points, cameras, strict=True)
    ]
    confidence = [one.clone() for one in alignment.confidence]
    for view in range(views):
        points, doubtful = alignment.points[view].flatten(0, 1), confidence[view].view(-1)
        for other in range(views):
            if other == view:
                continue
            camera = cameras[other]
            pixels, depth = project(points, camera)
            x, y = pixels[0].floor().unbind(1)
            inside = (depth[0] > 0) & (x >= 0) & (y >= 0) & (x < camera.width) & (y < camera.height)
            at = (y * camera.width + x)[inside].long()
            nearer = depth[0][inside] < (1 - tolerance) * depths[other][at]
            weaker = doubtful[inside] < confidence[other].view(-1)[at]
            doubtful[inside.nonzero()[:, 0][nearer & weaker]] = 1.0
    return replace(alignment, confidence=confidence)
