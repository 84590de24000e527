"""Small scenes whose truth is known, and what a pairwise network would say of them, with noise or without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from reconx_pl.geometry.alignment.pixels import default_intrinsics
from reconx_pl.geometry.cameras import pixel_rays
from reconx_pl.geometry.estimators.pair_predictions import PairPredictions
from reconx_pl.geometry.estimators.pairs import PairGraph
from reconx_pl.geometry.procrustes import fit_similarity
from reconx_pl.types import Cameras

_SPHERES = ((-0.7, 0.2, 4.0, 0.6), (0.6, -0.3, 3.6, 0.5), (0.1, 0.7, 4.6, 0.7), (1.4, 0.5, 5.0, 0.8))


@dataclass(frozen=True)
class PairScene:
    """Truth of V views."""

    cameras: list[Cameras]  # one view each, float64
    points: list[Tensor]  # V of [H, W, 3] world

    @property
    def centers(self) -> Tensor:  # [V, 3]
        return torch.cat([camera.centers for camera in self.cameras])

    @property
    def focals(self) -> Tensor:  # [V]
        return torch.stack([camera.intrinsics[0, 0, 0] for camera in self.cameras])


def pair_scene(
    sizes: Sequence[tuple[int, int]] = ((24, 32),) * 4,
    focals: Sequence[float] = (30.0, 30.0, 30.0, 30.0),
    seed: int = 0,
) -> PairScene:
    """Spheres before a bent wall, about 4 units away, seen by cameras that are about 0.5 units apart."""
    generator = torch.Generator().manual_seed(seed)
    cameras, points = [], []
    for (height, width), focal in zip(sizes, focals, strict=True):
        center = (torch.rand(3, generator=generator, dtype=torch.float64) - 0.5) * torch.tensor([1.5, 1.0, 0.8])
        turn = (torch.rand(3, generator=generator, dtype=torch.float64) - 0.5) * torch.tensor([0.15, 0.15, 0.1])
        turn[1] -= 0.2 * center[0]  # they look at the middle
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3] = torch.from_numpy(Rotation.from_rotvec(turn.numpy()).as_matrix())
        pose[:3, 3] = -pose[:3, :3] @ center
        intrinsics = default_intrinsics(torch.tensor(focal, dtype=torch.float64), height, width)
        camera = Cameras(pose[None], intrinsics[None], height, width)
        rays = pixel_rays(camera)[0] @ pose[:3, :3]
        cameras.append(camera)
        points.append(center + rays * _nearest(center, rays)[..., None])
    return PairScene(cameras, points)


def _nearest(center: Tensor, rays: Tensor) -> Tensor:
    """Depth where rays of z-depth 1 meet the scene: [H, W]."""
    found = (6.5 - center[2]) / rays[..., 2]
    found = found * (1 + 0.05 * torch.sin(3 * rays[..., 0]) * torch.cos(2 * rays[..., 1]))
    for x, y, z, radius in _SPHERES:
        apart = center - center.new_tensor([x, y, z])
        a, b = rays.square().sum(-1), (rays * apart).sum(-1)
        root = b.square() - a * (apart.square().sum() - radius**2)
        hit = (-b - root.clamp(min=0).sqrt()) / a
        found = torch.where((root > 0) & (hit > 0.1), torch.minimum(hit, found), found)
    return found


def predictions_of(
    scene: PairScene, edges: Tensor | None = None, noise: float = 0.0, seed: int = 1, smooth: float = 0.0
) -> PairPredictions:
    """Every edge in the frame of its first view and a unit of its own.

    ``noise`` is the standard deviation of a point, in units of the depth, where the confidence is 2; it falls as the
    confidence grows. ``smooth`` is that of errors which neighbours share, as a network's are: they do not average out.
    """
    generator, bends = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 10_000)
    edges = PairGraph().edges(len(scene.points)) if edges is None else edges
    points, confidence = [], []
    for pair in edges.tolist():
        scale = 0.2 + 0.3 * torch.rand((), generator=generator, dtype=torch.float64)
        to_camera = scene.cameras[pair[0]].world_to_camera[0]
        both, sure = [], []
        for view in pair:
            shape = scene.points[view].shape
            c = 1 + torch.exp(1.5 + torch.randn(shape[:2], generator=generator, dtype=torch.float64))
            shift = torch.randn(shape, generator=generator, dtype=torch.float64) * (noise / (c - 1))[..., None]
            inside = scene.points[view] @ to_camera[:3, :3].T + to_camera[:3, 3]
            if smooth:
                bend = torch.randn(1, 3, 4, 5, generator=bends, dtype=torch.float64)
                bend = functional.interpolate(bend, size=shape[:2], mode="bicubic", align_corners=True)
                shift = shift + smooth * bend[0].permute(1, 2, 0)
            both.append(((inside + shift * inside[..., 2:]) * scale).float())
            sure.append(c.float())
        points.append((both[0], both[1]))
        confidence.append((sure[0], sure[1]))
    return PairPredictions(edges, points, confidence)


def errors_of(
    world_to_camera: Tensor,
    focals: Tensor,
    points: Sequence[Tensor],
    true_camera_to_world: Tensor,
    true_focals: Tensor,
    true_points: Sequence[Tensor],
) -> dict[str, float]:
    """As the kits name and measure them: world units of the truth, degrees, percent.

    ``point_err_*`` and ``centre_err_*`` after the similarity that fits all points, ``ate_rmse`` after the one that fits
    the centres.
    """
    poses, truth = torch.linalg.inv(world_to_camera.double()), true_camera_to_world.double()
    found = torch.cat([one.reshape(-1, 3) for one in points]).double()
    wanted = torch.cat([one.reshape(-1, 3) for one in true_points]).double()
    by_points = fit_similarity(found, wanted)
    point_error = (by_points.apply(found) - wanted).norm(dim=1)

    def off(similarity) -> float:
        return (similarity.apply(poses[:, :3, 3]) - truth[:, :3, 3]).square().sum(1).mean().sqrt().item()

    turns = []
    for i in range(len(poses)):
        for j in range(i):
            one, two = (p[i, :3, :3].T @ p[j, :3, :3] for p in (poses, truth))
            turns.append(torch.rad2deg(2 * torch.asin(((one - two).norm() / 8**0.5).clamp(max=1))).item())
    focal = 100 * (focals.double() / true_focals.double() - 1).abs()
    result = {
        "point_err_mean": point_error.mean().item(),
        "point_err_median": point_error.median().item(),
        "centre_err_rmse_pts_aligned": off(by_points),
        "rel_rot_deg_mean": sum(turns) / len(turns),
        "rel_rot_deg_max": max(turns),
        "focal_pct_mean": focal.mean().item(),
        "focal_pct_max": focal.max().item(),
    }
    if len(poses) > 2:  # two centres lie on a line
        result["ate_rmse"] = off(fit_similarity(poses[:, :3, 3], truth[:, :3, 3]))
    return result


def scene_errors(alignment, scene: PairScene) -> dict[str, float]:
    """``errors_of`` an ``Alignment`` of the scene's views."""
    return errors_of(
        alignment.world_to_camera,
        alignment.intrinsics[:, 0, 0],
        alignment.points,
        torch.cat([camera.camera_to_world for camera in scene.cameras]),
        scene.focals,
        scene.points,
    )
