"""From a point cloud to the Gaussians that the fit starts from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import project
from reconx_pl.types import Cameras, Gaussians, PointCloud

SH_DC = 0.28209479177387814  # the constant harmonic: colour = 0.5 + SH_DC * coefficient


@dataclass(frozen=True)
class InitialiseConfig:
    """How points become Gaussians.

    Args:
        sh_degree: of the coefficients that are allocated, 0 to 3; only degree 0 starts with values.
        opacity: of every Gaussian at the start. 0.5 and not the 0.1 of 3DGS, because nothing is densified here.
        max_width: longest standard deviation, as a share of the width that a camera sees at the point's depth. Without
            this cap lone points (the edge of the cloud, outliers) start as balls that hide the scene.
        min_pixels: shortest standard deviation in pixels at the point's depth, for points that coincide.
    """

    sh_degree: int = 3
    opacity: float = 0.5
    max_width: float = 0.05
    min_pixels: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.sh_degree <= 3:
            raise ConfigurationError(f"sh_degree must be 0 to 3, got {self.sh_degree}")
        if not 0.0 < self.opacity < 1.0:
            raise ConfigurationError(f"opacity must be between 0 and 1, got {self.opacity}")
        if not (self.max_width > 0.0 and self.min_pixels > 0.0):
            raise ConfigurationError("max_width and min_pixels must be positive")


def gaussians_from_points(points: PointCloud, cameras: Cameras, config: InitialiseConfig | None = None) -> Gaussians:
    """One isotropic Gaussian a point: as wide as the root mean square distance to its three nearest neighbours.

    Args:
        points: the cloud, world units, at least 4 points.
        cameras: the views; their depth of a point caps its width (``InitialiseConfig.max_width``).
        config: see ``InitialiseConfig``.

    Raises:
        BadSceneError: no points, fewer than 4, or NaN or infinite coordinates or colours.
    """
    from scipy.spatial import cKDTree

    config = config or InitialiseConfig()
    count = len(points)
    if count == 0:
        raise BadSceneError("the point cloud is empty: check the confidence threshold of the point maps")
    if count < 4:
        raise BadSceneError(f"the point cloud has {count} points; at least 4 are needed for neighbour distances")
    means = points.points.detach().to(torch.float32)
    if not bool(torch.isfinite(means).all() and torch.isfinite(points.colors).all()):
        bad = int((~torch.isfinite(means).all(dim=1) | ~torch.isfinite(points.colors).all(dim=1)).sum())
        raise BadSceneError(f"{bad} of {count} points have NaN or infinite values; drop them before the fit")
    located = means.cpu().double().numpy()
    distances, _ = cKDTree(located).query(located, k=4)  # itself first
    spacing = torch.from_numpy(distances[:, 1:]).square().mean(dim=1).sqrt().to(means)  # [N]
    depth, focal = _nearest_depth(means, cameras.to(means.device, means.dtype))
    upper = config.max_width * depth * cameras.width / focal
    scales = torch.minimum(torch.maximum(spacing, config.min_pixels * depth / focal), upper)
    sh = means.new_zeros(count, (config.sh_degree + 1) ** 2, 3)
    sh[:, 0] = (points.colors.to(means) - 0.5) / SH_DC
    quaternions = means.new_zeros(count, 4)
    quaternions[:, 0] = 1.0
    return Gaussians(
        means=means.clone(),
        quaternions=quaternions,
        log_scales=scales.log()[:, None].repeat(1, 3),
        opacity_logits=torch.logit(means.new_full((count,), config.opacity)),
        sh=sh,
        background=means.new_zeros(3),
    )


def _nearest_depth(means: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Smallest depth [N] among the cameras that have a point in their picture, and that camera's focal length [N].

    A point that no camera sees gets its distance to the nearest camera instead.
    """
    pixels, depth = project(means, cameras)  # [V, N, 2], [V, N]
    size = means.new_tensor([cameras.width, cameras.height])
    seen = (depth > 0.01) & (pixels >= 0).all(dim=-1) & (pixels < size).all(dim=-1)
    best, view = torch.where(seen, depth, torch.inf).min(dim=0)
    distance, nearest = torch.cdist(means, cameras.centers).min(dim=1)
    unseen = torch.isinf(best)
    best = torch.where(unseen, distance, best).clamp(min=1e-6)
    return best, cameras.intrinsics[torch.where(unseen, nearest, view), 0, 0]
