"""Bundle adjustment by COLMAP (Ceres): cameras and points that explain tracks best, without the wrong ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from reconx_pl.geometry.estimators.colmap_mapping import explained
from reconx_pl.geometry.estimators.colmap_matches import load_pycolmap, quiet
from reconx_pl.geometry.refinement.matching import pinhole
from reconx_pl.geometry.refinement.tracks import Tracks, reprojection
from reconx_pl.types import Cameras

_REACH = 4.0  # scales of the robust loss: an observation that is farther off once it has converged is wrong


@dataclass(frozen=True)
class Bundle:
    """Cameras, points, and the observations that they explain.

    Args:
        cameras: V views, float64.
        tracks: those observations.
        points: [P, 3] world points of the tracks.
        errors: [M] pixels between points and observations.
    """

    cameras: Cameras
    tracks: Tracks
    points: np.ndarray
    errors: np.ndarray

    def agreement(self, max_error: float, noise: float) -> float:
        """How well it explains the features, see ``colmap_mapping.explained``."""
        return explained(self.errors, np.bincount(self.tracks.points)[self.tracks.points], max_error, noise)


def adjust(
    cameras: Cameras,
    tracks: Tracks,
    points: np.ndarray,
    scales: Sequence[float],
    max_error: float,
    lenses: Sequence[int],
    free_focals: bool = False,
    fixed_poses: bool = False,
) -> Bundle:
    """Minimise the reprojection error, with Cauchy's loss of one scale after the other.

    After each scale, observations beyond four times it are dropped, at the end those beyond ``max_error``.

    Args:
        cameras: V views; those of one lens have equal intrinsics.
        tracks: observations in views of these.
        points: [P, 3] where their points start; points that are NaN or behind a camera are left out.
        scales: of the loss, pixels, falling.
        max_error: pixels.
        lenses: [V] views of one number share their intrinsics.
        free_focals: focal lengths change too.
        fixed_poses: cameras keep their poses, and only points move.
    """
    now = replace(cameras.to(dtype=torch.float64))
    error, _ = reprojection(tracks, now, points)
    behind = np.bincount(tracks.points, ~np.isfinite(error), len(tracks)) > 0
    tracks, left = tracks.kept(~behind[tracks.points])
    points = points[left]
    for scale, bound in zip(scales, (*(_REACH * scale for scale in scales[:-1]), max_error), strict=True):
        if not len(tracks):
            break
        now, points = _solved(now, tracks, points, scale, lenses, free_focals, fixed_poses)
        error, _ = reprojection(tracks, now, points)
        tracks, left = tracks.kept(error <= bound)
        points = points[left]
    return Bundle(now, tracks, points, reprojection(tracks, now, points)[0])


def _solved(
    cameras: Cameras,
    tracks: Tracks,
    points: np.ndarray,
    scale: float,
    lenses: Sequence[int],
    free_focals: bool,
    fixed_poses: bool,
) -> tuple[Cameras, np.ndarray]:
    colmap = load_pycolmap()
    seen = sorted(set(tracks.views.tolist()))
    model, config = colmap.Reconstruction(), colmap.BundleAdjustmentConfig()
    for view in seen:
        if not model.exists_camera(lenses[view] + 1):
            model.add_camera_with_trivial_rig(pinhole(cameras, view, lenses[view] + 1))
    place = np.zeros(len(tracks.views), dtype=int)  # of an observation among those of its view
    for view in seen:
        here = tracks.views == view
        place[here] = np.arange(here.sum())
        image = colmap.Image(f"{view}", tracks.pixels[here], lenses[view] + 1, view + 1)
        model.add_image_with_trivial_frame(image, colmap.Rigid3d(cameras.world_to_camera[view, :3].numpy()))
        config.add_image(view + 1)
        if fixed_poses:
            config.set_constant_rig_from_world_pose(model.images[view + 1].frame_id)
    cuts = np.flatnonzero(np.diff(tracks.points)) + 1
    numbers = [
        model.add_point3D(
            point, colmap.Track([colmap.TrackElement(view + 1, at) for view, at in zip(*where, strict=True)])
        )
        for point, *where in zip(
            points,
            (part.tolist() for part in np.split(tracks.views, cuts)),
            (part.tolist() for part in np.split(place, cuts)),
            strict=True,
        )
    ]
    with quiet(colmap):
        colmap.create_default_bundle_adjuster(_options(scale, free_focals), config, model).solve()
    poses, intrinsics = cameras.world_to_camera.clone(), cameras.intrinsics.clone()
    for view in seen:
        poses[view, :3] = torch.from_numpy(model.images[view + 1].cam_from_world().matrix())
        intrinsics[view] = torch.from_numpy(model.cameras[lenses[view] + 1].calibration_matrix())
    moved = np.stack([model.points3D[number].xyz for number in numbers])
    return replace(cameras, world_to_camera=poses, intrinsics=intrinsics), moved


def _options(scale: float, free_focals: bool) -> Any:
    colmap = load_pycolmap()
    options = colmap.BundleAdjustmentOptions()
    options.refine_focal_length, options.refine_extra_params, options.print_summary = free_focals, False, False
    options.ceres.loss_function_type, options.ceres.loss_function_scale = colmap.LossFunctionType.CAUCHY, scale
    solver = options.ceres.solver_options
    solver.num_threads, solver.function_tolerance = 1, 1e-6
    # No gauge is fixed: the damping holds what no observation does. Ceres' own first radius, 10000, lets the first step
    # throw points of a narrow baseline behind the cameras, where COLMAP's error is zero.
    solver.initial_trust_region_radius = 1.0
    return options
