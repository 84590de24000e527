"""Models out of matches: mapping by COLMAP from several starts, each polished by a robust bundle adjustment."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

from reconx_pl.geometry.estimators.colmap_matches import MIN_MATCHES, ImageMatches

# Degrees between the rays of the first pair, at least, one a start. The first pair decides: of eight photographs that
# walk towards a house, two starts end in a flattened house and cameras that are 17 degrees off.
STARTS = (8.0, 4.0, 2.0)
_START = 4.0  # where one start has to do
FEW = 12  # photographs, up to which all starts are tried; more have many first pairs, and take longer
NOISE = 0.5  # pixels; errors up to this are noise of features, beyond they lose weight (scale of the Cauchy loss)
_FINEST = 0.05  # pixels that features are right by at best
_BELIEVED = (0.1, 10.0)  # longer sides: focal lengths that COLMAP believes
_ROUNDS = 2  # of bundle adjustment, each followed by dropping the points that do not fit
# Degrees between the rays of a point from which on it helps to place cameras: far points have no certain depth, but
# they say best how a camera is turned. Of a walk along a street they are half of all points. (ours)
_FAR = 0.3


@dataclass(frozen=True)
class Mapper:
    """COLMAP's incremental mapping of one set of matches.

    Args:
        matches: verified, in their database.
        folder: where folders for what COLMAP writes are made.
        min_angle: degrees between the rays of a point, at least.
        max_error: pixels between a point and its features, at most.
        fixed: whether every focal length is kept.
    """

    matches: ImageMatches
    folder: Path
    min_angle: float
    max_error: float
    fixed: bool = False

    def model(self, kept: Collection[int] = (), starts: Collection[float] | None = None) -> Any:
        """The model with most images and, of these, the best ``agreement``; None if no two images give points.

        Args:
            kept: numbers of COLMAP's cameras whose focal lengths are kept.
            starts: see ``STARTS``; None takes all of them for up to ``FEW`` images.
        """
        if starts is None:
            starts = STARTS if self.matches.views <= FEW else (_START,)
        found = [model for angle in starts for model in self._mapped(angle, kept)]
        return max(found, key=lambda model: (model.num_reg_images(), agreement(model, self.max_error)), default=None)

    def _mapped(self, angle: float, kept: Collection[int]) -> list[Any]:
        options = self.options()
        options.constant_cameras = options.mapper.constant_cameras = set(kept)
        # Two views are a start under any angle: there is no other.
        options.mapper.init_min_tri_angle = max(angle, self.min_angle) if self.matches.views > 2 else self.min_angle
        options.extract_colors = False  # which the model that is taken gets at the end
        matches = self.matches
        folder = mkdtemp(dir=self.folder)  # COLMAP would go on with a model that it finds there
        models = matches.pycolmap.incremental_mapping(matches.database, matches.images, folder, options)
        best = max(models.values(), key=lambda model: (model.num_reg_images(), model.num_points3D()), default=None)
        return [] if best is None else [self.completed(best, kept)]

    def completed(self, model: Any, kept: Collection[int]) -> Any:
        """The model with all points that the matches give under its poses, far ones as well, polished by them."""
        matches = self.matches
        folder, far = mkdtemp(dir=self.folder), replace(self, min_angle=min(_FAR, self.min_angle))
        model = matches.pycolmap.triangulate_points(
            matches.pycolmap.Reconstruction(model), matches.database, matches.images, folder, options=far.options()
        )
        return self.polished(model, kept)

    def polished(self, model: Any, kept: Collection[int]) -> Any:
        """The model after a bundle adjustment in which wrong matches weigh little, without the points that do not fit.

        COLMAP's own sums squares, so that matches that are wrong by some pixels pull at poses and focal lengths. Where
        the focal length runs away, as above flat ground it can, the model stays as it is.
        """
        colmap, given = self.matches.pycolmap, model
        model = colmap.Reconstruction(given)
        for _ in range(_ROUNDS):
            if model.num_points3D() == 0:
                break
            config = colmap.BundleAdjustmentConfig()
            for image in model.reg_image_ids():
                config.add_image(image)
            config.fix_gauge(colmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
            for camera in model.cameras if self.fixed else kept:
                config.set_constant_cam_intrinsics(camera)
            options = colmap.BundleAdjustmentOptions()
            options.refine_focal_length = not self.fixed
            options.ceres.loss_function_type = colmap.LossFunctionType.CAUCHY
            options.ceres.loss_function_scale = NOISE
            options.ceres.solver_options.num_threads = self.matches.threads
            colmap.create_default_bundle_adjuster(options, config, model).solve()
            colmap.ObservationManager(model).filter_all_points3D(self.max_error, min(_FAR, self.min_angle))
        least, most = (share * max(self.matches.height, self.matches.width) for share in _BELIEVED)
        lengths = [camera.mean_focal_length() for camera in model.cameras.values()]
        return model if least <= min(lengths) and max(lengths) <= most else given

    def drop_far_points(self, model: Any) -> None:
        """Drop the points of a model under less than ``min_angle``."""
        self.matches.pycolmap.ObservationManager(model).filter_all_points3D(self.max_error, self.min_angle)

    def options(self) -> Any:
        """COLMAP's options, for few photographs."""
        matches = self.matches
        options = matches.pycolmap.IncrementalPipelineOptions()
        options.num_threads = options.mapper.num_threads = matches.threads
        options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = matches.seed
        options.ba_refine_focal_length = options.mapper.abs_pose_refine_focal_length = not self.fixed
        options.min_num_matches = MIN_MATCHES
        # Few photographs: models of any size, points that two of them see, and a start from less than COLMAP asks for
        # (which has thousands to choose from).
        options.min_model_size = 2
        options.triangulation.ignore_two_view_tracks = False
        options.mapper.init_min_num_inliers = 50
        options.mapper.abs_pose_min_num_inliers = 20
        options.triangulation.min_angle = options.mapper.filter_min_tri_angle = self.min_angle
        for name in ("complete_max_reproj_error", "merge_max_reproj_error"):
            setattr(options.triangulation, name, self.max_error)
        options.mapper.filter_max_reproj_error = self.max_error
        return options


def agreement(model: Any, max_error: float, noise: float = NOISE) -> float:
    """How well a model explains the features in its points: ``explained`` of ``feature_errors``."""
    return explained(*feature_errors(model), max_error, noise)


def explained(errors: np.ndarray, seen: np.ndarray, max_error: float, noise: float = NOISE) -> float:
    """The sum of the log-likelihoods of features under the Cauchy loss.

    A feature counts from 0, at ``max_error`` and beyond, as much as one in no point, to log(1 + (max_error / noise)²).
    So more features in points count as much as smaller errors do. A point that n images see fits three of its 2 n
    coordinates whatever the model: it has the weight (2 n - 3) / 2 n. (ours)

    Args:
        errors: [N] distances of features from the projections of their points, pixels.
        seen: [N] images that see these points.
        max_error: pixels.
        noise: of features, pixels; see ``noise_of``.
    """
    least = np.log1p((max_error / noise) ** 2)
    return float(((1 - 1.5 / seen) * np.maximum(0.0, least - np.log1p((errors / noise) ** 2))).sum())


def noise_of(errors: np.ndarray) -> float:
    """Noise of the features of these photographs by their errors [N], pixels: the median, within bounds."""
    return min(NOISE, max(_FINEST, float(np.median(errors))))


def feature_errors(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """[N] distances in pixels of features from the projections of their points; [N] images that see these points."""
    errors: list[float] = []
    views: list[int] = []
    for number in model.reg_image_ids():
        image = model.images[number]
        for feature in image.points2D:
            if feature.has_point3D():
                point = model.points3D[feature.point3D_id]
                seen = image.project_point(point.xyz)
                errors.append(np.inf if seen is None else float(np.linalg.norm(seen - feature.xy)))
                views.append(point.track.length())
    return np.array(errors), np.array(views)
