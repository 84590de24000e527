"""Posed scenes (`reconx fit`): photographs of one place become splats, scored on photographs that were held out.

The third kind of task beside packed clips and entries of protocols: nothing is generated, the rest of the chain is the
same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from reconx_pl.data.formats.found_poses import with_points_of
from reconx_pl.data.formats.readers import only_scene
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.data.packing.clip_sampling import crop_depth, scene_clip
from reconx_pl.data.photos.unposed import has_geometry, photograph_files, scene_of_photographs, without_poses
from reconx_pl.devices import chosen_device
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.evaluation.runner import evaluate_tasks
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.evaluation.task import OpenedTask, SceneTask, TaskSource
from reconx_pl.files.identity import identity_of
from reconx_pl.files.json_files import Record
from reconx_pl.files.ranks import process_place
from reconx_pl.geometry.cameras import resize_and_crop
from reconx_pl.geometry.default_estimator import default_estimator
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.geometry.exposure_gains import (
    EvenExposures,
    check_even_exposures,
    evened_images,
    recoloured,
    sentence,
    wanted_gains,
)
from reconx_pl.metrics.image import METRICS
from reconx_pl.reconstruction.input_views import InputViews
from reconx_pl.reconstruction.pair_clips import cloud_of_depth
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.points import PointsConfig
from reconx_pl.types import Cameras, PointCloud, Progress

EstimatorFor = Callable[[Path, str], PointMapEstimator]  # source, what it lacks -> the estimator that finds it


@dataclass(frozen=True)
class PosedSceneConfig:
    """How photographs of one place become splats.

    Args:
        fit: the fit; all its frames are photographs.
        points: which points it starts from. ``at_least`` counts from 8 fitted photographs on.
        short_side: of the images, pixels; larger ones are reduced with Lanczos, 0 takes them as they are.
        hold_out: n holds out every n-th photograph, from the first on: it has no part in fit and points, and scores the
            scene. 0 fits to all and scores none.
        views: of the others, this many evenly spaced ones are used; 0 takes all.
        even_exposures: "auto" brings the photographs to one exposure, the middle one of the fitted, where the exposures
            of these differ clearly; "always", "never". Held-out photographs are brought to it as well: their gains
            follow from those of the fitted, which know nothing of them.
        metrics: of "psnr", "ssim", "lpips".
        media: write contact sheet, videos and scene.ply beside the scores.
        seed: of the order of the frames and of thinning.
    """

    fit: FitConfig = field(default_factory=FitConfig)
    points: PointsConfig = field(default_factory=lambda: PointsConfig(at_least=30_000))
    short_side: int = 256
    hold_out: int = 8
    views: int = 0
    even_exposures: EvenExposures = "auto"
    metrics: tuple[str, ...] = METRICS
    media: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_even_exposures(self.even_exposures)
        if self.short_side < 0 or self.hold_out < 0 or self.views < 0:
            raise ConfigurationError("short_side, hold_out and views are counts, 0 or more")
        if self.hold_out == 1:
            raise ConfigurationError("hold_out 1 keeps every photograph from the fit; take 2 or more, or 0 for none")
        if self.views == 1:
            raise ConfigurationError("a fit needs at least two views")

    @property
    def evaluation(self) -> EvaluationConfig:
        """The settings of the evaluation that does it: nothing is generated, and the nearest view is the floor."""
        return EvaluationConfig(
            fit=self.fit,
            points=self.points,
            diffusion=False,
            metrics=self.metrics,
            two_views=False,
            depth_warp=False,
            coverage=False,  # many photographs see almost everything, and telling so takes longer than scoring
            media=self.media,
            seed=self.seed,
        )

    def split(self, count: int, name: str) -> tuple[list[int], list[int]]:
        """Indices of the photographs to fit and of those held out.

        Raises:
            BadSceneError: too few are left to fit.
        """
        held_out = list(range(0, count, self.hold_out)) if self.hold_out else []
        fitted = [index for index in range(count) if index not in held_out]
        if len(fitted) < max(2, self.views):
            raise BadSceneError(
                f"{name}: of {count} photographs {len(held_out)} are held out and {len(fitted)} are left, "
                f"fewer than {max(2, self.views)}; ask for fewer views, or hold out fewer (hold_out)"
            )
        if self.views:
            fitted = [fitted[round(place * (len(fitted) - 1) / (self.views - 1))] for place in range(self.views)]
        return fitted, held_out


def fit_posed_scenes(
    scenes: list[Path],
    out: Path,
    scene: PosedSceneConfig | None = None,
    estimator: PointMapEstimator | None = None,
    device: str = "auto",
    rank: int | None = None,
    world_size: int | None = None,
    progress: Progress | None = None,
) -> Record:
    """Fit 3D Gaussians to photographs of each scene and score them on held-out ones; run it again to go on.

    Args:
        scenes: folders: posed scenes of any supported format, or photographs, whose poses are then found.
        out: folder of the results: scenes/NAME with scene.ply, contact_sheet.png and result.json, and results.json.
        scene: size, held-out views, points, fit.
        estimator: finds the points, in the place of those that came with a scene.
        device: "auto", "cpu", "cuda".
        rank: number of this process, which does scenes rank, rank + world_size, ...; None takes that of a Slurm array
            or of torchrun.
        world_size: number of processes; each uses one GPU.
        progress: counts percent of a scene.

    Returns:
        what ``results.json`` holds; ``complete`` is False where a scene failed or another process is not done.

    Raises:
        ConfigurationError: two scenes of one name; a process outside their number.
        MissingWeightsError: the fit's loss uses LPIPS and its weights are not there.
        BackendUnavailableError: no renderer for the device.
    """
    config = scene or PosedSceneConfig()
    place, places = process_place(rank, world_size)
    chosen = chosen_device(device)
    if chosen == "cuda":
        torch.cuda.set_device(place % torch.cuda.device_count())
    names = [Path(folder).resolve().name for folder in scenes]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"several scenes are called {', '.join(repeated)}; rename their folders")
    sources = [
        TaskSource(name, partial(open_posed_scene, Path(folder), config, estimator))
        for name, folder in zip(names, scenes, strict=True)
    ]
    return evaluate_tasks(
        sources, config.evaluation, Path(out), place, places, progress, estimator=estimator, device=chosen
    )


def open_posed_scene(
    source: Path,
    config: PosedSceneConfig,
    estimator: PointMapEstimator | None = None,
    estimator_for: EstimatorFor = default_estimator,
) -> OpenedTask:
    """Read a posed scene of any supported format, or photographs, of which an estimator finds the poses.

    Held-out photographs have no part in the points, with two exceptions, which the geometry's note names: poses that
    have to be found are found from all photographs, and the points of a scene that come with it are its maker's.

    Args:
        source: the folder.
        config: see ``PosedSceneConfig``.
        estimator: finds points in the place of those that came with the scene; None takes those.
        estimator_for: chooses one where something is lacking and none was given.

    Raises:
        BadSceneError: too few photographs, images of different sizes, not to be reconstructed.
        BadDataError: nothing readable in the folder.
    """
    geometry = ""
    if without_poses(source):
        finder = estimator or estimator_for(source, "poses")
        found = scene_of_photographs(photograph_files(source), finder)
        raw, geometry, estimator = found.scene, f"{found.geometry} ({identity_of(finder)})", None
    else:
        raw = only_scene(source)
    fitted, held_out = config.split(len(raw), str(source))
    frames = list(range(len(raw)))
    if estimator is None and not has_geometry(raw, frames):
        estimator = estimator_for(source, "points and no depth")
    clip = scene_clip(replace(raw, cloud=None), frames, *_size(raw, config.short_side))
    if estimator is not None:
        geometry = f"points found by {identity_of(estimator)} from the {len(fitted)} photographs of the fit"
    elif any(raw.frames[index].load_depth for index in fitted):
        geometry = "depth of the photographs of the fit, as it came with the data"
    elif raw.frames[fitted[0]].observed is not None:
        geometry = geometry or "points that came with the scene, of those that the photographs of the fit observed"
    else:
        geometry = geometry or "points that came with the scene, found by its maker from all photographs"
    digest = hashlib.sha256(f"{geometry} {fitted} {held_out} {config.even_exposures}".encode())
    for part in (clip.frames, clip.cameras.world_to_camera, clip.cameras.intrinsics):
        digest.update(part.contiguous().numpy().tobytes())

    def task() -> SceneTask:
        cloud, depth = _geometry(raw, clip.cameras, fitted, estimator)
        images, note = clip.images, geometry
        dots = cloud if depth is None else cloud_of_depth(images[fitted], clip.cameras[fitted], depth)
        assert dots is not None
        found = wanted_gains(images, clip.cameras, dots.points, config.even_exposures, fitted)
        if found is not None:
            images, note = evened_images(images, found.gains), f"{geometry}; {sentence(found)}"
            cloud = None if cloud is None else recoloured(cloud, images[fitted], clip.cameras[fitted])
        scored = held_out or fitted
        return SceneTask(
            inputs=InputViews(
                key=source.resolve().name,
                images=images[fitted],
                cameras=clip.cameras[fitted],
                cloud=cloud,
                depth=depth,
                indices=tuple(fitted),
                dataset=raw.dataset,
                scene=raw.name,
                geometry=note,
            ),
            clips=(),
            frame_indices=tuple(fitted),
            views=images[scored],
            view_cameras=clip.cameras[scored],
            targets=list(range(len(held_out))),
            target_indices=held_out,
        )

    return OpenedTask(digest.hexdigest(), task)


def _size(raw: RawScene, short_side: int) -> tuple[int, int]:
    """Rows and columns of the images of a fit."""
    raw.check_one_size()
    height, width = raw.frames[0].height, raw.frames[0].width
    scale = min(1.0, short_side / min(height, width)) if short_side else 1.0
    return round(height * scale), round(width * scale)


def _geometry(
    raw: RawScene, cameras: Cameras, fitted: Sequence[int], estimator: PointMapEstimator | None
) -> tuple[PointCloud | None, Tensor | None]:
    """Cloud and depth [C, H, W] of the fitted photographs: of an estimator, or as they came with the scene."""
    if estimator is not None:
        return with_points_of(raw, fitted, estimator).scene.cloud, None
    if any(raw.frames[index].load_depth for index in fitted):
        return None, torch.stack([_depth(raw, index, cameras) for index in fitted])
    cloud = raw.cloud
    assert cloud is not None
    seen = [raw.frames[index].observed for index in fitted]
    if all(rows is not None for rows in seen):
        rows = torch.unique(torch.cat([torch.from_numpy(rows).long() for rows in seen if rows is not None]))
        cloud = cloud[rows]
    return cloud, None


def _depth(raw: RawScene, index: int, cameras: Cameras) -> Tensor:  # [H, W], 0 = none
    if raw.frames[index].load_depth is None:
        return torch.zeros(cameras.height, cameras.width)
    depth = raw.depth(index)
    assert depth is not None
    _, resized, offset = resize_and_crop(raw.cameras, cameras.height, cameras.width)
    return crop_depth(depth, cameras, resized, offset)
