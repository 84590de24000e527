"""One clip as the members of a WebDataset sample, and back.

==========================  ==========================================================================================
``<key>.json``              schema version, names, frame rate, caption, size, cameras, sizes of the JPEG files
``<key>.jpgs``              the T frames, JPEG files end to end
``<key>.depth.npy``         optional [2, H, W] float32 or float16, z of the first and last frame, world units, 0 = not
                            known, infinity = known to be far, as the sky (schema 1 had 0 for both)
``<key>.confidence.npy``    optional [2, H, W] float32 or float16, >= 1, of the same two frames
``<key>.cloud.npy``         optional [N, 3] in farthest-point order: float32 in world coordinates, or float16 in those
                            of the first camera, since far from the origin too few digits would be left
``<key>.cloud_rgb.npy``     [N, 3] uint8, with the cloud
``<key>.cloud_confidence.npy``  [N] float32 or float16, with the cloud
``<key>.moments-<hash>.npy``  optional [T, 2 C, h, w] float16, see :mod:`reconx_pl.data.shards.caches`
``<key>.clip-<hash>.npy``   optional [M, D] float16, likewise
``<key>.splats-<hash>.npy``  optional [T, 4, H, W] uint8, likewise
==========================  ==========================================================================================

Arrays are raw ``.npy``: deflating them costs more time than it saves. Nothing here unpickles, and members whose suffix
stands for a pickle are refused even though nothing would read them. Other members are left alone, so that caches can
be added without a new schema version.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reconx_pl.data.shards.jpeg import decode_frames, encode_frames
from reconx_pl.data.shards.member_arrays import (
    REMEDY,
    array_bytes,
    float_array,
    member_bytes,
    place_of,
    plain_array,
)
from reconx_pl.errors import BadDataError, ConfigurationError, SchemaVersionError
from reconx_pl.types import Cameras, Clip, PointCloud

SCHEMA_VERSION = 2
HEADER, FRAMES, DEPTH, CONFIDENCE = "json", "jpgs", "depth.npy", "confidence.npy"
CLOUD, CLOUD_RGB, CLOUD_CONFIDENCE = "cloud.npy", "cloud_rgb.npy", "cloud_confidence.npy"
GEOMETRY = frozenset({DEPTH, CONFIDENCE, CLOUD, CLOUD_RGB, CLOUD_CONFIDENCE})
MEMBERS = GEOMETRY | {HEADER, FRAMES}
PICKLE_SUFFIXES = frozenset({"pyd", "pkl", "pickle", "pth", "pt", "torch", "ckpt", "bin", "joblib", "dill"})

_KEY = re.compile(r"(?!__)[A-Za-z0-9_+=-]+(/(?!__)[A-Za-z0-9_+=-]+)*")
_HEADER_KEYS = (
    *("key", "dataset", "scene", "frame_indices", "fps", "caption", "height", "width"),
    *("world_to_camera", "intrinsics", "jpeg_sizes"),
)


@dataclass(frozen=True)
class ClipHeader:
    """The JSON member of a clip, checked."""

    key: str
    dataset: str
    scene: str
    frame_indices: tuple[int, ...]
    fps: float
    caption: str
    cameras: Cameras  # T views, float32
    jpeg_sizes: tuple[int, ...]  # bytes

    @property
    def frames(self) -> int:
        return len(self.jpeg_sizes)


def has_pickle_suffix(name: str) -> bool:
    """Whether a member's suffix (``depth.npy``, ``latents.pt``) stands for a pickle."""
    return not PICKLE_SUFFIXES.isdisjoint(name.lower().split("."))


def encode_clip(clip: Clip, quality: int = 95) -> dict[str, bytes]:
    """The shard members of a clip, by suffix. The same clip gives the same bytes.

    Args:
        clip: cameras are stored as float32, cloud colours as uint8.
        quality: JPEG quality of the frames.

    Raises:
        BadCameraError: a camera that cannot be used.
        ConfigurationError: a key that cannot name a tar member, or arrays whose shape or values are wrong.
    """
    source = f"clip {clip.key}"
    if not _KEY.fullmatch(clip.key):
        raise ConfigurationError(
            f"{source}: a key may hold letters, digits, '_', '+', '=', '-' and single '/' (a dot would end it), "
            "and no part may start with '__'"
        )
    count, _, height, width = clip.frames.shape
    cameras = clip.cameras.to(dtype=torch.float32).check(source)
    if (cameras.height, cameras.width) != (height, width) or len(clip.frame_indices) != count or count < 2:
        raise ConfigurationError(
            f"{source}: {count} frames of {height} x {width} do not go with cameras of {cameras.height} x "
            f"{cameras.width} and {len(clip.frame_indices)} frame indices; a clip has two frames or more"
        )
    if not (math.isfinite(clip.fps) and clip.fps > 0):
        raise ConfigurationError(f"{source}: fps must be positive, got {clip.fps}")
    blob, sizes = encode_frames(clip.frames, quality)
    header = {
        "schema": SCHEMA_VERSION,
        "key": clip.key,
        "dataset": clip.dataset,
        "scene": clip.scene,
        "frame_indices": [int(index) for index in clip.frame_indices],
        "fps": float(clip.fps),
        "caption": clip.caption,
        "height": height,
        "width": width,
        "world_to_camera": cameras.world_to_camera.tolist(),
        "intrinsics": cameras.intrinsics.tolist(),
        "jpeg_sizes": sizes,
    }
    text = json.dumps(header, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return {HEADER: text.encode(), FRAMES: blob, **encode_geometry(clip)}


def encode_geometry(clip: Clip, half: bool = False) -> dict[str, bytes]:
    """The members of a clip's depth, confidence and cloud, those that it has.

    Args:
        clip: with them.
        half: as float16, where that keeps a thousandth of every depth; a scene that is too large or too small for it,
            counted in its units, stays in float32.

    Raises:
        ConfigurationError: arrays whose shape or values are wrong.
    """
    source, members = f"clip {clip.key}", {}
    size = (2, clip.cameras.height, clip.cameras.width)
    for name, values in ((DEPTH, clip.depth), (CONFIDENCE, clip.confidence)):
        if values is not None:
            small = values.clamp(max=_LARGEST) if name == CONFIDENCE else values
            finite = torch.where(small == torch.inf, 0.0, small)
            dtype = "<f2" if half and _holds(finite, finite) else "<f4"
            chosen = small if dtype == "<f2" else values
            members[name] = array_bytes(chosen, size, f"{source}: {name}", dtype, far=name == DEPTH)
    if clip.cloud is not None:
        points, pose = len(clip.cloud), clip.cameras.world_to_camera[0].double()
        local = clip.cloud.points.double() @ pose[:3, :3].T + pose[:3, 3]
        fits = half and _holds(local, local.norm(dim=-1, keepdim=True))
        rgb = (clip.cloud.colors.clamp(0, 1) * 255).round().to(torch.uint8)
        stored, dtype = (local, "<f2") if fits else (clip.cloud.points, "<f4")
        members[CLOUD] = array_bytes(stored, (points, 3), f"{source}: {CLOUD}", dtype)
        members[CLOUD_RGB] = array_bytes(rgb, (points, 3), f"{source}: {CLOUD_RGB}")
        trust = clip.cloud.confidence.clamp(max=_LARGEST) if fits else clip.cloud.confidence
        members[CLOUD_CONFIDENCE] = array_bytes(trust, (points,), f"{source}: {CLOUD_CONFIDENCE}", dtype)
    return members


_LARGEST = 60_000.0  # confidence in float16; beyond, more of it says nothing


def _holds(values: Tensor, measure: Tensor) -> bool:
    """Whether float16 keeps all values to a thousandth of their measure."""
    return bool(((values.half().to(values) - values).abs() <= 1e-3 * measure.abs()).all())


def decode_clip(members: Mapping[str, Any], source: str, frames: Sequence[int] | None = None) -> Clip:
    """A clip from its shard members.

    Args:
        members: bytes by suffix, as :func:`encode_clip` gives them or webdataset groups them (``__key__`` and other
            names that begin with an underscore are understood).
        source: the shard, for messages.
        frames: decompress only these frames. The clip then has their cameras; ``fps`` stays as stored, and depth and
            confidence come along only if the first and the last of them are the clip's first and last frame.

    Raises:
        SchemaVersionError: written by a newer version of the schema.
        BadDataError: a missing or refused member, a missing key, a corrupt JPEG, a wrong shape.
        BadCameraError: a camera with NaN, a focal length that is not positive, a pose that is not rigid.
    """
    header = decode_header(members, source)
    wanted = range(header.frames) if frames is None else frames
    cameras = header.cameras if frames is None else header.cameras[list(frames)]
    has_ends = len(wanted) > 1 and (wanted[0], wanted[-1]) == (0, header.frames - 1)
    clip = Clip(
        key=header.key,
        dataset=header.dataset,
        scene=header.scene,
        frames=decode_images(members, header, source, frames),
        cameras=cameras,
        frame_indices=tuple(header.frame_indices[index] for index in wanted),
        fps=header.fps,
        caption=header.caption,
    )
    clip = with_geometry(clip, members, source, header.cameras.world_to_camera[0])
    return clip if has_ends else replace(clip, depth=None, confidence=None)


def with_geometry(clip: Clip, members: Mapping[str, Any], source: str, first: Tensor | None = None) -> Clip:
    """The clip with the depth, the confidence and the cloud of these members, and no others.

    Args:
        clip: of the members.
        members: as for :func:`decode_clip`.
        source: the shard, for messages.
        first: [4, 4] of the stored clip's first camera; None is that of ``clip``.

    Raises:
        BadDataError: as :func:`decode_clip`.
    """
    where, cloud = place_of(source, clip.key), None
    shape = (2, clip.cameras.height, clip.cameras.width)
    if CLOUD in members:
        points = decode_points(members, source, clip.key, clip.cameras.world_to_camera[0] if first is None else first)
        rgb = plain_array(members, CLOUD_RGB, where, "uint8", (len(points), 3))
        trust = float_array(members, CLOUD_CONFIDENCE, where, (len(points),))
        cloud = PointCloud(points, rgb.float() / 255.0, trust)
    depth = float_array(members, DEPTH, where, shape, far=True) if DEPTH in members else None
    confidence = float_array(members, CONFIDENCE, where, shape) if CONFIDENCE in members else None
    return replace(clip, depth=depth, confidence=confidence, cloud=cloud)


def decode_header(members: Mapping[str, Any], source: str) -> ClipHeader:
    """The checked JSON member; refuses the whole clip if one of its members could be a pickle.

    Raises:
        As :func:`decode_clip`.
    """
    key = members.get("__key__")
    where = place_of(source, key)
    for name in members:
        if has_pickle_suffix(name):
            raise BadDataError(f"{where}: member .{name} may be a pickle, which can run code; it is refused. {REMEDY}")
    text = member_bytes(members, HEADER, where)
    try:
        header = json.loads(text)
        version = int(header["schema"])
        if version < 1:
            raise ValueError(f"schema {version}")
    except (ValueError, TypeError, KeyError) as error:
        raise BadDataError(f"{where}: .json is not a clip's header with a schema ({error!r}); {REMEDY}") from error
    if version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"{where}: written with schema {version}, this reconx_pl reads up to {SCHEMA_VERSION}; upgrade reconx_pl"
        )
    if missing := [name for name in _HEADER_KEYS if name not in header]:
        raise BadDataError(f"{where}: .json lacks {', '.join(missing)}; {REMEDY}")
    where = place_of(source, key or header["key"])
    try:
        frame_indices = tuple(int(index) for index in header["frame_indices"])
        sizes = tuple(int(size) for size in header["jpeg_sizes"])
        cameras = Cameras(
            torch.from_numpy(np.array(header["world_to_camera"], dtype=np.float32)),
            torch.from_numpy(np.array(header["intrinsics"], dtype=np.float32)),
            int(header["height"]),
            int(header["width"]),
        )
        fps = float(header["fps"])
        names = {name: str(header[name]) for name in ("dataset", "scene", "caption")}
    except (ValueError, TypeError) as error:
        raise BadDataError(f"{where}: .json has a value of the wrong kind ({error}); {REMEDY}") from error
    counts = {len(frame_indices), len(sizes), len(cameras)}
    if key is not None and header["key"] != key:
        raise BadDataError(f"{where}: .json belongs to clip {header['key']}; {REMEDY}")
    if len(counts) > 1 or len(sizes) < 2 or cameras.world_to_camera.ndim != 3:
        raise BadDataError(
            f"{where}: {len(sizes)} frames, {len(frame_indices)} frame indices and {len(cameras)} cameras; {REMEDY}"
        )
    if not (math.isfinite(fps) and fps > 0 and cameras.height > 0 and cameras.width > 0):
        raise BadDataError(f"{where}: {fps} fps, {cameras.height} x {cameras.width} pixels; all must be positive")
    if not _surely_usable(cameras):
        cameras.check(where)
    return ClipHeader(
        str(header["key"]),
        frame_indices=frame_indices,
        fps=fps,
        cameras=cameras,
        jpeg_sizes=sizes,
        **names,
    )


def decode_images(
    members: Mapping[str, Any], header: ClipHeader, source: str, indices: Sequence[int] | None = None
) -> Tensor:
    """Frames [T, 3, H, W] uint8 (memory order [T, H, W, 3]) of a clip whose header is known; see ``decode_frames``."""
    where = place_of(source, header.key)
    blob = member_bytes(members, FRAMES, where)
    return decode_frames(blob, header.jpeg_sizes, header.cameras.height, header.cameras.width, where, indices)


def decode_points(
    members: Mapping[str, Any], source: str, key: str, world_to_camera: Tensor, count: int | None = None
) -> Tensor:
    """The first ``count`` points of the cloud, or all of them: [N, 3] float32 world points in farthest-point order.

    Args:
        members: of the clip.
        source, key: for messages.
        world_to_camera: [4, 4] of the clip's first camera.
        count: None takes all.

    Raises:
        BadDataError: no cloud, fewer points than asked for, NaN.
    """
    where = place_of(source, key)
    if count == 0:
        return torch.zeros(0, 3)
    if count is not None and CLOUD not in members:
        raise BadDataError(
            f"{where}: has no cloud and {count} points are asked for; pack with a cloud, or set points=0"
        )
    points = plain_array(members, CLOUD, where, ("float32", "float16"), (None, 3))
    if count is not None and len(points) < count:
        raise BadDataError(
            f"{where}: the cloud has {len(points)} points and {count} are asked for; pack with more points, "
            f"or set points={len(points)} or less"
        )
    points = points[:count]
    if points.dtype == torch.float16:
        pose = world_to_camera.double()
        points = ((points.double() - pose[:3, 3]) @ pose[:3, :3]).float()
    return points


def encode_cache(values: Tensor, where: str) -> bytes:
    """A cache member from a tensor, kept as float16.

    Raises:
        ConfigurationError: NaN, or values that float16 cannot hold.
    """
    return array_bytes(values, tuple(values.shape), where, "<f2")


def decode_cache(members: Mapping[str, Any], name: str, source: str, key: str, shape: tuple[int | None, ...]) -> Tensor:
    """A cache member, float16; None in ``shape`` stands for any size.

    Raises:
        BadDataError: it is missing, or not such an array.
    """
    where = place_of(source, key)
    if name not in members:
        raise BadDataError(
            f"{where}: member .{name} is missing although the manifest lists it; delete the shard and run the same "
            "`reconx cache` command again"
        )
    return plain_array(members, name, where, "float16", shape)


def _surely_usable(cameras: Cameras) -> bool:
    """Whether ``Cameras.check`` need not look: view by view it takes 0.33 ms for 8 views, a third of their decoding."""
    w2c, intrinsics = cameras.world_to_camera.numpy(), cameras.intrinsics.numpy()
    if not (np.isfinite(w2c).all() and np.isfinite(intrinsics).all()):
        return False
    rotation = w2c[:, :3, :3].astype(np.float64)
    gram = np.einsum("vij,vkj->vik", rotation, rotation)
    handed = (np.cross(rotation[:, 0], rotation[:, 1]) * rotation[:, 2]).sum(-1)
    return bool(
        (intrinsics[:, [0, 1], [0, 1]] > 0).all() and np.abs(gram - np.eye(3)).max() < 1e-3 and (handed > 0).all()
    )
