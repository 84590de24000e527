"""Photographs to cameras and points: DUSt3R on pairs, then the global alignment (ReconX, IV-C)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.alignment.align import align
from reconx_pl.geometry.alignment.checks import view_names
from reconx_pl.geometry.alignment.options import AlignmentOptions, FixedViews
from reconx_pl.geometry.alignment.result import MIN_CONFIDENCE, Alignment, cleaned
from reconx_pl.geometry.alignment.two_views import align_two
from reconx_pl.geometry.cameras import project, unproject
from reconx_pl.geometry.dust3r.inference import InferenceOptions, predict_pairs
from reconx_pl.geometry.dust3r.model import Dust3r
from reconx_pl.geometry.dust3r.preprocess import Preprocessing, Window, prepare_image
from reconx_pl.geometry.dust3r.resample import to_photograph
from reconx_pl.geometry.estimators.base import Reconstruction
from reconx_pl.geometry.estimators.held_views import held_views
from reconx_pl.geometry.estimators.pairs import PairGraph
from reconx_pl.geometry.point_maps import cloud_from_maps
from reconx_pl.types import Cameras, PointMap, Progress

logger = logging.getLogger(__name__)

_SAME = 0.5 / 255  # mean difference below which two images are one
_SHORT_BASELINE = 0.01  # of the median depth


@dataclass(frozen=True)
class Dust3rOptions:
    """How photographs become points.

    Args:
        preprocessing: sizes that the network sees.
        graph: which pairs it is asked about.
        inference: memory and precision.
        alignment: of the pairs; not used by ``closed_form``.
        min_confidence: raw confidence above which a pixel of the point map is valid.
        clean: doubt points that stand in front of what a more confident view sees.
        closed_form: two views of unknown pose are solved without an optimiser (``align_two``).
        points: size of the cloud.

    Raises:
        ConfigurationError: a threshold below 1, the floor of the confidence.
    """

    preprocessing: Preprocessing = Preprocessing()
    graph: PairGraph = PairGraph()
    inference: InferenceOptions = InferenceOptions()
    alignment: AlignmentOptions = AlignmentOptions()
    min_confidence: float = MIN_CONFIDENCE
    clean: bool = True
    closed_form: bool = False
    points: int = 16384

    def __post_init__(self) -> None:
        if self.min_confidence < 1:
            raise ConfigurationError(
                f"min_confidence is at least 1, the floor of the confidence, not {self.min_confidence}"
            )


class Dust3rEstimator:
    """DUSt3R and its global alignment behind the ``PointMapEstimator`` protocol.

    Args:
        model: on the device that computes, in evaluation mode.
        options: see there.
        generator: see ``cloud_from_maps``.
    """

    def __init__(
        self,
        model: Dust3r,
        options: Dust3rOptions = Dust3rOptions(),
        generator: torch.Generator | None = None,
    ) -> None:
        self.model = model
        self.options = options
        self.generator = generator

    @torch.autocast("cpu", enabled=False)  # predict_pairs decides for the network
    def estimate(
        self,
        images: Tensor,
        cameras: Cameras | None = None,
        fixed: Tensor | None = None,
        names: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Reconstruction:
        """Reconstruct; see ``PointMapEstimator``.

        Args:
            images: [V, 3, H, W] in [0, 1], V >= 2.
            cameras: of the images; poses and intrinsics of what is known are held exactly, and the world is theirs.
            fixed: [V] bool, which of ``cameras`` are known; None: all. Generated frames beside the inputs are not.
            names: of the images, for errors.
            progress: of the network, which counts images and pairs, then of the alignment, which counts steps.

        Returns:
            cameras of the images, point maps of their size (what the network did not see at the border is not valid),
            and a cloud.

        Raises:
            BadSceneError: one image, images that are all the same, confidence at the floor or below the threshold,
                images that no confident pair joins; the message names them.
            ConfigurationError: cameras or names that do not go with the images.
            BadCameraError: a known camera that cannot be used.
        """
        views = len(images)
        called = view_names(views, names)
        held = held_views(images, cameras, fixed)
        _check_images(images, called)
        prepared = [prepare_image(image, self.options.preprocessing) for image in images]
        window = prepared[0].window
        predictions = predict_pairs(
            self.model,
            [one.pixels for one in prepared],
            self.options.graph.edges(views),
            self.options.inference,
            progress,
        )
        if self.options.closed_form and views == 2 and not held.any():
            found = align_two(predictions, names=called)
        else:
            found = align(
                predictions,
                self.options.alignment,
                None if cameras is None else FixedViews.of(window.cut(cameras), held, held),
                called,
                next(self.model.parameters()).device,
                progress,
            )
        _warn_of_short_baseline(found, called)
        if self.options.clean:
            found = cleaned(found)
        restored = _restored(found, window, cameras, held)
        threshold = self.options.min_confidence
        point_map = photograph_maps(found, restored, window, threshold)
        if not point_map.valid.any():
            raise BadSceneError(
                f"no pixel of {', '.join(called)} has a confidence above {threshold:g} (the largest is "
                f"{point_map.confidence.max():.3g}); lower min_confidence or use images that overlap"
            )
        cloud = cloud_from_maps(point_map, images.float().cpu(), self.options.points, generator=self.generator)
        return Reconstruction(restored, point_map, cloud)


def photograph_maps(found: Alignment, cameras: Cameras, window: Window, min_confidence: float) -> PointMap:
    """Point maps of the photographs' pixels, on the rays of the photographs' ``cameras``."""
    depth = torch.stack(
        [project(points.flatten(0, 1), found.camera(view))[1][0] for view, points in enumerate(found.points)]
    ).view(len(found.points), window.height, window.width)
    depth, confidence, inside = to_photograph(depth, torch.stack(found.confidence), window)
    valid = inside & (confidence > min_confidence)
    points = torch.where(valid[..., None], unproject(depth, cameras), 0.0)
    return PointMap(points, confidence, valid)


def _restored(found: Alignment, window: Window, cameras: Cameras | None, held: Tensor) -> Cameras:
    restored = window.restore(found.cameras)
    if cameras is None:
        return restored
    given = cameras.to("cpu", torch.float32)
    return replace(
        restored,
        world_to_camera=torch.where(held[:, None, None], given.world_to_camera, restored.world_to_camera),
        intrinsics=torch.where(held[:, None, None], given.intrinsics, restored.intrinsics),
    )


def _check_images(images: Tensor, called: list[str]) -> None:
    if len(images) < 2:
        raise BadSceneError(
            f"{called[0] if called else 'no image'}: DUSt3R needs at least two images. Depth-Anything-3 takes one: "
            "`reconx weights fetch da3-base`, then --geometry da3-base"
        )
    if all((image - images[0]).abs().mean() < _SAME for image in images[1:].float()):
        raise BadSceneError(f"{', '.join(called)} are one and the same image: without a baseline there is no depth")


def _warn_of_short_baseline(found: Alignment, called: list[str]) -> None:
    centers = found.cameras.centers
    _, depth = project(found.points[0].flatten(0, 1), found.camera(0))
    if (centers - centers[0]).norm(dim=1).max() < _SHORT_BASELINE * depth.median():
        logger.warning(
            "the cameras of %s stand within %.0f %% of the scene's depth: its points are a guess of the network's",
            ", ".join(called),
            100 * _SHORT_BASELINE,
        )
