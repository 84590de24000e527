"""An estimator that a command line can name: it holds known cameras and puts a plane before all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from reconx_pl.geometry.cameras import interpolate_cameras
from reconx_pl.geometry.estimators.base import Reconstruction
from reconx_pl.geometry.point_maps import cloud_from_maps, point_map_from_depth
from reconx_pl.types import Cameras


class PlaneEstimator:
    """Cameras that are not known lie between the first and the last one.

    Args:
        depth: of the plane before every camera, world units.
    """

    def __init__(self, depth: float = 3.0) -> None:
        self.depth = depth

    @property
    def identity(self) -> str:
        return f"plane at {self.depth:g}"

    def estimate(self, images: Tensor, cameras: Cameras | None = None, fixed: Tensor | None = None) -> Reconstruction:
        assert cameras is not None
        found = cameras
        if fixed is not None:
            assert bool(fixed[0]) and bool(fixed[-1]) and not bool(fixed.all())
            ends = cameras[[0, len(cameras) - 1]]
            found = interpolate_cameras(ends, torch.linspace(0, 1, len(cameras), dtype=torch.float64))
        maps = point_map_from_depth(torch.full(images[:, 0].shape, self.depth), found)
        return Reconstruction(found, maps, cloud_from_maps(maps, images, 300))
