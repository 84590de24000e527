"""Tensors and small JSON between stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from reconx_pl.files.atomic import atomic_write
from reconx_pl.files.weights import read_tensors
from reconx_pl.types import Cameras, PointCloud


def save_tensors(tensors: Mapping[str, Tensor | None], path: Path) -> None:
    """Write those that are there, whole or not at all; ``load_tensors`` reads them."""
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items() if value is not None}
    with atomic_write(path) as partial:
        save_file(kept, partial)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """What ``save_tensors`` wrote, in memory: the file may be deleted."""
    return {name: value.clone() for name, value in read_tensors(path).items()}


def camera_tensors(cameras: Cameras) -> dict[str, Tensor]:
    size = torch.tensor([cameras.height, cameras.width])
    return {"world_to_camera": cameras.world_to_camera, "intrinsics": cameras.intrinsics, "size": size}


def cameras_of(tensors: Mapping[str, Tensor]) -> Cameras:
    height, width = tensors["size"].tolist()
    return Cameras(tensors["world_to_camera"], tensors["intrinsics"], height, width)


def cloud_tensors(cloud: PointCloud) -> dict[str, Tensor]:
    return {"points": cloud.points, "colors": cloud.colors, "point_confidence": cloud.confidence}


def cloud_of(tensors: Mapping[str, Tensor]) -> PointCloud:
    return PointCloud(tensors["points"], tensors["colors"], tensors["point_confidence"])


def to_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8; what was uint8 before comes back to the bit."""
    return (images * 255).round_().clamp_(0, 255).to(torch.uint8)
