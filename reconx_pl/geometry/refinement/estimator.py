"""Cameras and depth of a learnt estimator, polished by bundle adjustment: an estimator around another one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.files.identity import identity_of
from reconx_pl.geometry.cameras import unproject, with_views
from reconx_pl.geometry.estimators.base import PointMapEstimator, Reconstruction, arguments_of, has_dense_maps
from reconx_pl.geometry.estimators.colmap_matches import load_pycolmap, quiet
from reconx_pl.geometry.estimators.lenses import Lenses
from reconx_pl.geometry.point_maps import cloud_from_maps, depth_from_point_map
from reconx_pl.geometry.refinement.depth_factors import depth_factors
from reconx_pl.geometry.refinement.matching import find_features, likely_pairs
from reconx_pl.geometry.refinement.poses import RefinementOptions, RoughViews, polish
from reconx_pl.types import Cameras, Progress

log = logging.getLogger(__name__)


class RefinedEstimator:
    """Another estimator's cameras, polished by bundle adjustment, and its depth, scaled to go with them.

    Only cameras that the other estimator found are polished. Where cameras are given, all or some, its result is
    returned as it is. docs/geometry.md has the method, and when the cameras stay as they are.

    Args:
        inner: finds cameras, and depth pixel by pixel.
        options: see there.

    Raises:
        ConfigurationError: ``inner`` has no depth of its own: structure from motion, which ends with bundle adjustment.
    """

    def __init__(self, inner: PointMapEstimator, options: RefinementOptions = RefinementOptions()) -> None:  # noqa: B008
        if not has_dense_maps(inner):
            raise ConfigurationError(
                f"{type(inner).__name__} has no depth of its own to go with refined poses; name an estimator that has, "
                "as PretrainedDa3. Structure from motion ends with bundle adjustment already"
            )
        self.inner, self.options = inner, options

    @property
    def takes(self) -> frozenset[str]:
        """See ``arguments_of``: names, lenses and progress, and what the inner estimator takes."""
        return arguments_of(self.inner) | {"names", "lenses", "progress"}

    @property
    def identity(self) -> str:
        """Method, version and settings of both: what its results follow from."""
        version = load_pycolmap().__version__
        return f"bundle adjustment, pycolmap {version}: {self.options}; from {identity_of(self.inner)}"

    def estimate(
        self,
        images: Tensor,
        cameras: Cameras | None = None,
        fixed: Tensor | None = None,
        names: Sequence[str] | None = None,
        lenses: Lenses | None = None,
        progress: Progress | None = None,
        cropped: Sequence[str] = (),
    ) -> Reconstruction:
        """See ``PointMapEstimator``.

        Args:
            images: [V, 3, H, W] in [0, 1].
            cameras: V known cameras, which nothing polishes; None lets ``inner`` find them.
            fixed: [V] bool, which of ``cameras`` are known; for an ``inner`` that takes it.
            names: of the images, for messages; also for ``inner``, as the following.
            lenses: which images share a lens, and focal lengths known beforehand (EXIF), which take the place of those
                that ``inner`` found; None: each has a lens of its own.
            progress: counts pairs of images that are matched.
            cropped: see ``GeometryFile.estimate``.

        Returns:
            cameras in the world of ``inner``; its maps, with one factor a view on the depth; a cloud of them.

        Raises:
            BadSceneError: of ``inner``.
            ConfigurationError: lenses of another number of views.
            MissingDependencyError: pycolmap is not installed.
        """
        if lenses is not None and len(lenses) != len(images):
            raise ConfigurationError(f"lenses of {len(lenses)} views do not go with {len(images)} images")
        if refining := cameras is None and len(images) > 1:
            load_pycolmap()  # before the long work
        offered: dict[str, Any] = {
            "fixed": fixed, "names": names, "lenses": lenses, "progress": progress, "cropped": cropped,
        }  # fmt: skip
        wanted = arguments_of(self.inner)
        passed = {name: value for name, value in offered.items() if name in wanted and value is not None}
        found = self.inner.estimate(images, cameras, **passed)
        if not refining:
            return found
        called = [f"image {view}" for view in range(len(images))] if names is None else list(names)
        return self._refined(images.float().cpu(), found, called, lenses, progress)

    def _refined(
        self, images: Tensor, found: Reconstruction, called: list[str], lenses: Lenses | None, progress: Progress | None
    ) -> Reconstruction:
        given = found.cameras.to("cpu", torch.float32)
        maps = found.point_map.to("cpu")
        depth = depth_from_point_map(maps, given)
        groups = list(range(len(images))) if lenses is None else list(lenses.groups)
        with TemporaryDirectory(prefix="reconx-refine-") as folder, quiet(load_pycolmap()):
            features = find_features(images, self.options.features, Path(folder), self.options.seed)
            pairs = likely_pairs(given, found.cloud, self.options.neighbours)
            start = given if lenses is None else _of_lenses(given, lenses)
            bundles = polish(RoughViews(given, start, depth, features, pairs, groups, called), self.options, progress)
        if not bundles:
            return found
        polished, factors = given, torch.ones(len(images))
        for bundle in bundles:
            views = sorted(set(bundle.tracks.views.tolist()))
            polished = with_views(polished, views, bundle.cameras[views])
            factors[views] = depth_factors(bundle, depth, self.options.min_angle).nan_to_num(1.0).float()[views]
        points = unproject(depth * factors[:, None, None], polished)
        maps = replace(maps, points=torch.where(maps.valid[..., None], points, 0.0))
        return Reconstruction(polished, maps, cloud_from_maps(maps, images, max(1, len(found.cloud))))


def _of_lenses(given: Cameras, lenses: Lenses) -> Cameras:
    """Intrinsics of a lens: the median over its views, and the focal length of EXIF where there is one."""
    intrinsics = given.intrinsics.clone()
    for views, focal in lenses.cameras():
        shared = intrinsics[views].median(dim=0).values
        if focal is not None:
            shared[0, 0] = shared[1, 1] = focal
        intrinsics[views] = shared
    return replace(given, intrinsics=intrinsics)
