"""reconstruction/pair_clips.py."""

from __future__ import annotations

import torch
from torch import Tensor

from reconx_pl.evaluation.entry_views import BenchmarkViews
from reconx_pl.evaluation.task import CLOUD_POINTS
from reconx_pl.geometry.cameras import in_view, interpolate_cameras, with_views
from reconx_pl.geometry.estimators.base import KnownDepth
from reconx_pl.reconstruction.view_generator import with_ends
from reconx_pl.types import Cameras, Clip, PointCloud


def pair_clips(
    views: BenchmarkViews, frames: int, cloud: PointCloud | None, depth: Tensor | None = None
) -> tuple[Clip, ...]:
    """One blind clip for each pair of neighbouring context views, made of nothing but context views.

    Frames between are black, their cameras interpolated. Context images go into a clip as 8-bit values.

    Args:
        views: the entry.
        frames: T of each clip.
        cloud: of the scene; a clip has the points that project into one of its two views, if there are any.
        depth: [C, H, W] of the context views; a pair with depth has a cloud of its own, as a packed clip has.

    Returns:
        C - 1 clips; the key of the only one is the entry's, of several it ends in ``+0``, ``+1``, ...
    """
    clips = []
    count = len(views.context_indices)
    for first in range(count - 1):
        pair = [first, first + 1]
        start, end = views.context_indices[first], views.context_indices[first + 1]
        images, cameras = views.context_images[pair], views.context_cameras[pair]
        stored = torch.zeros(frames, *images.shape[1:], dtype=torch.uint8, device=images.device)
        stored[[0, -1]] = (images * 255).round().clamp(0, 255).to(torch.uint8)
        between = torch.linspace(0, 1, frames, dtype=torch.float64)
        own = None if depth is None or not bool((depth[pair] > 0).any()) else depth[pair]
        clips.append(
            Clip(
                key=views.key if count == 2 else f"{views.key}+{first}",
                dataset=views.dataset,
                scene=views.scene,
                frames=stored,
                cameras=with_ends(interpolate_cameras(cameras, between), cameras),
                frame_indices=tuple(round(start + (end - start) * float(share)) for share in between),
                fps=views.fps,
                caption=views.caption,
                depth=own,
                cloud=_pair_cloud(images, cameras, own if count > 2 else None, cloud),
                geometry=views.geometry,
            )
        )
    return tuple(clips)


def _pair_cloud(images: Tensor, cameras: Cameras, depth: Tensor | None, cloud: PointCloud | None) -> PointCloud | None:
    if depth is not None:
        return _cloud_of_depth(images, cameras, depth)
    if cloud is None:
        return None
    visible = in_view(cloud.points.double(), cameras.to(dtype=torch.float64)).any(dim=0)
    return cloud[visible] if bool(visible.any()) else cloud


def _cloud_of_depth(images: Tensor, cameras: Cameras, depth: Tensor) -> PointCloud:
    single = cameras.to(dtype=torch.float32)
    return KnownDepth(depth.float(), points=CLOUD_POINTS).estimate(images, single).cloud


def path_cameras(views: Cameras, frames: int) -> Cameras:
    """Cameras of all frames, interpolated between neighbouring input views, which keep theirs to the last bit.

    Args:
        views: C >= 2 input views in the order of visiting.
        frames: T of each clip from one to the next, both included.

    Returns:
        (C - 1) (T - 1) + 1 cameras; input view i is number i (T - 1).
    """
    step = frames - 1
    input_places = [view * step for view in range(len(views))]
    positions = torch.linspace(0, len(input_places) - 1, input_places[-1] + 1, dtype=torch.float64)
    return with_views(interpolate_cameras(views, positions), input_places, views)
