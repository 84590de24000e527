"""Small scenes for the splatting tests."""

from __future__ import annotations

import math

import torch

from reconx_pl.types import Cameras, Gaussians


def ring_cameras(views: int, size: int, distance: float = 3.0, spread: float = 0.5) -> Cameras:
    """Cameras on an arc of ``spread`` radians to each side, all looking at the origin."""
    poses = []
    for view in range(views):
        angle = spread * (2.0 * view / max(views - 1, 1) - 1.0)
        pose = torch.eye(4)
        pose[0, 0], pose[0, 2] = math.cos(angle), math.sin(angle)
        pose[2, 0], pose[2, 2] = -math.sin(angle), math.cos(angle)
        pose[2, 3] = distance
        poses.append(pose)
    focal = 1.1 * size
    k = torch.tensor([[focal, 0.0, size / 2], [0.0, focal, size / 2], [0.0, 0.0, 1.0]])
    return Cameras(torch.stack(poses), k.repeat(views, 1, 1), size, size)


def random_gaussians(count: int, seed: int = 0, sh_degree: int = 3, dtype: torch.dtype = torch.float32) -> Gaussians:
    """A cloud of coloured blobs around the origin."""
    g = torch.Generator().manual_seed(seed)
    sh = 0.15 * torch.randn(count, (sh_degree + 1) ** 2, 3, generator=g)
    sh[:, 0] = (torch.rand(count, 3, generator=g) - 0.5) / 0.28209479177387814
    return Gaussians(
        means=(torch.rand(count, 3, generator=g) * 2 - 1).to(dtype),
        quaternions=torch.randn(count, 4, generator=g).to(dtype),
        log_scales=(-2.2 + 0.4 * torch.randn(count, 3, generator=g)).to(dtype),
        opacity_logits=(1.0 + torch.randn(count, generator=g)).to(dtype),
        sh=sh.to(dtype),
        background=torch.tensor([0.1, 0.2, 0.3], dtype=dtype),
    )
