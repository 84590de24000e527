"""A renderer in plain torch and float64, from the formulas and without tiles: the second opinion of the tests."""

from __future__ import annotations

import torch
from torch import Tensor

from reconx_pl.types import Cameras, Gaussians


def _rotations(quaternions: Tensor) -> Tensor:  # [N, 3, 3]
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
    ]
    return torch.stack(rows, -2)


def _colors(sh: Tensor, directions: Tensor, degree: int) -> Tensor:  # [N, 3]
    x, y, z = directions.unbind(-1)
    one = torch.ones_like(x)
    basis = [0.28209479177387814 * one]
    if degree > 0:
        basis += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if degree > 1:
        basis += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.9461746957575601 * z * z - 0.3153915652525201,
        ]
        basis += [-1.0925484305920792 * x * z, 0.5462742152960396 * (x * x - y * y)]
    return (torch.einsum("kn,nkc->nc", torch.stack(basis), sh[:, : len(basis)]) + 0.5).clamp(min=0)


def reference_render(
    scene: Gaussians, cameras: Cameras, degree: int, background: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One image at a time, every Gaussian at every pixel; color [V, 3, H, W], alpha [V, H, W], depth [V, H, W].

    Degree up to 2; for Gaussians in front of the camera and inside the picture (no guard band).
    """
    rows, columns = torch.arange(cameras.height) + 0.5, torch.arange(cameras.width) + 0.5
    pixels = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).to(scene.means)  # [H, W, 2]
    factors = _rotations(scene.quaternions) * scene.log_scales.exp()[:, None, :]
    opacity = scene.opacity_logits.sigmoid()
    results = []
    for pose, k in zip(cameras.world_to_camera, cameras.intrinsics, strict=True):
        p = scene.means @ pose[:3, :3].T + pose[:3, 3]
        z = p[:, 2]
        zero = torch.zeros_like(z)
        jacobian = torch.stack(
            [
                torch.stack([k[0, 0] / z, zero, -k[0, 0] * p[:, 0] / z**2], -1),
                torch.stack([zero, k[1, 1] / z, -k[1, 1] * p[:, 1] / z**2], -1),
            ],
            -2,
        )
        root = jacobian @ pose[:3, :3] @ factors
        inverse = torch.linalg.inv(root @ root.mT + 0.3 * torch.eye(2).to(root))
        center = torch.stack([k[0, 0] * p[:, 0] / z + k[0, 2], k[1, 1] * p[:, 1] / z + k[1, 2]], -1)
        eye = torch.linalg.inv(pose)[:3, 3]
        color = _colors(scene.sh, torch.nn.functional.normalize(scene.means - eye, dim=-1), degree)
        rgb, depth = torch.zeros_like(pixels[..., :1]).repeat(1, 1, 3), torch.zeros_like(pixels[..., 0])
        light = torch.ones_like(depth)
        for n in torch.argsort(z, stable=True).tolist():
            offset = pixels - center[n]
            sigma = 0.5 * torch.einsum("hwi,ij,hwj->hw", offset, inverse[n], offset)
            alpha = (opacity[n] * torch.exp(-sigma)).clamp(max=0.999)
            alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
            alpha = torch.where(light * (1 - alpha) > 1e-4, alpha, 0.0)
            rgb = rgb + (light * alpha)[..., None] * color[n]
            depth = depth + light * alpha * z[n]
            light = light * (1 - alpha)
        image = (rgb + light[..., None] * background).permute(2, 0, 1)
        results.append((image, 1 - light, depth / (1 - light).clamp(min=1e-10)))
    colors, alphas, depths = zip(*results, strict=True)
    return torch.stack(colors), torch.stack(alphas), torch.stack(depths)
