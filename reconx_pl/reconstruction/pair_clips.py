"""The clips between neighbouring input views: what a view generator is given."""

from __future__ import annotations

import torch
from torch import Tensor

from reconx_pl.files.tensors import to_bytes
from reconx_pl.geometry.cameras import in_view, interpolate_cameras
from reconx_pl.geometry.clip_paths import path_cameras as path_cameras
from reconx_pl.geometry.estimators.base import KnownDepth
from reconx_pl.reconstruction.input_views import InputViews
from reconx_pl.reconstruction.view_generator import with_ends
from reconx_pl.types import Cameras, Clip, PointCloud

CLOUD_POINTS = 16384  # of a cloud made of depth (ours)


def pair_clips(inputs: InputViews, frames: int) -> tuple[Clip, ...]:
    """One blind clip for each pair of neighbouring input views, made of nothing but input views.

    Frames between are black, their cameras interpolated. Input images go into a clip as 8-bit values. A clip has the
    points that project into one of its two views, if there are any; a pair with depth, of several, has a cloud of its
    own, as a packed clip has.

    Args:
        inputs: C views; where they are closed, the last pair leads back to the first view.
        frames: T of each clip.

    Returns:
        C - 1 clips, C where closed; the key of the only one is that of the inputs, of several it ends in ``+0``,
        ``+1``, ...
    """
    clips = []
    order = inputs.visited
    numbers = inputs.indices or tuple(range(len(inputs)))
    for first in range(len(order) - 1):
        pair = order[first : first + 2]
        # back at the first view, frame numbers go on
        start, end = numbers[pair[0]], numbers[pair[1]] if pair[1] > pair[0] else numbers[pair[0]] + 1
        images, cameras = inputs.images[pair], inputs.cameras[pair]
        stored = torch.zeros(frames, *images.shape[1:], dtype=torch.uint8, device=images.device)
        stored[[0, -1]] = to_bytes(images)
        between = torch.linspace(0, 1, frames, dtype=torch.float64)
        depth = inputs.depth
        own = None if depth is None or not bool((depth[pair] > 0).any()) else depth[pair]
        clips.append(
            Clip(
                key=inputs.key if len(order) == 2 else f"{inputs.key}+{first}",
                dataset=inputs.dataset,
                scene=inputs.scene,
                frames=stored,
                cameras=with_ends(interpolate_cameras(cameras, between), cameras),
                frame_indices=tuple(round(start + (end - start) * float(share)) for share in between),
                fps=inputs.fps,
                caption=inputs.caption,
                depth=own,
                confidence=None if own is None or inputs.confidence is None else inputs.confidence[pair],
                cloud=_pair_cloud(images, cameras, own if len(order) > 2 else None, inputs.cloud),
                geometry=inputs.geometry,
            )
        )
    return tuple(clips)


def _pair_cloud(images: Tensor, cameras: Cameras, depth: Tensor | None, cloud: PointCloud | None) -> PointCloud | None:
    if depth is not None:
        return cloud_of_depth(images, cameras, depth)
    if cloud is None:
        return None
    visible = in_view(cloud.points.double(), cameras.to(dtype=torch.float64)).any(dim=0)
    return cloud[visible] if bool(visible.any()) else cloud


def cloud_of_depth(images: Tensor, cameras: Cameras, depth: Tensor) -> PointCloud:
    single = cameras.to(dtype=torch.float32)
    return KnownDepth(depth.float(), points=CLOUD_POINTS).estimate(images, single).cloud
