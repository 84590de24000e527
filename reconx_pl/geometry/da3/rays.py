"""Cameras out of rays: one homography a view, from the image to the directions in the world."""

from __future__ import annotations

import torch
from torch import Tensor

from reconx_pl.geometry.da3.head import Rays

_ROUNDS = 5  # of the weights
_LEAST_ERROR = 1e-6  # radians, of rays that are free of noise


def cameras_of_rays(rays: Rays, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The pinhole camera that fits the rays of every view best.

    The direction of the pixel p is R K^-1 p of any length. That matrix is the null vector of all cross products
    (a DLT), weighted by the confidence; QR parts it into the rotation and the upper triangular K^-1. The centre is the
    weighted mean of the origins.

    (ours) The original divides directions by their z, leaves outliers out by unseeded draws, and parts the matrix by
    QL, which is exact where the principal point is in the centre. Here rays that fit badly weigh less, round by round.

    Args:
        rays: [V, h, w, ...] in one world; ``h`` x ``w`` pixels cover the image.
        height: rows of the image, pixels.
        width: columns.

    Returns:
        world_to_camera [V, 4, 4] and intrinsics [V, 3, 3] in pixels of the image, without skew; float32.
    """
    rows, columns = rays.confidence.shape[-2:]
    y, x = torch.meshgrid(_centers(rows), _centers(columns), indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], dim=-1).flatten(0, 1)  # [N, 3]
    to_pixels = torch.tensor([[width / 2, 0, width / 2], [0, height / 2, height / 2], [0, 0, 1]], dtype=torch.float64)
    poses, intrinsics = [], []
    for directions, origins, confidence in zip(*rays, strict=True):
        weight = confidence.flatten().double()
        rotation, inverse = _parts(_homography(pixels, directions.reshape(-1, 3).double(), weight))
        center = (weight[:, None] * origins.reshape(-1, 3).double()).sum(0) / weight.sum()
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3], pose[:3, 3] = rotation.T, -rotation.T @ center
        camera = torch.linalg.inv(inverse)
        camera = to_pixels @ (camera / camera[2, 2])
        camera[0, 1] = 0
        poses.append(pose)
        intrinsics.append(camera)
    return torch.stack(poses).float(), torch.stack(intrinsics).float()


def _centers(count: int) -> Tensor:
    """Centres of pixels where the image goes from -1 to 1."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) * 2 / count - 1


def _homography(pixels: Tensor, directions: Tensor, confidence: Tensor) -> Tensor:
    """[3, 3] of positive determinant that takes pixels [N, 3] to multiples of directions [N, 3]."""
    directions = directions / directions.norm(dim=-1, keepdim=True)
    x, y, z = directions.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).view(-1, 3, 3)
    rows = torch.einsum("nij,nk->nijk", cross, pixels).flatten(2)  # [N, 3, 9]
    weight = confidence
    matrix = torch.eye(3, dtype=torch.float64)
    for _ in range(_ROUNDS):
        normal = torch.einsum("nri,nrj,n->ij", rows, rows, weight)
        matrix = torch.linalg.eigh(normal).eigenvectors[:, 0].view(3, 3)
        found = pixels @ matrix.T
        error = torch.linalg.cross(directions, found / found.norm(dim=-1, keepdim=True)).norm(dim=-1)
        weight = confidence / (1 + (error / error.median().clamp(min=_LEAST_ERROR)) ** 2)
    return matrix * torch.linalg.det(matrix).sign()


def _parts(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A rotation and an upper triangular matrix of positive diagonal, whose product it is."""
    q, r = torch.linalg.qr(matrix)
    signs = r.diagonal().sign()
    return q * signs, signs[:, None] * r
