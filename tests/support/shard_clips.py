"""Small clips and shards for the tests of the shard format, and ways to damage them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import torch
from torch.nn.functional import interpolate

from reconx_pl.data.shards.manifest import Manifest, Shard
from reconx_pl.data.shards.writer import ShardWriter
from reconx_pl.types import Cameras, Clip, PointCloud

HEIGHT, WIDTH, FRAMES, POINTS = 32, 48, 4, 20


def small_clip(number: int, frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> Clip:
    """A clip of smooth random images; its number is its seed."""
    generator = torch.Generator().manual_seed(number)
    coarse = torch.rand(frames, 3, 4, 6, generator=generator)
    images = interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False).clamp(0, 1)
    poses = torch.eye(4).repeat(frames, 1, 1)
    poses[:, :3, 3] = torch.randn(frames, 3, generator=generator)
    intrinsics = torch.tensor([[40.0, 0.0, width / 2], [0.0, 41.0, height / 2], [0.0, 0.0, 1.0]]).repeat(frames, 1, 1)
    cloud = PointCloud(
        points=torch.randn(POINTS, 3, generator=generator),
        colors=torch.rand(POINTS, 3, generator=generator),
        confidence=1 + torch.rand(POINTS, generator=generator),
    )
    return Clip(
        key=f"clip-{number:03d}",
        dataset="random",
        scene=f"scene {number}",
        frames=(images * 255).round().to(torch.uint8),
        cameras=Cameras(poses, intrinsics, height, width),
        frame_indices=tuple(range(10, 10 + 3 * frames, 3)),
        fps=7.5,
        caption=f"näive caption {number}",
        depth=torch.rand(2, height, width, generator=generator),
        confidence=1 + torch.rand(2, height, width, generator=generator),
        cloud=cloud,
    )


def pack(folder: Path, clips: Iterable[Clip], clips_per_shard: int = 3) -> Manifest:
    """Shards of these clips."""
    with ShardWriter(folder, clips_per_shard, {"maker": "test"}) as writer:
        for clip in clips:
            writer.write(clip)
    return writer.manifest


def pack_numbers(folder: Path, count: int, clips_per_shard: int = 3) -> Manifest:
    return pack(folder, (small_clip(number) for number in range(count)), clips_per_shard)


def edit_members(folder: Path, key: str, edit: Callable[[dict[str, bytes]], None]) -> Path:
    """Rewrite one clip of a packed folder, manifest and all, as another program might have written it."""
    manifest = Manifest.load(folder)
    shard = next(s for s in manifest.shards if key in s.keys)
    path = folder / shard.name
    with tarfile.open(path) as old:
        files = [(info.name, old.extractfile(info).read()) for info in old.getmembers()]
    members = {name.partition(".")[2]: data for name, data in files if name.partition(".")[0] == key}
    edit(members)
    others_before = [(name, data) for name, data in files if name.partition(".")[0] < key]
    others_after = [(name, data) for name, data in files if name.partition(".")[0] > key]
    edited = [(f"{key}.{suffix}", data) for suffix, data in members.items()]
    with tarfile.open(path, "w") as new:
        for name, data in [*others_before, *edited, *others_after]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            new.addfile(info, BytesIO(data))
    relist(folder, shard, path.stat().st_size)
    return path


def relist(folder: Path, shard: Shard, size: int) -> None:
    """Let the manifest agree with the new size of a shard, so that only reading it can find the damage."""
    manifest = Manifest.load(folder)
    shards = tuple(replace(s, bytes=size) if s.name == shard.name else s for s in manifest.shards)
    replace(manifest, shards=shards).save()


def edit_header(**changes: object) -> Callable[[dict[str, bytes]], None]:
    """An edit for :func:`edit_members`: change keys of the JSON member, or remove those set to None."""

    def edit(members: dict[str, bytes]) -> None:
        header = json.loads(members["json"])
        header.update(changes)
        members["json"] = json.dumps({k: v for k, v in header.items() if v is not None}).encode()

    return edit


def corrupt_jpeg(members: dict[str, bytes]) -> None:
    """An edit for :func:`edit_members`: overwrite the middle of the second frame, sizes unchanged."""
    sizes = json.loads(members["json"])["jpeg_sizes"]
    start = sizes[0] + sizes[1] // 2
    members["jpgs"] = members["jpgs"][:start] + b"\xff\xd9" * 20 + members["jpgs"][start + 40 :]
