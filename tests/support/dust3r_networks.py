"""Tiny networks of DUSt3R, and full-size weights that need no file."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor

from reconx_pl.geometry.dust3r.config import Dust3rConfig
from reconx_pl.geometry.dust3r.model import Dust3r

TINY = {
    "encoder_width": 32, "encoder_depth": 1, "encoder_heads": 2,
    "decoder_width": 24, "decoder_depth": 4, "decoder_heads": 2,
    "dpt_width": 8, "dpt_output_width": 8, "dpt_level_widths": (4, 4, 8, 8),
}  # fmt: skip


def tiny_network(**changes: object) -> Dust3r:
    torch.manual_seed(0)
    return Dust3r(Dust3rConfig(**{**TINY, **changes})).eval()  # type: ignore[arg-type]


def splitmix_unit(name: str, count: int) -> np.ndarray:
    """splitmix64 of the name's CRC-32, in [-1, 1), exact in float32."""
    with np.errstate(over="ignore"):
        z = np.uint64(zlib.crc32(name.encode())) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)


def stand_in(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value that the full-size probe gives to the tensor of that released name."""
    count = int(np.prod(shape))
    value = splitmix_unit(name, count)
    if name.endswith("weight") and len(shape) >= 2:
        value = value * np.float32(np.sqrt(3.0 * shape[0] / count))
    elif name.endswith("weight"):
        value = np.float32(1) + np.float32(0.1) * value
    else:
        value = np.float32(0.05 if name.endswith("bias") else 0.02) * value
    if ".dpt.head.4." in name:
        value = value * np.float32(0.25)
    return torch.from_numpy(value.reshape(shape))


def stand_in_images(height: int = 384, width: int = 512) -> list[Tensor]:
    """The two images of the probe: [1, 3, H, W] in [-1, 1]."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    images = []
    for v in range(2):
        channels = [
            0.6 * np.sin(0.031 * (c + 1) * x + 0.047 * (v + 1) * y + c)
            + 0.3 * np.cos(0.11 * (v + 1) * x - 0.07 * y + 2 * c)
            for c in range(3)
        ]
        images.append(torch.from_numpy(np.clip(np.stack(channels), -1, 1).astype(np.float32))[None])
    return images
