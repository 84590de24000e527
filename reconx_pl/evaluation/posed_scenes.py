"""Posed scenes to splats: a fit for every scene, scored on photographs that it did not see. Nothing is generated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from reconx_pl.data.formats.found_poses import with_points_of
from reconx_pl.data.formats.readers import only_scene
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.data.packing.clip_sampling import crop_depth, scene_clip
from reconx_pl.data.photos.unposed import has_geometry, photograph_files, scene_of_photographs, without_poses
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.files.identity import hash_of
from reconx_pl.geometry.cameras import resize_and_crop
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.geometry.point_maps import point_map_from_depth
from reconx_pl.metrics.image import METRICS, MetricSuite
from reconx_pl.metrics.lpips import LpipsDistance
from reconx_pl.splatting.fit import FitConfig, FitResult, Progress, fit
from reconx_pl.splatting.points import PointsConfig, points_from_maps, select_points
from reconx_pl.splatting.renderers.base import Renderer
from reconx_pl.types import Cameras, PointCloud

FILL_FROM = 8  # photographs
Scores = dict[str, Tensor]  # metric -> [views] float64
EstimatorFor = Callable[[Path, str], PointMapEstimator]  # source, what it lacks -> who finds it


@dataclass(frozen=True)
class PosedSceneConfig:
    """How photographs of one place become splats.

    Args:
        fit: the fit; all its frames are photographs.
        points: which points it starts from. ``at_least`` counts from 8 fitted photographs on: 3 or 6 cannot tell a
            filled gap from a surface.
        short_side: of the images, pixels; larger ones are reduced with Lanczos, 0 takes them as they are.
        hold_out: every how manieth photograph, the first one included, is kept from fit and points and scored; 0 fits
            to all and scores none.
        views: of the others, this many evenly spaced ones are used; 0 takes all.
        metrics: of "psnr", "ssim", "lpips".
        seed: of the order of the frames and of thinning.
    """

    fit: FitConfig = field(default_factory=FitConfig)
    points: PointsConfig = field(default_factory=lambda: PointsConfig(views="all", at_least=30_000))
    short_side: int = 256
    hold_out: int = 8
    views: int = 0
    metrics: tuple[str, ...] = METRICS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.short_side < 0 or self.hold_out < 0 or self.views < 0:
            raise ConfigurationError("short_side, hold_out and views are counts, 0 or more")
        if self.hold_out == 1:
            raise ConfigurationError("hold_out 1 keeps every photograph from the fit; take 2 or more, or 0 for none")
        if self.views == 1:
            raise ConfigurationError("a fit needs at least two views")

    @property
    def hash(self) -> str:
        """See ``evaluation.settings.hash_of``."""
        return hash_of(self)

    def points_for(self, fitted: int) -> PointsConfig:
        """``points`` for so many fitted photographs: few are not filled."""
        return self.points if fitted >= FILL_FROM else replace(self.points, at_least=0)

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


@dataclass(frozen=True)
class PosedScene:
    """Photographs of one place with cameras, ready to fit. ``points`` are made when they are asked for."""

    images: Tensor  # [V, 3, H, W] in [0, 1]
    cameras: Cameras  # V views
    names: tuple[str, ...]  # of the photographs
    fitted: list[int]
    held_out: list[int]
    geometry: str  # where the points come from
    points: Callable[[], PointCloud]
    digest: str  # SHA-256 of images, cameras and ``geometry``


@dataclass(frozen=True)
class PosedSceneResult:
    """A fitted posed scene; tensors on the CPU."""

    fit: FitResult
    points: int
    rendered: Tensor  # [V, 3, H, W], all views of the posed scene
    scores: Scores  # of the held-out views; empty if there are none
    fitted_scores: Scores  # of the views that were fitted


def load_posed_scene(
    source: Path, config: PosedSceneConfig, estimator: PointMapEstimator | None, estimator_for: EstimatorFor
) -> PosedScene:
    """Read a posed scene of any supported format, or photographs, of which an estimator finds the poses.

    Held-out photographs have no part in the points, with two exceptions, which ``Posed scene.geometry`` names: poses
    that have to be found are found from all photographs, and the points of a scene that come with it are its maker's.

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
        found = scene_of_photographs(photograph_files(source), estimator or estimator_for(source, "poses"))
        raw, geometry, estimator = found.scene, found.geometry, None
    else:
        raw = only_scene(source)
    fitted, held_out = config.split(len(raw), str(source))
    frames = list(range(len(raw)))
    if estimator is None and not has_geometry(raw, frames):
        estimator = estimator_for(source, "points and no depth")
    clip = scene_clip(replace(raw, cloud=None), frames, *_size(raw, config.short_side))
    if estimator is not None:
        geometry = f"points found by {_identity(estimator)} from the {len(fitted)} photographs of the fit"
    elif any(raw.frames[index].load_depth for index in fitted):
        geometry = "depth of the photographs of the fit, as it came with the data"
    elif raw.frames[fitted[0]].observed is not None:
        geometry = geometry or "points that came with the scene, of those that the photographs of the fit observed"
    else:
        geometry = geometry or "points that came with the scene, found by its maker from all photographs"
    images, cameras = clip.images, clip.cameras
    digest = hashlib.sha256(geometry.encode())
    for part in (clip.frames, cameras.world_to_camera, cameras.intrinsics):
        digest.update(part.contiguous().numpy().tobytes())
    return PosedScene(
        images=images,
        cameras=cameras,
        names=tuple(frame.name for frame in raw.frames),
        fitted=fitted,
        held_out=held_out,
        geometry=geometry,
        points=lambda: _points(raw, images, cameras, fitted, estimator, config),
        digest=digest.hexdigest(),
    )


def fit_posed_scene(
    capture: PosedScene,
    config: PosedSceneConfig,
    suite: MetricSuite,
    renderer: Renderer,
    perceptual: LpipsDistance | None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> PosedSceneResult:
    """Fit a scene to its photographs and score it.

    Args:
        posed scene: see ``load_posed_scene``.
        config: see ``PosedSceneConfig``.
        suite: metrics; loaded once for many scenes.
        renderer: of the device.
        perceptual: the LPIPS network of the loss, if the loss uses it; loaded once for many scenes.
        device: where the fit runs.
        progress: called with steps done, steps in all, and the loss.

    Raises:
        BadSceneError: no points, or what ``splatting.fit.fit`` refuses.
    """
    cloud = capture.points()
    images, cameras = capture.images.to(device), capture.cameras.to(device)
    cloud = PointCloud(*(part.to(device) for part in (cloud.points, cloud.colors, cloud.confidence)))
    result = fit(
        images[capture.fitted],
        cameras[capture.fitted],
        None,
        cloud,
        config.fit,
        renderer=renderer,
        perceptual=perceptual,
        progress=progress,
        generator=torch.Generator().manual_seed(config.seed),
        input_views=range(len(capture.fitted)),
    )
    with torch.no_grad():
        views = [renderer.render(result.gaussians, cameras[view]).color for view in range(len(cameras))]
    rendered = torch.cat(views).cpu()

    def score(chosen: Sequence[int]) -> Scores:
        return suite(rendered[list(chosen)], capture.images[list(chosen)]) if chosen else {}

    return PosedSceneResult(result, len(cloud), rendered, score(capture.held_out), score(capture.fitted))


def _identity(estimator: PointMapEstimator) -> str:
    return str(getattr(estimator, "identity", type(estimator).__name__))


def _size(raw: RawScene, short_side: int) -> tuple[int, int]:
    """Rows and columns of the images of a fit."""
    raw.check_one_size()
    height, width = raw.frames[0].height, raw.frames[0].width
    scale = min(1.0, short_side / min(height, width)) if short_side else 1.0
    return round(height * scale), round(width * scale)


def _points(
    raw: RawScene,
    images: Tensor,
    cameras: Cameras,
    fitted: list[int],
    estimator: PointMapEstimator | None,
    config: PosedSceneConfig,
) -> PointCloud:
    """The points of the fit, of an estimator, of depth maps, or of the scene's own cloud."""
    generator = torch.Generator().manual_seed(config.seed)
    chosen = config.points_for(len(fitted))
    if estimator is not None:
        found = with_points_of(raw, fitted, estimator).scene.cloud
        assert found is not None
        return select_points(found, chosen, generator)
    with_depth = [index for index in fitted if raw.frames[index].load_depth is not None]
    if with_depth:
        depth = torch.stack([_depth(raw, index, cameras) for index in with_depth])
        maps = point_map_from_depth(depth, cameras[with_depth])
        return points_from_maps(maps, images[with_depth], chosen, generator)
    assert raw.cloud is not None
    seen = [raw.frames[index].observed for index in fitted]
    cloud = raw.cloud
    if all(rows is not None for rows in seen):
        rows = torch.unique(torch.cat([torch.from_numpy(rows).long() for rows in seen if rows is not None]))
        cloud = cloud[rows]
    return select_points(cloud, chosen, generator)


def _depth(raw: RawScene, index: int, cameras: Cameras) -> Tensor:  # [H, W]
    depth = raw.depth(index)
    assert depth is not None
    _, resized, offset = resize_and_crop(raw.cameras, cameras.height, cameras.width)
    return crop_depth(depth, cameras, resized, offset)
