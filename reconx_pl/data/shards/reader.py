"""Raw clips out of shards, the training sample out of a raw clip, and what happens to those that cannot be read."""

from __future__ import annotations

import logging
import re
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from webdataset import tariterators

from reconx_pl.data.shards.caches import CachedInputs, GuidanceInputs, is_cache
from reconx_pl.data.shards.guidance_members import (
    decode_colors,
    decode_depth,
    decode_point_confidence,
    decode_splats,
)
from reconx_pl.data.shards.manifest import Shard
from reconx_pl.data.shards.schema import (
    CLOUD,
    CLOUD_CONFIDENCE,
    CLOUD_RGB,
    CONFIDENCE,
    DEPTH,
    FRAMES,
    HEADER,
    MEMBERS,
    ClipHeader,
    decode_cache,
    decode_header,
    decode_images,
    decode_points,
)
from reconx_pl.errors import BadCameraError, BadDataError, ConfigurationError, SchemaVersionError
from reconx_pl.types import ClipBatch

logger = logging.getLogger(__name__)

TRAINING_MEMBERS = frozenset({HEADER, FRAMES, CLOUD})
META = re.compile(r"__[^/]*__($|/)")  # not of a clip
MIN_SEEN = 300
LOOK_AHEAD = 20  # so many unreadable clips in a row, after a batch without a readable one, end the run


class RawClip(NamedTuple):
    """A clip as it stands in a shard, nothing decoded."""

    source: str  # path of the shard
    members: dict[str, Any]  # bytes by suffix, and webdataset's __key__


class Sample(NamedTuple):
    """What training needs of a clip."""

    key: str
    caption: str
    frames: Tensor | None  # [T, 3, H, W] uint8, in memory [T, H, W, 3]
    world_to_camera: Tensor  # [T, 4, 4] float32
    intrinsics: Tensor  # [T, 3, 3] float32
    fps: float
    points: Tensor  # [N, 3] float32
    caches: dict[str, Tensor]  # by member name
    renders: dict[str, Tensor]  # what renders are made of, by the name in a batch


def read_shard(path: Path, shard: Shard, members: frozenset[str] | None = MEMBERS) -> Iterator[RawClip]:
    """The clips of one shard in order, grouped by webdataset, with the members asked for; None asks for all.

    Raises:
        BadDataError: a tar that is damaged, truncated or not the one that the manifest describes.
    """

    def wanted(name: str) -> bool:  # unknown suffixes may be pickles, which decode_header refuses by their names
        suffix = name.rpartition("/")[2].partition(".")[2].lower()
        if members is None:
            return True
        return suffix in members or (suffix not in MEMBERS and not is_cache(suffix))

    count = 0
    remedy = "delete it and run the same pack command again (or copy it again)"
    try:
        for sample in tariterators.group_by_keys(_files(path, wanted)):
            count += 1
            yield RawClip(str(path), {k: v for k, v in sample.items() if k != "__url__"})
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise BadDataError(
            f"{path}: damaged or truncated after {count} of {shard.clips} clips ({error}); {remedy}"
        ) from error
    if count != shard.clips:  # tarfile takes a cut between two members, or a broken header, for the end
        raise BadDataError(f"{path}: truncated or replaced: {count} clips instead of {shard.clips}; {remedy}")


def _files(path: Path, wanted: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
    """Name and content of the wanted files of a tar, as webdataset has them.

    Its own reader takes a tar for a stream: it reads what it skips, and everything in pieces of 10 KiB that it joins.
    """
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.isreg() and not META.match(member.name) and wanted(member.name):
                file.seek(member.offset_data)
                data = file.read(member.size)
                if len(data) < member.size:
                    raise tarfile.ReadError("unexpected end of data")
                yield {"fname": member.name, "data": data, "__url__": str(path)}
            tar.members = []  # type: ignore[attr-defined]  # it would remember every member


def read_shards(
    folder: Path, shards: Sequence[Shard], wanted: Callable[[int], bool], members: frozenset[str] = MEMBERS
) -> Iterator[tuple[int, RawClip]]:
    """The clips whose number, counted over ``shards`` in their order, is wanted; shards without any are not opened."""
    first = 0
    for shard in shards:
        if any(wanted(number) for number in range(first, first + shard.clips)):
            # read to its end even where the last clips are not wanted: the count there is a check
            for number, raw in enumerate(read_shard(folder / shard.name, shard, members), first):
                if wanted(number):
                    yield number, raw
        first += shard.clips


def training_members(cached: CachedInputs | None, renders: GuidanceInputs | None = None) -> frozenset[str]:
    """The members that :func:`decode_sample` reads."""
    members = set(TRAINING_MEMBERS)
    if cached is not None:
        members |= set(cached.names)
        if not cached.frames(1) and (renders is None or not renders.views):
            members.discard(FRAMES)
    if renders is not None:
        members |= {DEPTH, CONFIDENCE} if renders.depth else set()
        members |= {CLOUD_RGB} if renders.colors else set()
        members |= {CLOUD_CONFIDENCE} if renders.point_confidence else set()
        members |= {renders.splats} if renders.splats is not None else set()
    return frozenset(members)


def decode_sample(
    raw: RawClip, points: int, cached: CachedInputs | None = None, renders: GuidanceInputs | None = None
) -> Sample:
    """Decode what training needs; raises as :func:`reconx_pl.data.shards.schema.decode_clip`.

    Args:
        raw: the clip.
        points: of its cloud.
        cached: caches to read, and to leave out the frames for which they stand in.
        renders: what guidance by rendering is made of.
    """
    header = decode_header(raw.members, raw.source)
    wanted, caches = range(header.frames), {}
    if cached is not None:
        wanted = cached.frames(header.frames)
        for name in cached.names:
            shape = (header.frames, None, None, None) if name == cached.moments else (None, None)
            caches[name] = decode_cache(raw.members, name, raw.source, header.key, shape)
    return Sample(
        header.key,
        header.caption,
        decode_images(raw.members, header, raw.source, wanted) if wanted else None,
        header.cameras.world_to_camera,
        header.cameras.intrinsics,
        header.fps,
        decode_points(raw.members, raw.source, header.key, header.cameras.world_to_camera[0], points),
        caches,
        {} if renders is None else _guidance_inputs(raw, header, points, wanted, renders),
    )


def _guidance_inputs(
    raw: RawClip, header: ClipHeader, points: int, decoded: range, renders: GuidanceInputs
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if renders.depth:
        found["depth"], found["confidence"] = decode_depth(raw.members, raw.source, header, renders.min_confidence)
    if renders.colors:
        found["colors"] = decode_colors(raw.members, raw.source, header.key, points)
    if renders.point_confidence:
        found["point_confidence"] = decode_point_confidence(
            raw.members, raw.source, header.key, points, renders.min_confidence
        )
    if renders.splats is not None:
        found["splats"] = decode_splats(raw.members, renders.splats, raw.source, header)
    if renders.views and len(decoded) < header.frames:  # caches stand in for the others
        found["views"] = decode_images(raw.members, header, raw.source, [0, header.frames - 1])
    return found


@dataclass
class BadClips:
    """Notes clips that cannot be read, logs each once by name, and stops the run when there are too many.

    Counted are different clips: one that comes again each epoch is still one. Their share is taken of the clips seen so
    far, but of no fewer than ``MIN_SEEN`` or all that there are, so that one early bad clip does not stop a long run.

    Args:
        folder: named in messages.
        clips: number of clips in the folder.
        max_share: between 0 (the first bad one stops) and 1.
    """

    folder: Path
    clips: int
    max_share: float = 0.01
    seen: int = 0
    bad: dict[str, str] = field(default_factory=dict)  # shard and key -> message

    def __post_init__(self) -> None:
        if not 0 <= self.max_share <= 1:
            raise ConfigurationError(f"max_bad_share must lie in 0..1, got {self.max_share}")

    def decode(
        self,
        raws: Iterable[RawClip],
        points: int,
        cached: CachedInputs | None = None,
        renders: GuidanceInputs | None = None,
    ) -> Iterator[Sample | None]:
        """Samples in order, None in the place of a clip that cannot be read.

        Raises:
            BadDataError: too many bad clips.
            SchemaVersionError: a newer schema; the rest of the shard has it too.
        """
        for raw in raws:
            self.seen += 1
            sample: Sample | None = None
            try:
                sample = decode_sample(raw, points, cached, renders)
            except SchemaVersionError:
                raise
            except (BadDataError, BadCameraError) as error:
                self._note(f"{raw.source}:{raw.members.get('__key__')}", error)
            yield sample

    def _note(self, name: str, error: Exception) -> None:
        if name in self.bad:
            return
        logger.warning("a bad clip is replaced by another one: %s", error)
        self.bad[name] = str(error)
        base = min(self.clips, max(self.seen, MIN_SEEN))
        if len(self.bad) > self.max_share * base:
            raise self.too_many(f"more than {self.max_share:g} of {base}")

    def too_many(self, reason: str) -> BadDataError:
        first = "\n  ".join(list(self.bad.values())[:5])
        return BadDataError(
            f"{self.folder}: {len(self.bad)} bad clips among the first {self.seen} that this process read, {reason}:"
            f"\n  {first}\nRepair the shards as said above, or allow more with max_bad_share"
        )


def batches(samples: Iterator[Sample | None], sizes: Iterable[int], bad: BadClips) -> Iterator[ClipBatch]:
    """Cut samples into batches; the position counts every sample, good or bad.

    A bad one is replaced by a good one of its batch, or, where there is none, by the next good one, which stays in the
    stream: where a batch begins therefore depends on nothing but its number.
    """
    ahead: deque[Sample | None] = deque()
    for size in sizes:
        while len(ahead) < size:
            ahead.append(next(samples))
        group = [ahead.popleft() for _ in range(size)]
        good = [sample for sample in group if sample is not None]
        while not good:
            good = [sample for sample in ahead if sample is not None][:1]
            if not good:
                if len(ahead) >= LOOK_AHEAD:
                    raise bad.too_many(f"the last {len(ahead)} of them without a good one")
                ahead.extend(islice(samples, 1))
        spare = iter(good * len(group))
        yield collate([sample or next(spare) for sample in group], bad.folder)


def collate(samples: Sequence[Sample], folder: Path) -> ClipBatch:
    """Stack samples.

    Raises:
        ConfigurationError: clips of different sizes.
    """
    first = samples[0]
    for sample in samples:
        for what, own, other in _sizes(sample, first):
            if own != other:
                raise ConfigurationError(
                    f"{folder}: clip {sample.key} has {what} {own}, clip {first.key} {other}; pack with one size and "
                    "one number of frames, or set batch_size=1"
                )
    world_to_camera, intrinsics, points, fps = _together(
        torch.stack([sample.world_to_camera for sample in samples]),
        torch.stack([sample.intrinsics for sample in samples]),
        torch.stack([sample.points for sample in samples]),
        torch.tensor([sample.fps for sample in samples], dtype=torch.float32),
    )
    batch = ClipBatch(
        key=[sample.key for sample in samples],
        caption=[sample.caption for sample in samples],
        world_to_camera=world_to_camera,
        intrinsics=intrinsics,
        fps=fps,
        points=points,
    )
    # stacked in the memory order of the decoder: [B, T, H, W, 3]
    pixels = [sample.frames.permute(0, 2, 3, 1) for sample in samples if sample.frames is not None]
    if pixels:
        frames = torch.stack(pixels) if len(pixels) > 1 else pixels[0][None]
        batch["frames"] = frames.permute(0, 1, 4, 2, 3)
    if first.caches:
        batch["caches"] = {name: torch.stack([sample.caches[name] for sample in samples]) for name in first.caches}
        batch["folder"] = str(folder)
    for name in first.renders:
        batch[name] = torch.stack([sample.renders[name] for sample in samples])  # type: ignore[literal-required]
    return batch


def _together(*tensors: Tensor) -> list[Tensor]:
    """The same float32 tensors in one piece of memory: from worker to trainer every piece has a price of its own."""
    whole = torch.cat([tensor.flatten() for tensor in tensors])
    parts = whole.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _sizes(sample: Sample, other: Sample) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    if sample.frames is not None and other.frames is not None:
        yield "frames", tuple(sample.frames.shape), tuple(other.frames.shape)
    yield "cameras", tuple(sample.world_to_camera.shape), tuple(other.world_to_camera.shape)
    for name, values in sample.caches.items():
        yield name, tuple(values.shape), tuple(other.caches[name].shape)
