"""Tiny networks of Depth-Anything-3, and full-size weights that need no file."""

from __future__ import annotations

import re

import numpy as np
import torch
from dust3r_networks import splitmix_unit
from torch import Tensor

from reconx_pl.geometry.da3.config import Da3Config
from reconx_pl.geometry.da3.model import DepthAnything3
from reconx_pl.geometry.da3.names import to_official_name

TINY = {
    "width": 32, "depth": 6, "heads": 2, "cross_view_start": 2, "taps": (2, 3, 4, 5), "image_size": 56,
    "head_width": 8, "head_level_widths": (4, 4, 8, 8), "camera_depth": 1,
}  # fmt: skip


def tiny_network(seed: int = 0, **changes: object) -> DepthAnything3:
    """A network of random weights, all norms, scales and tokens among them, whose cameras are cameras."""
    generator = torch.Generator().manual_seed(seed)
    model = DepthAnything3(Da3Config(**{**TINY, **changes})).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim == 1 and not name.endswith("bias"):  # norms and scales
                value.copy_(1 + 0.2 * noise)
            elif value.ndim == 1:
                value.copy_(0.1 * noise)
            else:
                value.copy_(noise if value.ndim == 3 else noise / value[0].numel() ** 0.5)
        model.camera_decoder.field.weight.mul_(0.05)
        model.camera_decoder.field.bias.fill_(1.0)
        model.camera_decoder.quaternion.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 2.0]))
    return model


def stand_in(name: str, shape: tuple[int, ...]) -> Tensor:
    """The value that the full-size probes give to the tensor of that released name, without ``model.``."""
    name = re.sub(r"(output_conv2_aux\.)[123](\.2\.)", r"\g<1>0\2", name)
    count = int(np.prod(shape))
    unit, one = splitmix_unit(name, count), np.float32
    if name.endswith("gamma"):
        value = one(0.2) + one(0.1) * unit
    elif name.endswith(("cls_token", "camera_token", "pos_embed")):
        value = one(0.2) * unit
    elif name.endswith("weight") and len(shape) >= 2:
        value = unit * one(np.sqrt(3.0 * shape[0] / count))
    elif name.endswith("weight"):
        value = one(1) + one(0.1) * unit
    else:
        value = one(0.05) * unit
    if name == "head.scratch.output_conv2.2.weight":
        value = value * one(0.5)
    elif name in ("cam_dec.fc_fov.0.weight", "cam_dec.fc_t.weight"):
        value = value * one(0.25)
    elif name == "cam_dec.fc_fov.0.bias":
        value = value + one(1)
    elif name == "cam_dec.fc_qvec.bias":
        value[3] += one(1)
    return torch.from_numpy(np.ascontiguousarray(value.reshape(shape), dtype=np.float32))


def stand_in_network(**changes: object) -> DepthAnything3:
    """A tiny network with the weights of that rule: the same numbers with every version of torch."""
    model = DepthAnything3(Da3Config(**{**TINY, **changes})).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(stand_in(to_official_name(name), tuple(value.shape)))
    return model


def stand_in_images(views: int = 2, height: int = 252, width: int = 336) -> Tensor:
    """The images of the probes, as the network takes them: [1, V, 3, H, W]."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    images = [
        np.stack(
            [
                1.2 * np.sin(0.031 * (c + 1) * x + 0.047 * (v + 1) * y + c)
                + 0.6 * np.cos(0.11 * (v + 1) * x - 0.07 * y + 2 * c)
                for c in range(3)
            ]
        )
        for v in range(views)
    ]
    return torch.from_numpy(np.stack(images).astype(np.float32))[None]


def stand_in_cameras(views: int = 2, height: int = 252, width: int = 336) -> tuple[Tensor, Tensor]:
    """The cameras of the probes: world to camera [1, V, 4, 4] and intrinsics [1, V, 3, 3]."""
    poses, intrinsics = np.zeros((1, views, 4, 4)), np.zeros((1, views, 3, 3))
    for v in range(views):
        cos, sin = np.cos(np.deg2rad(12.0 * v)), np.sin(np.deg2rad(12.0 * v))
        poses[0, v] = [[cos, 0, sin, -0.5 * v], [0, 1, 0, 0.1 * v], [-sin, 0, cos, 0.2 * v], [0, 0, 0, 1]]
        intrinsics[0, v] = [[0.9 * width, 0, width / 2], [0, 0.88 * width, height / 2], [0, 0, 1]]
    return torch.from_numpy(poses).float(), torch.from_numpy(intrinsics).float()
