"""Cameras and sparse points by structure from motion: COLMAP (Schönberger and Frahm, CVPR 2016), on the processor.

It needs no weights, and photographs that overlap well, show texture, and were taken from different places.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from reconx_pl.errors import BadCameraError, BadSceneError, ConfigurationError, UnplacedViewsError
from reconx_pl.geometry.estimators.base import KnownPoints, Reconstruction
from reconx_pl.geometry.estimators.colmap_focals import model_from_known, model_from_range
from reconx_pl.geometry.estimators.colmap_mapping import FEW, Mapper
from reconx_pl.geometry.estimators.colmap_matches import (
    MIN_MATCHES,
    ImageMatches,
    Matching,
    Pairs,
    as_cameras,
    groups,
    largest_motion,
    load_pycolmap,
    quiet,
)
from reconx_pl.geometry.estimators.lenses import Lenses
from reconx_pl.geometry.estimators.sparse_cloud import sfm_cloud
from reconx_pl.geometry.farthest_point import farthest_point_order
from reconx_pl.geometry.point_maps import neighbour_distance
from reconx_pl.types import Cameras, PointCloud

log = logging.getLogger(__name__)

EXHAUSTIVE_LIMIT = 64  # images, as many as one scene takes in any order; beyond, "auto" takes them as a sequence
MIN_POINTS = 16  # of a reconstruction; fewer are chance matches
_MIN_FEATURES = 32  # of an image; fewer cannot give MIN_MATCHES
_DOUBTFUL = 0.5  # share of all matches; with right poses and overlapping images it is well above
# A point this many times farther from its nearest than others are is most often a wrong match, and the first that
# farthest point sampling would take: of the few dropped on four procedural scenes 8 to 10 in 10 were wrong.
_ISOLATED = 8.0
# Where SIFT finds too little in common, a network that was trained on such pairs does not need it.
_LEARNT = "or take a learnt estimator: `reconx weights fetch da3-base`, then --geometry da3-base"
_REVISION = 3  # of what is done here around COLMAP: counts up where the same photographs come to other cameras
_STILL = 0.002  # of the image's longer side: where matches move less, the images show one and the same view


class ColmapEstimator:
    """Structure from motion with SIFT features: a ``PointMapEstimator`` that needs no weights.

    Without cameras it finds poses, and one focal length for all images, or one for each lens that it is told of. Images
    must be undistorted (a pinhole camera is fitted), and not be cropped off-centre, as the principal point is taken to
    be the centre. The world is then COLMAP's: any origin, any scale. With cameras it keeps poses and intrinsics as they
    are and triangulates in their world.

    The result is sparse: the point map is valid where a triangulated point lies. On one thread the same images give
    the same result, bit by bit.

    Args:
        camera_model: "SIMPLE_PINHOLE" (one focal length) or "PINHOLE" (one for x, one for y); without cameras.
        focal: focal length in pixels of the images given, kept fixed; None finds it. Two or three photographs hardly
            determine it: give it where it is known. Without cameras.
        matching: "exhaustive" tries every pair, "sequential" takes images in their order, "auto" is exhaustive up to 64
            images.
        overlap: images are matched with so many that follow (sequential).
        features: most SIFT features of an image.
        min_angle: degrees between the rays of a point, at least; a point seen under less has no certain depth.
        max_error: pixels between a point and its features, at most; with cameras also between a match and its
            epipolar line.
        points: most points of the cloud.
        seed: of COLMAP's random choices.
        threads: more than one is faster, and the result may then differ from run to run.

    Raises:
        ConfigurationError: options out of range.
    """

    dense_maps = False

    def __init__(
        self,
        camera_model: Literal["SIMPLE_PINHOLE", "PINHOLE"] = "SIMPLE_PINHOLE",
        focal: float | None = None,
        matching: Literal["auto", "exhaustive", "sequential"] = "auto",
        overlap: int = 10,
        features: int = 8192,
        min_angle: float = 1.5,
        max_error: float = 2.0,
        points: int = 16384,
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        if camera_model not in ("SIMPLE_PINHOLE", "PINHOLE"):
            raise ConfigurationError(f"camera_model is SIMPLE_PINHOLE or PINHOLE, not {camera_model!r}")
        if matching not in ("auto", "exhaustive", "sequential"):
            raise ConfigurationError(f"matching is auto, exhaustive or sequential, not {matching!r}")
        if focal is not None and not (math.isfinite(focal) and focal > 0):
            raise ConfigurationError(f"focal is a length in pixels, positive, not {focal}")
        if min(overlap, features, points, threads) < 1 or seed < 0:
            raise ConfigurationError("overlap, features, points and threads are positive, and seed is not negative")
        if not (0 < min_angle < 90 and max_error > 0):
            raise ConfigurationError(f"min_angle {min_angle} degrees or max_error {max_error} pixels is out of range")
        self.camera_model = camera_model
        self.focal = focal
        self.matching = matching
        self.overlap = overlap
        self.features = features
        self.min_angle = min_angle
        self.max_error = max_error
        self.points = points
        self.seed = seed
        self.threads = threads

    @property
    def identity(self) -> str:
        """Method, version and settings: what its results follow from."""
        settings = ", ".join(f"{name}={value}" for name, value in vars(self).items())
        return f"COLMAP, pycolmap {load_pycolmap().__version__}, revision {_REVISION}: {settings}"

    def estimate(
        self,
        images: Tensor,
        cameras: Cameras | None = None,
        names: Sequence[str] | None = None,
        lenses: Lenses | None = None,
    ) -> Reconstruction:
        """See ``PointMapEstimator``.

        Args:
            images: [V, 3, H, W] float in [0, 1], V >= 2, of one lens if neither ``cameras`` nor ``lenses`` is given.
            cameras: V known cameras without skew, which are kept; None finds them.
            names: of the images, for messages; None calls them "image 0" and so on.
            lenses: which images share a lens, and focal lengths known beforehand (EXIF). Without ``cameras``. Two or
                three images keep them; more keep them unless they refute them (``colmap_focals.refuted``). The option
                ``focal`` overrules them.

        Raises:
            BadSceneError: fewer than two images, images without texture, that share nothing, or were all taken from
                one place; too few points. Names the images.
            ConfigurationError: lenses beside cameras, or of another number of views.
            UnplacedViewsError: the poses of some images were not found, those of the others were.
            BadCameraError: known cameras that COLMAP's pinhole model cannot express.
            MissingDependencyError: pycolmap is not installed.
        """
        called = _names(images, names)
        _check_lenses(lenses, cameras, images)
        pycolmap = load_pycolmap()
        if cameras is not None:
            _check_fixed(cameras, images, called)
        with TemporaryDirectory(prefix="reconx-colmap-") as folder, quiet(pycolmap):
            if cameras is None:
                model = self._map(images, Path(folder), called, lenses or Lenses((0,) * len(images)))
                found = as_cameras(model, *images[:, 0].shape)
            else:
                matches = ImageMatches(Path(folder), images, self.seed, self.threads)
                self._extract(matches, called, "PINHOLE", wide=False)
                way = self._matching(len(images))
                agreed = matches.match_by_poses(cameras, way, self.overlap, self.max_error)
                if agreed < _DOUBTFUL:
                    log.warning(
                        "only %.0f %% of the matches between %s agree with the known poses; check that the poses "
                        "belong to these images, and their convention", 100 * agreed, _some(called),
                    )  # fmt: skip
                model = self._triangulate(matches, Path(folder), called, cameras)
                found = cameras
            cloud = self._cloud(model)
        maps = KnownPoints(cloud).estimate(images, found.to(device="cpu", dtype=torch.float32))
        return Reconstruction(found, maps.point_map, cloud)

    def _matching(self, views: int) -> Matching:
        if self.matching != "auto":
            return self.matching
        if views <= EXHAUSTIVE_LIMIT:
            return "exhaustive"
        log.info("%d images are matched as a sequence; say matching=exhaustive if their order means nothing", views)
        return "sequential"

    def _extract(self, matches: ImageMatches, called: list[str], model: str, wide: bool) -> None:
        counts = matches.extract(self.features, model, wide)
        plain = [view for view, count in enumerate(counts) if count < _MIN_FEATURES]
        if plain:
            named = ", ".join(f"{called[view]} ({counts[view]})" for view in plain)
            raise UnplacedViewsError(
                f"too few features, of {_MIN_FEATURES} needed: {named}; images without texture, or smaller "
                f"than some hundred pixels, cannot be matched: use larger ones, leave these out, {_LEARNT}",
                plain,
            )

    def _map(self, images: Tensor, folder: Path, called: list[str], lenses: Lenses) -> Any:
        """The model that has every image; few images that plain matches do not join get wide ones. (ours)

        Wide matches reach farther, and more of them are wrong: above flat ground they bend what plain ones get right.
        """
        if self.focal is not None:
            lenses = Lenses(lenses.groups, (self.focal,) * len(lenses))
        try:
            return self._mapped(images, folder / "plain", called, lenses, wide=False)
        except BadSceneError as error:
            if len(images) > FEW:
                raise
            log.info("%s; matching again, for wide steps", error)
        return self._mapped(images, folder / "wide", called, lenses, wide=True)

    def _mapped(self, images: Tensor, folder: Path, called: list[str], lenses: Lenses, wide: bool) -> Any:
        folder.mkdir()
        matches = ImageMatches(folder, images, self.seed, self.threads)
        known = matches.write_lenses(lenses, self.camera_model)
        self._extract(matches, called, self.camera_model, wide)
        matches.match(self._matching(matches.views), self.overlap, wide)
        pairs = matches.verified()
        together = groups(matches.views, pairs)
        if len(together[0]) == 1:
            raise BadSceneError(_apart(together, called))
        if len(together) > 1:
            raise UnplacedViewsError(_apart(together, called), [view for group in together[1:] for view in group])
        _check_motion(matches, pairs, called)
        mapper = Mapper(matches, folder, self.min_angle, self.max_error, self.focal is not None)
        if self.focal is not None:
            best = mapper.model()
        elif known:
            best = model_from_known(known, mapper, _some(called))
        else:
            best = model_from_range(mapper, _some(called))
        if best is not None:
            mapper.drop_far_points(best)
        if best is None or best.num_points3D() < MIN_POINTS:
            raise BadSceneError(
                f"{_some(called)} match, but no two of them give points under at least {self.min_angle:g} degrees: the "
                "camera turned without moving, or moved too little; use photographs farther apart, lower min_angle, "
                f"give the focal length if it is known, {_LEARNT}"
            )
        placed = set(best.reg_image_ids())
        lost = [view for view in range(matches.views) if view + 1 not in placed]
        if lost:
            raise UnplacedViewsError(
                f"{len(placed)} of {matches.views} images were placed, not: "
                f"{', '.join(called[view] for view in lost)}; they overlap too little with the others. Leave them out, "
                f"add photographs between, {_LEARNT}",
                lost,
            )
        best.extract_colors_for_all_images(matches.images)
        return best

    def _triangulate(self, matches: ImageMatches, folder: Path, called: list[str], cameras: Cameras) -> Any:
        """A model of the known cameras, and the points that the matches give in it."""
        pairs = matches.verified()
        together = groups(matches.views, pairs)
        if len(together[0]) == 1:
            raise BadSceneError(_apart(together, called))
        if len(together) > 1:
            log.warning("%s", _apart(together, called))  # their poses are known all the same
        _check_motion(matches, pairs, called)
        found = matches.pycolmap.triangulate_points(
            matches.model_of(cameras),
            matches.database,
            matches.images,
            folder / "model",
            options=Mapper(matches, folder, self.min_angle, self.max_error, self.focal is not None).options(),
        )
        if found.num_points3D() < MIN_POINTS:
            used = sum(len(pixels) for pixels in pairs.values())
            raise BadSceneError(
                f"{found.num_points3D()} points, fewer than {MIN_POINTS}, out of {used} matches between "
                f"{_some(called)}: rays meet under less than {self.min_angle:g} degrees, or the poses do not belong to "
                "these images; use photographs farther apart, lower min_angle, or check the poses"
            )
        return found

    def _cloud(self, model: Any) -> PointCloud:
        model.update_point_3d_errors()
        points = [model.points3D[number] for number in sorted(model.point3D_ids())]
        cloud = sfm_cloud(
            np.array([point.xyz for point in points]).reshape(-1, 3),
            np.array([point.color for point in points]).reshape(-1, 3),
            np.array([point.track.length() for point in points]),
            np.array([point.error for point in points]),
        )
        gap = neighbour_distance(cloud.points)
        cloud = cloud[gap <= _ISOLATED * gap.median()]
        return cloud[farthest_point_order(cloud.points, min(self.points, len(cloud)))]


def _names(images: Tensor, names: Sequence[str] | None) -> list[str]:
    """What messages call the images, which are checked here."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ConfigurationError(f"images are [V, 3, H, W], got {tuple(images.shape)}")
    if names is not None and len(names) != len(images):
        raise ConfigurationError(f"{len(names)} names do not go with {len(images)} images")
    called = list(names) if names is not None else [f"image {view}" for view in range(len(images))]
    if len(images) < 2:
        raise BadSceneError(
            f"structure from motion needs two images at least, there is {', '.join(called) or 'none'}. "
            "Depth-Anything-3 takes one: `reconx weights fetch da3-base`, then --geometry da3-base"
        )
    if not torch.isfinite(images).all():
        bad = [name for name, image in zip(called, images, strict=True) if not torch.isfinite(image).all()]
        raise BadSceneError(f"{', '.join(bad)}: pixels that are not finite; load the image again")
    return called


def _check_lenses(lenses: Lenses | None, cameras: Cameras | None, images: Tensor) -> None:
    if lenses is None:
        return
    if cameras is not None:
        raise ConfigurationError("known cameras have their focal lengths: give cameras or lenses, not both")
    if len(lenses) != len(images):
        raise ConfigurationError(f"lenses of {len(lenses)} views do not go with {len(images)} images")


def _check_fixed(cameras: Cameras, images: Tensor, called: list[str]) -> None:
    if (len(cameras), cameras.height, cameras.width) != tuple(images[:, 0].shape):
        raise BadSceneError(
            f"{len(cameras)} cameras of {cameras.height} x {cameras.width} pixels do not go with images "
            f"{tuple(images.shape)}; resize or crop both alike"
        )
    cameras.check("known cameras")
    skew = (cameras.intrinsics[:, 0, 1].abs() > 1e-6 * cameras.intrinsics[:, 0, 0]).nonzero().flatten().tolist()
    if skew:
        raise BadCameraError(f"the camera of {called[skew[0]]} has skew, which a pinhole of COLMAP has not; undistort")
    centers = cameras.centers
    if (centers - centers[0]).norm(dim=-1).max() <= 16 * torch.finfo(centers.dtype).eps * centers.norm(dim=-1).max():
        raise BadSceneError(
            f"the cameras of {_some(called)} are all in one place: without a distance between them there is no depth; "
            "use photographs from different places"
        )


def _check_motion(matches: ImageMatches, pairs: Pairs, called: list[str]) -> None:
    motion = largest_motion(pairs)
    if motion < _STILL * max(matches.height, matches.width):
        raise BadSceneError(
            f"{_some(called)} show the same view: their matches move by {motion:.2f} px at most, and without a "
            "distance between the cameras there is no depth; use photographs from different places"
        )


def _some(called: list[str]) -> str:
    return ", ".join(called) if len(called) <= 4 else f"{called[0]}, {called[1]} ... {called[-1]}"


def _apart(together: list[list[int]], called: list[str]) -> str:
    """Names the images that share nothing with the largest group."""
    lost = [called[view] for group in together[1:] for view in group]
    if len(together[0]) == 1:
        return (
            f"no two of these images share {MIN_MATCHES} matching features: {', '.join(called)}; "
            f"use photographs of one place that overlap by half or more, {_LEARNT}"
        )
    return (
        f"{', '.join(lost)}: fewer than {MIN_MATCHES} matching features with any of the other "
        f"{len(together[0])} images; leave them out, add photographs that overlap with both, {_LEARNT}"
    )
