"""Cameras as nine numbers, and the two small networks that read and write them.

The numbers: translation (3) and quaternion xyzw (4) of camera to world, OpenCV axes; the field of view along the
height, then along the width, radians. The principal point is the centre of the image.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reconx_pl.geometry.alignment.state import matrices, quaternions
from reconx_pl.geometry.da3.blocks import Block
from reconx_pl.geometry.da3.config import Da3Config

ENCODING = 9
_EPS = 1e-5
_LEAST_TANGENT = 1e-6
# (ours) the network's field of view is a ReLU: 0, or pi and more, is no camera
_NARROWEST, _WIDEST = math.radians(1), math.radians(179)


def decoded_cameras(encoding: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Nine numbers to cameras.

    Args:
        encoding: [*, 9], the quaternion of any norm.
        height: rows of the image, pixels.
        width: columns.

    Returns:
        world_to_camera [*, 4, 4] and intrinsics [*, 3, 3] in pixels.
    """
    center, quaternion, field = encoding.split([3, 4, 2], dim=-1)
    world_to_camera = torch.eye(4).to(encoding).repeat(*encoding.shape[:-1], 1, 1)
    rotation = matrices(quaternion).transpose(-1, -2)
    world_to_camera[..., :3, :3] = rotation
    world_to_camera[..., :3, 3] = -(rotation @ center[..., None]).squeeze(-1)
    size = encoding.new_tensor([height, width])
    focal = size / 2 / (field / 2).tan().clamp(min=_LEAST_TANGENT)
    intrinsics = torch.eye(3).to(encoding).repeat(*encoding.shape[:-1], 1, 1)
    intrinsics[..., 0, 0], intrinsics[..., 1, 1] = focal[..., 1], focal[..., 0]
    intrinsics[..., 0, 2], intrinsics[..., 1, 2] = width / 2, height / 2
    return world_to_camera, intrinsics


def encoded_cameras(world_to_camera: Tensor, intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Cameras to nine numbers: the inverse of ``decoded_cameras`` where the principal point is in the centre.

    Args:
        world_to_camera: [*, 4, 4].
        intrinsics: [*, 3, 3] pixels.
        height: rows of the image, pixels.
        width: columns.

    Returns:
        [*, 9]; w of the quaternion is not negative.
    """
    rotation = world_to_camera[..., :3, :3].transpose(-1, -2)
    center = -(rotation @ world_to_camera[..., :3, 3:]).squeeze(-1)
    quaternion = quaternions(rotation.reshape(-1, 3, 3)).view(*center.shape[:-1], 4)
    quaternion = torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)
    focal = torch.stack([intrinsics[..., 1, 1], intrinsics[..., 0, 0]], dim=-1)
    field = 2 * torch.atan(focal.new_tensor([height, width]) / 2 / focal)
    return torch.cat([center, quaternion, field], dim=-1)


def failed_fields(encoding: Tensor) -> Tensor:
    """Where the network gives no field of view that a camera can have: [*] bool."""
    field = encoding[..., 7:]
    return ~((field > _NARROWEST) & (field < _WIDEST)).all(-1)


class CameraDecoder(nn.Module):
    """Token 0 of the last tap to nine numbers.

    Args:
        config: size.
    """

    def __init__(self, config: Da3Config) -> None:
        super().__init__()
        width = 2 * config.width
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.translation = nn.Linear(width, 3)
        self.quaternion = nn.Linear(width, 4)
        self.field = nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        """[*, 2C] to [*, 9]."""
        x = self.mlp(tokens)
        return torch.cat([self.translation(x), self.quaternion(x), F.relu(self.field(x))], dim=-1)


class CameraEncoder(nn.Module):
    """Known cameras to the tokens that stand in for token 0 of their views.

    Args:
        config: size.
    """

    def __init__(self, config: Da3Config) -> None:
        super().__init__()
        width = config.width
        self.embed = nn.Sequential(nn.Linear(ENCODING, width // 2), nn.GELU(), nn.Linear(width // 2, width))
        self.token_norm = nn.LayerNorm(width, eps=_EPS)
        self.blocks = nn.ModuleList(
            Block(width, config.camera_heads, config.mlp_ratio, eps=_EPS) for _ in range(config.camera_depth)
        )
        self.norm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, encoding: Tensor) -> Tensor:
        """[B, V, 9] to [B, V, C]."""
        x = self.token_norm(self.embed(encoding))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
