"""Sparse points made dense: an estimator around one that finds cameras and points."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from reconx_pl.geometry.estimators.base import PointMapEstimator, Reconstruction
from reconx_pl.geometry.estimators.colmap import ColmapEstimator
from reconx_pl.geometry.estimators.lenses import Lenses
from reconx_pl.geometry.estimators.plane_sweep import PlaneSweepOptions, dense_depth
from reconx_pl.geometry.farthest_point import farthest_point_order
from reconx_pl.geometry.point_maps import cloud_from_maps, point_map_from_depth, with_unexplained
from reconx_pl.types import Cameras, PointCloud, PointMap


class PlaneSweepEstimator:
    """Cameras and sparse points of another estimator, and between the points the depth of a plane sweep.

    Args:
        sparse: finds cameras and points; None takes ``ColmapEstimator``.
        options: of the plane sweep.
        points: most points of the cloud.
        device: of the plane sweep; None takes a GPU if there is one.
    """

    def __init__(
        self,
        sparse: PointMapEstimator | None = None,
        options: PlaneSweepOptions = PlaneSweepOptions(),  # noqa: B008 (frozen)
        points: int = 16384,
        device: str | None = None,
    ) -> None:
        self.sparse: PointMapEstimator = sparse or ColmapEstimator()
        self.options = options
        self.points = points
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def identity(self) -> str:
        """Method and settings of both: what its results follow from."""
        sparse = getattr(self.sparse, "identity", type(self.sparse).__name__)
        settings = ", ".join(f"{name}={value}" for name, value in asdict(self.options).items())
        return f"plane sweep: {settings}, points={self.points}; from {sparse}"

    def estimate(
        self,
        images: Tensor,
        cameras: Cameras | None = None,
        names: Sequence[str] | None = None,
        lenses: Lenses | None = None,
    ) -> Reconstruction:
        """See ``PointMapEstimator``.

        Args:
            images: [V, 3, H, W] in [0, 1], V >= 2.
            cameras: V known cameras; None lets ``sparse`` find them.
            names: of the images, for messages; passed on to a ``sparse`` that takes them.
            lenses: see ``ColmapEstimator.estimate``; passed on likewise.

        Returns:
            cameras of ``sparse``; a point map valid where at least two views agree on a depth; a cloud of its points
            and of those sparse points that lie where a view has no depth.

        Raises:
            BadSceneError: of ``sparse`` and of ``dense_depth``.
        """
        wanted = inspect.signature(self.sparse.estimate).parameters
        passed = {name: value for name, value in (("names", names), ("lenses", lenses)) if name in wanted}
        found = self.sparse.estimate(images, cameras, **passed)
        single = found.cameras.to("cpu", torch.float32)
        dense = dense_depth(images.to(self.device), single.to(self.device), found.cloud, self.options)
        point_map = point_map_from_depth(dense.depth.cpu(), single, dense.confidence.cpu())
        return Reconstruction(found.cameras, point_map, self._cloud(point_map, images.float().cpu(), found))

    def _cloud(self, point_map: PointMap, images: Tensor, found: Reconstruction) -> PointCloud:
        """Dense points and the sparse ones beside them, in farthest-point order."""
        if not bool(point_map.valid.any()):
            return found.cloud
        dense = cloud_from_maps(point_map, images, self.points)
        merged = with_unexplained(dense, found.cloud, point_map, found.cameras.to("cpu", torch.float32))
        return merged[farthest_point_order(merged.points, min(self.points, len(merged)))]
