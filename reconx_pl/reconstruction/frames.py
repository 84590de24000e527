"""Stage "frames": cameras and confidence of all frames that the fit sees, and the points that it starts from."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.evaluation.posed_scenes import FILL_FROM
from reconx_pl.files.json_files import write_json
from reconx_pl.files.tensors import camera_tensors, cameras_of, cloud_of, cloud_tensors, load_tensors, save_tensors
from reconx_pl.files.weights import read_tensors
from reconx_pl.geometry.cameras import with_views
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.geometry.point_maps import point_map_from_depth, with_unexplained
from reconx_pl.reconstruction.alignment import AligningEstimator, aligned_frames, holds_fixed_views
from reconx_pl.reconstruction.frame_confidence import frame_confidence
from reconx_pl.reconstruction.generation import read_generated
from reconx_pl.reconstruction.settings import KEY, ReconstructionConfig
from reconx_pl.reconstruction.view_generator import scene_generator
from reconx_pl.reconstruction.views import CroppedViews, Views, crop_views, fit_size
from reconx_pl.splatting.points import points_from_maps, select_points
from reconx_pl.types import Cameras, PointCloud, PointMap

_TENSORS, _PLACES = "frames.safetensors", "frames.json"


@dataclass(frozen=True)
class FitInput:
    """What the fit gets.

    Attributes:
        frames: [S, 3, h, w] in [0, 1].
        cameras: S views.
        confidence: [S, h, w] on DUSt3R's scale; None trusts all pixels alike.
        input_places: places of the photographs among the frames, in the order of visiting.
        start: the points it starts from.
    """

    frames: Tensor
    cameras: Cameras
    confidence: Tensor | None
    input_places: list[int]
    start: PointCloud


def aligns(config: ReconstructionConfig, estimator: PointMapEstimator) -> bool:
    """Whether generated frames get their poses from a global alignment.

    Raises:
        ConfigurationError: it was asked for, and the estimator cannot; or points that only it could give were.
    """
    able = holds_fixed_views(estimator)
    if config.generation.poses == "aligned" and not able:
        raise ConfigurationError(
            f"{type(estimator).__name__} cannot align generated frames with the photographs held fixed; take DUSt3R "
            "(--geometry dust3r), or --generation.poses interpolated"
        )
    aligned = able and config.generation.poses != "interpolated"
    if config.points.views != "ends" and not aligned:
        raise ConfigurationError(
            "points.views 'all' needs point maps of the generated frames, which a global alignment alone makes; take "
            "'ends'"
        )
    return aligned


def prepare_photographs(views: Views, config: ReconstructionConfig, folder: Path) -> list[str]:
    """Without generation: the photographs themselves are the frames. Returns notes."""
    cut = crop_views(views, *fit_size(views, config.short_side))
    start = _start(views, cut, config)
    input_places = list(range(len(cut.cameras)))
    _write(folder, FitInput(cut.images, cut.cameras, cut.confidence, input_places, start))
    return [f"{len(start)} points to start from; nothing was generated"]


def prepare_generated(
    views: Views, generated: Path, config: ReconstructionConfig, estimator: PointMapEstimator, folder: Path
) -> list[str]:
    """Cameras, confidence and points of generated frames and photographs together. Returns notes.

    Raises:
        BadSceneError: the frames cannot be aligned.
    """
    cut = crop_views(views, config.generation.height, config.generation.width)
    made = read_generated(generated)
    frames, cameras, input_places = made.frames, made.cameras, made.input_places
    images = frames.float().div_(255)
    maps: PointMap | None = None
    if aligns(config, estimator):
        found, maps = _aligned(views.scene.name, images, cameras, input_places, cast(AligningEstimator, estimator))
        cameras = with_views(found, input_places, cut.cameras)  # whatever an estimator makes of what it holds
        confidence, way = maps.confidence.float(), "a global alignment with the photographs held fixed"
    else:
        confidence = frame_confidence(images, cameras, views.cloud, input_places, cut.confidence)
        way = "the path that was generated along; their confidence by agreement with the points"
    start = _start(views, cut, config) if maps is None else _aligned_start(maps, images, input_places, config)
    _write(folder, FitInput(frames, cameras, confidence, input_places, start))
    return [f"poses of the generated frames by {way}", f"{len(start)} points to start from"]


def _aligned(
    name: str, images: Tensor, cameras: Cameras, input_places: list[int], estimator: AligningEstimator
) -> tuple[Cameras, PointMap]:
    """Cameras and point maps of all frames, on the CPU, aligned from each photograph to the next.

    The photographs hold the world fixed, so that clips need not be aligned together (ours): pairs of frames, each with
    its point maps in memory, grow with the square of their number.
    """
    total = len(images)
    stops = (
        input_places if input_places[-1] == total - 1 else [*input_places, total]
    )  # the latter goes back to the first
    world_to_camera, intrinsics = cameras.world_to_camera.clone(), cameras.intrinsics.clone()
    maps: dict[int, tuple[Tensor, ...]] = {}
    for start, stop in pairwise(stops):
        clip = [frame % total for frame in range(start, stop + 1)]
        found = aligned_frames(
            f"{name}, frames {start} to {stop}", images[clip], cameras[clip], [0, len(clip) - 1], estimator
        )
        parts = found.point_map.points.cpu(), found.point_map.confidence.cpu(), found.point_map.valid.cpu()
        for place, frame in enumerate(clip):
            if frame not in maps:  # a photograph ends one clip and begins the next
                world_to_camera[frame] = found.cameras.world_to_camera[place].to(world_to_camera)
                intrinsics[frame] = found.cameras.intrinsics[place].to(intrinsics)
                maps[frame] = tuple(part[place] for part in parts)
    points, confidence, valid = (torch.stack(part) for part in zip(*(maps[at] for at in range(total)), strict=True))
    return replace(cameras, world_to_camera=world_to_camera, intrinsics=intrinsics), PointMap(points, confidence, valid)


def read_fit_input(folder: Path) -> FitInput:
    """What this stage left in its folder."""
    tensors = load_tensors(folder / _TENSORS)
    input_places = json.loads((folder / _PLACES).read_text(encoding="utf-8"))["input_places"]
    frames = tensors.pop("frames").float().div_(255)
    return FitInput(frames, cameras_of(tensors), tensors.get("confidence"), input_places, cloud_of(tensors))


def read_input_cameras(folder: Path) -> Cameras:
    """Cameras of the photographs alone, in the order of visiting: without the frames, which may be gigabytes."""
    input_places = json.loads((folder / _PLACES).read_text(encoding="utf-8"))["input_places"]
    return cameras_of(read_tensors(folder / _TENSORS))[input_places]


def _write(folder: Path, made: FitInput) -> None:
    save_tensors(
        {
            "frames": made.frames,
            "confidence": made.confidence,
            **camera_tensors(made.cameras),
            **cloud_tensors(made.start),
        },
        folder / _TENSORS,
    )
    write_json(folder / _PLACES, {"input_places": made.input_places})


def _start(views: Views, cut: CroppedViews, config: ReconstructionConfig) -> PointCloud:
    """Points of the photographs: of every pixel with depth and, beside them, of the cloud.

    Without depth they are the cloud's, filled where many photographs tell gaps from surfaces.
    """
    generator = scene_generator(config.seed, KEY, "points")
    if cut.depth is not None:
        maps = point_map_from_depth(cut.depth, cut.cameras, cut.confidence)
        dense = points_from_maps(maps, cut.images.float() / 255, replace(config.points, views="all"), generator)
        return with_unexplained(dense, views.cloud, maps, cut.cameras)
    filled = len(cut.cameras) >= FILL_FROM
    chosen = config.points if filled else replace(config.points, at_least=0)
    return select_points(views.cloud, chosen, generator)


def _aligned_start(maps: PointMap, images: Tensor, input_places: list[int], config: ReconstructionConfig) -> PointCloud:
    """Points of the alignment: of the photographs, or of all frames (``PointsConfig.views``)."""
    chosen = list(range(len(images))) if config.points.views == "all" else input_places
    maps = PointMap(maps.points[chosen], maps.confidence[chosen], maps.valid[chosen])
    generator = scene_generator(config.seed, KEY, "points")
    return points_from_maps(maps, images[chosen], replace(config.points, views="all"), generator)
