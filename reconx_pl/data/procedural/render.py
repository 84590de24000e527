"""Render a scene into given cameras: frames, exact depth, and a DUSt3R-like confidence."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reconx_pl.data.procedural.kernels import render_view
from reconx_pl.data.procedural.primitives import Scene
from reconx_pl.types import Cameras


class Rendering(NamedTuple):
    """What V cameras see."""

    frames: Tensor  # [V, 3, H, W] uint8
    depth: Tensor  # [V, H, W] float32, along the optical axis of the pixel-centre ray, metres, 0 = none (sky)
    cosine: Tensor  # [V, H, W] float32, between ray and surface normal, 0 where there is no depth


def render_scene(scene: Scene, cameras: Cameras, samples: int = 2) -> Rendering:
    """Ray-cast a scene on one core.

    Args:
        scene: what to render.
        cameras: V views without skew.
        samples: colour rays along each side of a pixel; 0 renders depth only and leaves the frames black.

    Returns:
        frames, depth and cosine of every view.
    """
    views, height, width = len(cameras), cameras.height, cameras.width
    to_world = np.ascontiguousarray(cameras.world_to_camera[:, :3, :3].double().numpy().transpose(0, 2, 1))
    translation = cameras.world_to_camera[:, :3, 3].double().numpy()
    origin = -np.einsum("vij,vj->vi", to_world, translation)
    intrinsics = cameras.intrinsics.double().numpy()
    lens = np.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1], intrinsics[:, 0, 2], intrinsics[:, 1, 2]], axis=1)
    image = np.zeros((views, height, width, 3), dtype=np.uint8)
    depth = np.zeros((views, height, width), dtype=np.float32)
    cosine = np.zeros((views, height, width), dtype=np.float32)
    for view in range(views):
        render_view(
            np.ascontiguousarray(origin[view]), to_world[view], lens[view], scene.tables,
            samples, image[view], depth[view], cosine[view],
        )  # fmt: skip
    frames = torch.from_numpy(image).permute(0, 3, 1, 2).contiguous()
    return Rendering(frames, torch.from_numpy(depth), torch.from_numpy(cosine))


def depth_confidence(depth: Tensor, cosine: Tensor) -> Tensor:
    """Confidence on DUSt3R's scale, 1 + exp(x), as a network would grade exact depth.

    x falls with the distance (relative to the median of all views), with the grazing angle, and at depth edges, where a
    network smears; the floor 1 stands where there is no depth.

    Args:
        depth: [V, H, W] metres, 0 = none.
        cosine: [V, H, W] between ray and surface normal.

    Returns:
        [V, H, W], from 1 to about 13.
    """
    valid = depth > 0
    if not valid.any():
        return torch.ones_like(depth)
    scale = depth[valid].median()
    inverse = torch.where(valid, scale / depth.clamp(min=1e-6), 0.0)
    # inverse depth is linear in the pixel over any plane, so that its second difference marks edges and nothing else
    padded = F.pad(inverse[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    center = padded[:, 1:-1, 1:-1]
    bend = (padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:] - 2 * center).abs()
    bend = bend + (padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] - 2 * center).abs()
    edge = (bend / inverse.clamp(min=1e-6) / 0.1).clamp(max=1.0)
    x = 3.2 - 0.8 * depth / scale - 1.5 * (1 - cosine) - 1.5 * edge
    return torch.where(valid, 1 + torch.exp(x), 1.0)
