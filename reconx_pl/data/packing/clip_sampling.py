"""Cutting a clip out of a raw scene: which frames, at which size, with which cloud.

Clips are contiguous with random skips and a dynamic frame rate (ReconX, V-A). (ours) That is: each clip takes
every s-th frame, with s and the start drawn for each clip, so that its frame rate is the source's divided by s; with
``jitter`` the single steps of a clip differ too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reconx_pl.data.formats.scene import RawScene
from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.cameras import in_view, resize_and_crop
from reconx_pl.geometry.estimators.base import KnownDepth
from reconx_pl.geometry.farthest_point import farthest_point_order
from reconx_pl.types import Cameras, Clip, PointCloud

MIN_POINTS = 64  # of a cloud worth storing


@dataclass(frozen=True)
class PackOptions:
    """How clips are cut out of scenes.

    Args:
        frames: T, frames of a clip; the paper has 32.
        height: rows of the packed frames, pixels; the paper has 512.
        width: columns of the packed frames, pixels.
        min_stride: least step between the frames of a clip, in frames of the source.
        max_stride: greatest step. A scene too short for a step does not get it.
        min_gap: least distance between first and last frame, in frames of the source; 0 for any.
        max_gap: greatest such distance; 0 for any.
        jitter: how much the steps within a clip differ, as a share of its step, 0 to 1: half of them grow by up to
            so much and the other half shrink, so that first and last frame stay. At least one frame remains a step;
            clips with a step of one are not changed.
        min_overlap: least share of the first view's field that the last view sees, 0 to 1; only scenes with depth or
            points can be packed then (``data.overlap``).
        max_overlap: greatest such share; 1 for any.
        clips_per_scene: clips of each scene, fewer where it has no more that differ.
        seed: of the choice of clips; each scene has its own stream, so that adding scenes changes no other.
        points: most points of the stored cloud.
        min_points: a cloud with fewer points is not stored.
        default_fps: frames a second where the source has no time stamps, as with photographs.
        quality: JPEG quality, 1 to 100.
        clips_per_shard: clips of each tar file.
    """

    frames: int = 32
    height: int = 512
    width: int = 512
    min_stride: int = 1
    max_stride: int = 8
    min_gap: int = 0
    max_gap: int = 0
    jitter: float = 0.0
    min_overlap: float = 0.0
    max_overlap: float = 1.0
    clips_per_scene: int = 1
    seed: int = 0
    points: int = 16384
    min_points: int = MIN_POINTS
    default_fps: float = 24.0
    quality: int = 95
    clips_per_shard: int = 64

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise ConfigurationError(
                f"a clip needs its first and its last frame: frames must be at least 2, not {self.frames}"
            )
        if min(self.height, self.width) < 8:
            raise ConfigurationError(f"clips of {self.height} x {self.width} pixels are too small; the least is 8 x 8")
        if not 1 <= self.min_stride <= self.max_stride:
            raise ConfigurationError(f"need 1 <= min_stride <= max_stride, got {self.min_stride} and {self.max_stride}")
        if min(self.min_gap, self.max_gap) < 0 or (self.max_gap and self.max_gap < max(self.min_gap, self.frames - 1)):
            raise ConfigurationError(
                f"min_gap {self.min_gap} and max_gap {self.max_gap} leave no clip of {self.frames} frames; "
                "0 means no bound"
            )
        if not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"jitter is a share of a step, 0 to 1, not {self.jitter:g}")
        if not 0 <= self.min_overlap <= self.max_overlap <= 1:
            raise ConfigurationError(
                f"need 0 <= min_overlap <= max_overlap <= 1, got {self.min_overlap:g} and {self.max_overlap:g}"
            )
        if self.clips_per_scene < 1 or self.clips_per_shard < 1:
            raise ConfigurationError("clips_per_scene and clips_per_shard must be positive")
        if self.points < 1 or self.min_points < 1:
            raise ConfigurationError("points and min_points must be positive")
        if not self.default_fps > 0 or not 1 <= self.quality <= 100:
            raise ConfigurationError("default_fps must be positive and quality between 1 and 100")


def choose_clips(
    count: int,
    options: PackOptions,
    generator: np.random.Generator,
    accept: Callable[[int, int], bool] | None = None,
) -> list[Sequence[int]]:
    """Frame indices of the clips of a scene of ``count`` frames; empty if it is too short for one.

    A stride is drawn evenly from those that fit, then a start; a clip that was drawn before is drawn again, a few
    times. So is one whose first and last frame ``accept`` refuses.
    """
    span = options.frames - 1
    most = min(count - 1, options.max_gap or count - 1)
    strides = [
        stride
        for stride in range(options.min_stride, options.max_stride + 1)
        if options.min_gap <= stride * span <= most
    ]
    if not strides:
        return []
    drawn: list[range] = []
    refused: set[range] = set()
    for _ in range(options.clips_per_scene):
        for _ in range(20 if accept is None else 100):
            stride = strides[int(generator.integers(len(strides)))]
            start = int(generator.integers(count - stride * span))
            clip = range(start, start + stride * span + 1, stride)
            if clip in drawn or clip in refused:
                continue
            if accept is None or accept(clip[0], clip[-1]):
                drawn.append(clip)
                break
            refused.add(clip)
    return [_uneven(clip, options.jitter, generator) for clip in drawn] if options.jitter else list(drawn)


def _uneven(clip: range, jitter: float, generator: np.random.Generator) -> Sequence[int]:
    """A clip whose steps differ: each of a random half of them takes some frames from one of the other half."""
    most = min(round(jitter * clip.step), clip.step - 1)
    steps = np.full(len(clip) - 1, clip.step)
    order = generator.permutation(len(steps))
    pairs = len(steps) // 2
    moved = generator.integers(-most, most + 1, pairs)
    steps[order[:pairs]] += moved
    steps[order[pairs : 2 * pairs]] -= moved
    return tuple(int(index) for index in clip.start + np.concatenate([[0], np.cumsum(steps)]))


def clip_key(dataset: str, scene: str, number: int) -> str:
    """``<dataset>-<scene>-<clip>`` with only the characters that a key of a shard may have."""
    return f"{plain(dataset)}-{plain(scene)}-{number:04d}"


def scene_clip(
    raw: RawScene,
    frames: Sequence[int],
    height: int,
    width: int,
    *,
    key: str | None = None,
    points: int = 16384,
    min_points: int = MIN_POINTS,
    default_fps: float = 24.0,
    seed: int = 0,
) -> Clip:
    """One clip of a scene: images resized with Lanczos so that the short side fits and cropped around the centre.

    Args:
        raw: the scene.
        frames: indices of the frames, first and last are the condition views.
        height, width: of the clip, pixels.
        key: of the clip; by default made of the names and the first and last index.
        points: most points of the cloud, in farthest-point order. It is made of the depth of the condition views where
            they have some, else of those points of the scene's cloud that fall into one of them and, where the source
            knows, were found in one of them. They were triangulated from all photographs all the same, so that they
            are placed better than two views could tell.
        min_points: a smaller cloud is left out.
        default_fps: frames a second where the source has no time stamps.
        seed: of the choice of pixels from depth maps.

    Raises:
        BadSceneError: images of different sizes; names the file.
        BadDataError: an image that cannot be decoded; names it.
    """
    frames = list(frames)
    if len(frames) < 2 or min(frames) < 0 or max(frames) >= len(raw):
        raise ConfigurationError(f"{raw.source}: frames {frames} are no clip of a scene of {len(raw)} frames")
    images, cameras = crop_images(raw, frames, height, width)
    ends = replace(raw, frames=(raw.frames[frames[0]], raw.frames[frames[-1]]))
    depth, confidence, cloud = cut_geometry(ends, images[[0, -1]], cameras[[0, -1]], points, seed)
    if cloud is not None and len(cloud) < min_points:
        cloud = None
    steps = np.diff(frames)
    stride = float(np.abs(steps).mean()) or 1.0
    return Clip(
        key=key or f"{plain(raw.dataset)}-{plain(raw.name)}-{frames[0]}-{frames[-1]}",
        dataset=raw.dataset,
        scene=raw.name,
        frames=images,
        cameras=cameras.to(dtype=torch.float32),
        frame_indices=tuple(frames),
        fps=raw.fps / stride if raw.fps else default_fps,
        caption=raw.caption,
        depth=depth,
        confidence=confidence,
        cloud=cloud,
    )


def plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_+=-]", "_", name) or "_"


def crop_images(raw: RawScene, frames: Sequence[int], height: int, width: int) -> tuple[Tensor, Cameras]:
    """Images [V, 3, H, W] uint8 and cameras (float64) of some frames, resized and cropped as in ``scene_clip``.

    Raises:
        BadSceneError: images of different sizes; names the file.
        BadDataError: an image that cannot be decoded; names it.
    """
    part = replace(raw, frames=tuple(raw.frames[index] for index in frames))
    cameras, resized, offset = resize_and_crop(part.cameras, height, width)
    images = torch.stack([_frame(part, index, height, width, resized, offset) for index in range(len(part))])
    return images, cameras


def _frame(
    raw: RawScene, index: int, height: int, width: int, resized: tuple[int, int], offset: tuple[int, int]
) -> Tensor:  # [3, H, W] uint8
    image = Image.fromarray(raw.load_image(index))
    if image.size != (resized[1], resized[0]):
        image = image.resize((resized[1], resized[0]), Image.Resampling.LANCZOS)
    top, left = offset
    return torch.from_numpy(np.array(image)[top : top + height, left : left + width]).permute(2, 0, 1).contiguous()


def crop_depth(depth: np.ndarray, cameras: Cameras, resized: tuple[int, int], offset: tuple[int, int]) -> Tensor:
    """[H, W] float32 of a depth map of any size: the nearest value, as a mean over an edge is the depth of nothing."""
    (top, left), (rows, columns) = offset, resized
    y = ((np.arange(cameras.height) + top + 0.5) / rows * depth.shape[0]).astype(int).clip(0, depth.shape[0] - 1)
    x = ((np.arange(cameras.width) + left + 0.5) / columns * depth.shape[1]).astype(int).clip(0, depth.shape[1] - 1)
    return torch.from_numpy(np.ascontiguousarray(depth[np.ix_(y, x)], dtype=np.float32))


def cut_geometry(
    raw: RawScene, images: Tensor, cameras: Cameras, points: int = 16384, seed: int = 0
) -> tuple[Tensor | None, Tensor | None, PointCloud | None]:
    """Depth and confidence [V, H, W] of the condition views, and the cloud; None for what the scene does not have.

    A clip without depth has its cloud from the scene's reconstruction, which is of all photographs; evaluation tells
    the two apart by that (``evaluation.task.geometry_note``).

    Args:
        raw: a scene whose V frames are the condition views.
        images: [V, 3, H, W] uint8, see ``crop_images``.
        cameras: V views, those of the images.
        points: most points of the cloud, in farthest-point order; see ``scene_clip``.
        seed: of the choice of pixels from depth maps.
    """
    maps = [raw.depth(view) for view in range(len(raw))]
    if any(one is not None for one in maps):
        _, resized, offset = resize_and_crop(raw.cameras, cameras.height, cameras.width)
        empty = np.zeros((1, 1), dtype=np.float32)
        depth = torch.stack(
            [crop_depth(empty if one is None else one, cameras, resized, offset) for one in maps]
        )  # [V, H, W]
        if bool((depth > 0).any()):
            single = cameras.to(dtype=torch.float32)
            generator = torch.Generator().manual_seed(seed)
            found = KnownDepth(depth, points=points, generator=generator).estimate(images.float() / 255.0, single)
            return depth, found.point_map.confidence, found.cloud
    if raw.cloud is None:
        return None, None, None
    visible = in_view(raw.cloud.points.double(), cameras).any(0)  # [N]
    found_in = [frame.observed for frame in raw.frames if frame.observed is not None]
    if len(found_in) == len(raw):  # then leave out what only other photographs, the targets, have seen
        observed = torch.zeros_like(visible)
        observed[torch.from_numpy(np.unique(np.concatenate(found_in)))] = True
        visible &= observed
    if not bool(visible.any()):
        return None, None, None
    cloud = raw.cloud[visible]
    return None, None, cloud[farthest_point_order(cloud.points, min(points, len(cloud)))]
