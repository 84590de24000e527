"""The one chain: input views -> generated frames -> cameras, confidence and points of all frames -> 3D Gaussians.

``reconx reconstruct``, ``reconx fit``, ``evaluate.py``, the protocols, the baseline of the input views and the
validation during training all go through these functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.files.tensors import to_bytes
from reconx_pl.geometry.cameras import with_views
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.geometry.point_maps import point_map_from_depth, with_unexplained
from reconx_pl.geometry.rendering.sky import finite_depth
from reconx_pl.metrics.lpips import LpipsDistance
from reconx_pl.reconstruction.alignment import AligningEstimator, aligned_frames, holds_fixed_views
from reconx_pl.reconstruction.frame_confidence import frame_confidence
from reconx_pl.reconstruction.input_views import InputViews
from reconx_pl.reconstruction.pair_clips import path_cameras
from reconx_pl.reconstruction.view_generator import (
    ViewGenerator,
    follows_cameras,
    generated_frames,
    seeded_generator,
)
from reconx_pl.splatting.fit import FitConfig, FitResult, fit
from reconx_pl.splatting.points import PointsConfig, points_from_maps, random_points, select_points
from reconx_pl.splatting.renderers.base import Renderer
from reconx_pl.types import Cameras, Clip, PointCloud, PointMap, Progress, Tensors

FramePoses = Literal["auto", "aligned", "interpolated", "dataset"]
Alignment = Literal["clips", "all"]
FrameConfidence = Literal["auto", "alignment", "reprojection", "render", "uniform"]
NEUTRAL_CONFIDENCE = 2.0  # 1 + exp(0)
FILL_FROM = 8  # input views: fewer cannot tell a gap between points from a surface

Keep = Callable[
    [int, Callable[[], Tensor]], Tensor
]  # number of a clip, makes its frames -> the frames, maybe of before
Stage = Callable[[str], AbstractContextManager[None]]  # around a part of the work, to measure it


@dataclass(frozen=True)
class SceneConfig:
    """How frames become a scene.

    Args:
        fit: the 3D Gaussian fit.
        points: which points it starts from. ``at_least`` counts from 8 input views on.
        poses: of the generated frames. "aligned": by a global alignment from each input view to the next, with the
            input views held fixed; needs an estimator that can do it (DUSt3R, Depth-Anything-3).
            "interpolated": between the input views.
            "dataset": given with the frames. "auto": those that frames were generated at, of a model that is guided by
            renders; else aligned where the estimator can, else interpolated.
        confidence: of generated pixels. "alignment": the paper's C_i, what the global alignment gives every pixel.
            "reprojection": agreement with the points of the input views. "render": with their depth as surfaces, sky
            included. "uniform": every pixel counts alike. "auto": that of the alignment where frames are aligned, else
            reprojection.
        alignment: "clips" aligns from each input view to the next, with both held fixed; "all" aligns all frames at
            once, as the paper does, which is more accurate and whose pairs, each with its point maps in memory, grow
            with the square of the frames (``python -m benchmarks.chain alignment``). With two views it is the same.
        seed: of everything random, together with the key of the input views.
    """

    fit: FitConfig = field(default_factory=FitConfig)
    points: PointsConfig = field(default_factory=PointsConfig)
    poses: FramePoses = "auto"
    confidence: FrameConfidence = "auto"
    alignment: Alignment = "clips"
    seed: int = 0

    def aligns(self, estimator: PointMapEstimator | None, posed: bool = False) -> bool:
        """Whether generated frames get their poses from a global alignment.

        Args:
            estimator: that would align them.
            posed: whether they were generated at known cameras, see ``FrameSequence``.

        Raises:
            ConfigurationError: it was asked for and the estimator cannot; or its confidence, or points that only it
                could give, were asked for.
        """
        able = estimator is not None and holds_fixed_views(estimator)
        if self.poses == "aligned" and not able:
            who = "no estimator was named" if estimator is None else f"{type(estimator).__name__} cannot do that"
            raise ConfigurationError(
                f"poses 'aligned' finds the cameras of generated frames with the input views held fixed, and {who}: "
                "name Depth-Anything-3 or DUSt3R (--geometry da3-base, PretrainedDa3), or take 'interpolated'"
            )
        aligned = able and (self.poses == "aligned" or (self.poses == "auto" and not posed))
        if self.points.views != "ends" and not aligned:
            raise ConfigurationError(
                "points.views 'all' needs point maps of the generated frames, which a global alignment alone makes; "
                "take 'ends'"
            )
        if self.confidence == "alignment" and not aligned:
            raise ConfigurationError(
                "confidence 'alignment' is what a global alignment gives; take poses 'aligned', or 'reprojection'"
            )
        return aligned

    def trust(self, aligned: bool) -> FrameConfidence:
        """The confidence of generated pixels that "auto" stands for."""
        best: FrameConfidence = "alignment" if aligned else "reprojection"
        return best if self.confidence == "auto" else self.confidence


@dataclass(frozen=True)
class FrameSequence(Tensors):
    """All frames in their order: input views, and those generated between them.

    Attributes:
        images: [S, 3, H, W] in [0, 1]; the input views to the last bit.
        cameras: S views: those of the input views, and between them the path along which frames were generated.
        input_places: places of the input views.
        posed: whether frames were generated at these cameras, by a model that is guided by renders: they need no
            alignment.
        beside: so many input views at the end lie beside the path, and are no part of a video of it.
    """

    images: Tensor
    cameras: Cameras
    input_places: list[int]
    posed: bool = False
    beside: int = 0

    @property
    def way(self) -> int:
        """Frames of the path."""
        return len(self.images) - self.beside


@dataclass(frozen=True)
class FitInput(Tensors):
    """What the fit gets.

    Attributes:
        images: [S, 3, H, W] in [0, 1].
        cameras: S views.
        confidence: [S, H, W] on DUSt3R's scale; None trusts all pixels alike.
        input_places: places of the input views among the frames.
        start: the points it starts from.
        aligned: whether the cameras come from a global alignment.
    """

    images: Tensor
    cameras: Cameras
    confidence: Tensor | None
    input_places: list[int]
    start: PointCloud
    aligned: bool = False


def input_places(views: int, frames: int) -> list[int]:
    """Places of the input views among all frames of clips of ``frames`` frames from each to the next."""
    return [view * (frames - 1) for view in range(views)]


def input_sequence(inputs: InputViews) -> FrameSequence:
    """The input views alone: nothing is generated."""
    return FrameSequence(inputs.images, inputs.cameras, list(range(len(inputs))))


def generate_sequence(
    inputs: InputViews,
    clips: Sequence[Clip],
    view_generator: ViewGenerator,
    seed: int,
    device: torch.device,
    *,
    cameras: Cameras | None = None,
    keep: Keep | None = None,
    progress: Progress | None = None,
) -> FrameSequence:
    """Generate the frames from each input view to the next (ReconX, IV-D: one clip a pair of neighbours).

    Generated frames are kept as 8-bit values, as a video or a file would have them.

    Args:
        inputs: the input views.
        clips: one for each pair of neighbours, all of T frames (``pair_clips``), or a packed clip.
        view_generator: sees the clips blind (``blind``).
        seed: of the noise, together with the key of each clip.
        device: of the noise.
        cameras: of all frames, in the order of the sequence; those of the input views are taken from ``inputs``. None
            interpolates between the input views.
        keep: where the frames of a clip, [T, 3, H, W] uint8, may be found, or are kept.
        progress: counts what the view generator counts, over all clips.

    Raises:
        BadSceneError: the view generator returned another shape, or values that are not finite.
    """
    keep = keep or (lambda number, make: make())
    parts = []
    count = clips[0].frames.shape[0]
    path = path_cameras(inputs.cameras[inputs.visited], count) if cameras is None else cameras
    expected = len(clips) * (count - 1) + 1
    if len(path) not in ({expected, expected - 1} if inputs.closed else {expected}):
        raise ConfigurationError(
            f"{inputs.key}: a path of {len(path)} cameras does not go with {len(clips)} clips of {count} frames, which "
            f"have {expected} frames together"
        )
    for number, clip in enumerate(clips):
        # a closed sequence has its first view once
        own = path[[(number * (count - 1) + frame) % len(path) for frame in range(count)]].to(clip.frames.device)

        def within(what: str, done: int, total: int | None, number: int = number) -> None:
            if progress is not None:
                progress(what, number * (total or 0) + done, total and len(clips) * total)

        def make(clip: Clip = clip, own: Cameras = own, within: Progress = within) -> Tensor:
            return to_bytes(generated_frames(clip, view_generator, seed, device, within, own))

        parts.append(keep(number, make))
    frames = torch.cat([parts[0], *(part[1:] for part in parts[1:])])
    if inputs.closed:  # the first view comes once
        frames, path = frames[:-1], path[list(range(len(frames) - 1))]
    places = input_places(len(inputs), count)
    images = frames.to(inputs.images.device).float().div_(255)
    images[places] = inputs.images
    posed = follows_cameras(view_generator)
    return FrameSequence(images, with_views(path, places, inputs.cameras), places, posed)


def prepare_fit(
    inputs: InputViews,
    sequence: FrameSequence,
    config: SceneConfig,
    estimator: PointMapEstimator | None = None,
    *,
    stage: Stage = lambda name: nullcontext(),
) -> FitInput:
    """Cameras, confidence and points of all frames (ReconX, IV-E: all frames are aligned globally).

    Args:
        inputs: the input views, on the device of the sequence.
        sequence: all frames. With ``poses="dataset"`` its cameras are taken as they are.
        config: see there.
        estimator: aligns the frames, if ``config`` asks for that.
        stage: a context manager around each of "alignment", "confidence" and "geometry", to measure it.

    Raises:
        BadSceneError: the frames cannot be aligned, or there are no points.
        ConfigurationError: see ``SceneConfig.aligns``.
    """
    generated = len(sequence.images) > len(inputs)
    cameras, maps = sequence.cameras, None
    if generated and config.aligns(estimator, sequence.posed):
        with stage("alignment"):
            cameras, maps = _aligned(inputs.key, sequence, cast(AligningEstimator, estimator), config.alignment)
    # to the last bit, whatever an estimator makes of what it holds
    cameras = with_views(cameras, sequence.input_places, inputs.cameras)
    with stage("confidence"):
        confidence = _confidence(inputs, sequence, cameras, maps, config)
    with stage("geometry"):
        start = start_points(inputs, sequence, maps, config)
    return FitInput(sequence.images, cameras, confidence, sequence.input_places, start, maps is not None)


def photographs_alone(inputs: InputViews, start: PointCloud) -> FitInput:
    """The input views alone, from the same points: what generated frames are compared with. All pixels count alike."""
    return FitInput(inputs.images, inputs.cameras, None, list(range(len(inputs))), start)


def fit_scene(
    given: FitInput,
    config: SceneConfig,
    key: str,
    *,
    renderer: Renderer,
    perceptual: LpipsDistance | None = None,
    progress: Progress | None = None,
    purpose: str = "fit",
) -> FitResult:
    """Fit 3D Gaussians to all frames; the input views keep their cameras. See ``splatting.fit.fit`` for the rest.

    Args:
        given: see ``prepare_fit``.
        config: see there.
        key: of the input views.
        renderer, perceptual, progress: see ``splatting.fit.fit``.
        purpose: what is fitted; part of the seed.
    """
    return fit(
        given.images,
        given.cameras,
        given.confidence,
        given.start,
        config.fit,
        renderer=renderer,
        perceptual=perceptual,
        progress=progress,
        input_views=given.input_places,
        generator=seeded_generator(config.seed, key, purpose),
    )


def start_points(inputs: InputViews, sequence: FrameSequence, maps: PointMap | None, config: SceneConfig) -> PointCloud:
    """The points that the fit starts from.

    Those of the alignment, where frames were aligned and depth did not come with the data: of the input views, or of
    all frames (``PointsConfig.views``). Else those of every input pixel with depth, of the sky far away
    (``finite_depth``), and beside them those of the cloud that tell what no depth map does. Without depth those of the
    cloud, filled where many views tell gaps from surfaces.
    """
    generator = seeded_generator(config.seed, inputs.key, "points")
    start = _geometric_points(inputs, sequence, maps, config.points, generator)
    return random_points(inputs.cameras, len(start), generator) if config.points.random else start


def _geometric_points(
    inputs: InputViews,
    sequence: FrameSequence,
    maps: PointMap | None,
    config: PointsConfig,
    generator: torch.Generator,
) -> PointCloud:
    every = replace(config, views="all")  # of the maps that are handed over
    if maps is not None and (config.views == "all" or inputs.depth is None or not inputs.measured):
        chosen = list(range(len(sequence.images))) if config.views == "all" else sequence.input_places
        part = PointMap(maps.points[chosen], maps.confidence[chosen], maps.valid[chosen])
        return points_from_maps(part, sequence.images[chosen], every, generator)
    if inputs.depth is not None:
        own = point_map_from_depth(finite_depth(inputs.depth), inputs.cameras, inputs.confidence)
        dense = points_from_maps(own, inputs.images, every, generator)
        return dense if inputs.cloud is None else with_unexplained(dense, inputs.cloud, own, inputs.cameras)
    assert inputs.cloud is not None
    filled = config if len(inputs) >= FILL_FROM else replace(config, at_least=0)
    return select_points(inputs.cloud, filled, generator)


def _confidence(
    inputs: InputViews, sequence: FrameSequence, cameras: Cameras, maps: PointMap | None, config: SceneConfig
) -> Tensor | None:
    """[S, H, W] on DUSt3R's scale; None where every pixel counts alike."""
    images = sequence.images
    if config.confidence == "uniform" or len(images) == len(inputs):
        return None
    trust = config.trust(maps is not None)
    if maps is not None and trust == "alignment":
        return maps.confidence.to(images)
    return frame_confidence(images, cameras, inputs, sequence.input_places, surfaces=trust == "render")


def _aligned(
    key: str, sequence: FrameSequence, estimator: AligningEstimator, alignment: Alignment
) -> tuple[Cameras, PointMap]:
    """Cameras and point maps of all frames, see ``SceneConfig.alignment``. The input views hold the world fixed."""
    images, cameras, places = sequence.images, sequence.cameras, sequence.input_places
    total = len(images)
    stops = places if places[-1] == total - 1 else [*places, total]  # the latter goes back to the first
    if alignment == "all":
        stops = [0, total - 1]
    world_to_camera, intrinsics = cameras.world_to_camera.clone(), cameras.intrinsics.clone()
    maps: dict[int, tuple[Tensor, ...]] = {}
    for start, stop in pairwise(stops):
        clip = [frame % total for frame in range(start, stop + 1)]
        who = key if len(stops) == 2 else f"{key}, frames {start} to {stop}"
        fixed = [place for place, frame in enumerate(clip) if frame in places]
        found = aligned_frames(who, images[clip], cameras[clip], fixed, estimator)
        held = found.point_map
        for place, frame in enumerate(clip):
            if frame not in maps:  # an input view ends one clip and begins the next
                world_to_camera[frame] = found.cameras.world_to_camera[place].to(world_to_camera)
                intrinsics[frame] = found.cameras.intrinsics[place].to(intrinsics)
                maps[frame] = held.points[place], held.confidence[place], held.valid[place]
    points, confidence, valid = (
        torch.stack([maps[frame][part] for frame in range(total)]).detach().clone().to(images.device)
        for part in range(3)
    )
    return replace(cameras, world_to_camera=world_to_camera, intrinsics=intrinsics), PointMap(points, confidence, valid)
