"""A renderer in plain torch, tile by tile with autograd: a second opinion for the tests, and what a fit costs without
kernels of its own. The definitions are those of ``CpuRenderer``, written from the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reconx_pl.splatting.renderers.base import RenderOutput, resolve_background, resolve_degree
from reconx_pl.types import Cameras, Gaussians

TILE = 16  # pixels


@dataclass(frozen=True)
class TorchRenderer:
    """Differentiable Gaussian splatting in torch operations, of any type and on any device (implements ``Renderer``).

    Args:
        alpha_max: highest alpha of one Gaussian at one pixel.
    """

    alpha_max: float = 0.999

    def render(
        self, gaussians: Gaussians, cameras: Cameras, sh_degree: int | None = None, background: Tensor | None = None
    ) -> RenderOutput:
        """See ``Renderer.render``."""
        planes = rasterize(
            gaussians.means,
            gaussians.quaternions,
            gaussians.log_scales.exp(),
            gaussians.opacity_logits.sigmoid(),
            gaussians.sh,
            cameras.world_to_camera.to(gaussians.means),
            cameras.intrinsics.to(gaussians.means),
            cameras.height,
            cameras.width,
            sh_degree=resolve_degree(gaussians, sh_degree),
            background=resolve_background(gaussians, cameras, background),
            alpha_max=self.alpha_max,
        )
        return RenderOutput(*planes)


def rasterize(
    means: Tensor,  # [N, 3]
    quaternions: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    sh: Tensor,  # [N, K, 3]
    world_to_camera: Tensor,  # [V, 4, 4]
    intrinsics: Tensor,  # [V, 3, 3]
    height: int,
    width: int,
    *,
    sh_degree: int,
    background: Tensor,  # [V, 3]
    alpha_max: float = 0.999,
) -> tuple[Tensor, Tensor, Tensor]:
    """Color [V, 3, H, W], alpha, expected depth [V, H, W] of linear parameters, as ``renderers.cpu``'s."""
    factors = rotations(quaternions) * scales[:, None, :]
    views = []
    for pose, k, behind in zip(world_to_camera, intrinsics, background, strict=True):
        center, inverse, box, depth = _project(means, factors, opacities, pose, k, width, height)
        directions = torch.nn.functional.normalize(means - torch.linalg.inv(pose)[:3, 3], dim=-1)
        basis = harmonics(directions, sh_degree)
        color = (torch.einsum("nk,nkc->nc", basis, sh[:, : basis.shape[1]]) + 0.5).relu()
        values = torch.cat([color, depth[:, None], torch.ones_like(depth[:, None])], dim=1)  # [N, 5]
        order = torch.argsort(depth.detach(), stable=True)
        order = order[(box[order, 2:] > box[order, :2]).all(dim=1)]
        rows = []
        for top in range(0, height, TILE):
            bottom = min(top + TILE, height)
            row = order[(box[order, 1] < bottom) & (box[order, 3] > top)]
            tiles = []
            for left in range(0, width, TILE):
                right = min(left + TILE, width)
                n = row[(box[row, 0] < right) & (box[row, 2] > left)]
                weights = _weights(center[n], inverse[n], opacities[n], alpha_max, left, right, top, bottom)
                tiles.append((values[n].T @ weights).reshape(5, bottom - top, right - left))
            rows.append(torch.cat(tiles, dim=2))
        image = torch.cat(rows, dim=1)  # [5, H, W]: colour, accumulated depth, alpha
        picture = image[:3] + (1.0 - image[4]) * behind[:, None, None]
        views.append((picture, image[4], image[3] / image[4].clamp(min=1e-10)))
    colors, alphas, depths = zip(*views, strict=True)
    return torch.stack(colors), torch.stack(alphas), torch.stack(depths)


def _weights(
    center: Tensor,  # [M, 2] front to back
    inverse: Tensor,  # [M, 3]
    opacities: Tensor,  # [M]
    alpha_max: float,
    left: int,
    right: int,
    top: int,
    bottom: int,
) -> Tensor:  # [M, pixels]
    """What each Gaussian contributes to each pixel of a tile: its alpha times the light that reaches it."""
    columns, rows = torch.arange(left, right).to(center) + 0.5, torch.arange(top, bottom).to(center) + 0.5
    dx = center[:, None, None, 0] - columns  # [M, 1, columns]
    dy = center[:, None, None, 1] - rows[:, None]  # [M, rows, 1]
    a, b, c = inverse[:, :, None, None].unbind(1)
    sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    alpha = (opacities[:, None, None] * torch.exp(-sigma)).clamp(max=alpha_max)
    alpha = torch.where((alpha >= 1 / 255) & (sigma >= 0), alpha, 0.0).flatten(1)
    through = torch.cumprod(1.0 - alpha, dim=0)
    before = torch.cat([torch.ones_like(through[:1]), through[:-1]])
    return torch.where(through > 1e-4, alpha * before, 0.0)


def _project(
    means: Tensor, factors: Tensor, opacities: Tensor, pose: Tensor, k: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centres [N, 2] in pixels, inverse covariances [N, 3] (xx, xy, yy), pixel boxes [N, 4] (left, top, right, bottom,
    empty if culled), depths [N]."""
    p = means @ pose[:3, :3].T + pose[:3, 3]
    visible = (p[:, 2] >= 0.01) & (opacities >= 1 / 255)
    p = torch.where(visible[:, None], p, p.new_tensor([0.0, 0.0, 1.0]))
    x, y, z = p.unbind(-1)
    size = p.new_tensor([width, height])
    focal, middle = torch.stack([k[0, 0], k[1, 1]]), torch.stack([k[0, 2], k[1, 2]])
    lowest, highest = -(middle + 0.15 * size) / focal, (1.15 * size - middle) / focal
    tangent = torch.minimum(torch.maximum(p[:, :2] / z[:, None], lowest), highest)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [
            torch.stack([focal[0] / z, zero, -focal[0] * tangent[:, 0] / z], -1),
            torch.stack([zero, focal[1] / z, -focal[1] * tangent[:, 1] / z], -1),
        ],
        -2,
    )
    root = jacobian @ pose[:3, :3] @ factors  # [N, 2, 3]
    xx, xy, yy = root[:, 0].square().sum(-1) + 0.3, (root[:, 0] * root[:, 1]).sum(-1), root[:, 1].square().sum(-1) + 0.3
    determinant = xx * yy - xy * xy
    inverse = torch.stack([yy, -xy, xx], -1) / determinant[:, None]
    center = focal * p[:, :2] / z[:, None] + middle
    with torch.no_grad():
        extent = torch.sqrt(2.0 * torch.log(255.0 * opacities.clamp(min=1 / 255))).clamp(max=3.33)
        radius = torch.ceil(extent[:, None] * torch.stack([xx, yy], -1).sqrt())
        visible = visible & (radius > 0).all(-1) & (determinant > 0)
        box = torch.cat([torch.floor(center - radius), torch.ceil(center + radius)], -1)
        box = torch.where(visible[:, None], box, 0.0)
    return center, inverse, box, z


def rotations(quaternions: Tensor) -> Tensor:  # [N, 3, 3]
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1, eps=1e-30).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
    ]
    return torch.stack(rows, -2)


def harmonics(directions: Tensor, degree: int) -> Tensor:  # [N, (degree + 1) ** 2]
    """Real spherical harmonics with the signs of 3DGS; the constants are the usual norms, such as sqrt(3 / 4 pi)."""
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, 0.28209479177387814)]
    if degree > 0:
        basis += [0.4886025119029199 * value for value in (-y, z, -x)]
    if degree > 1:
        basis += [1.0925484305920792 * x * y, -1.0925484305920792 * y * z, 0.31539156525252005 * (3 * z * z - 1)]
        basis += [-1.0925484305920792 * x * z, 0.5462742152960396 * (x * x - y * y)]
    if degree > 2:
        basis += [-0.5900435899266435 * y * (3 * x * x - y * y), 2.890611442640554 * x * y * z]
        basis += [-0.4570457994644658 * y * (5 * z * z - 1), 0.3731763325901154 * z * (5 * z * z - 3)]
        basis += [-0.4570457994644658 * x * (5 * z * z - 1), 1.445305721320277 * z * (x * x - y * y)]
        basis += [-0.5900435899266435 * x * (x * x - 3 * y * y)]
    return torch.stack(basis, -1)
