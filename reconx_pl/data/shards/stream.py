"""Clips from a folder of shards: an endless stream whose position follows from a number, a finite pass, one by one.

**Why the stream is built so.** Training that stops at batch n and starts again must see batch n + 1 next, and not from
a state that somebody has to save, but from the step that every checkpoint has. So everything is a function of
(seed, batch number): epoch e puts the shards in an order drawn from (seed, e) and deals them out to the *lanes*, one
for each worker of each rank; a lane shuffles its clips with a buffer drawn from (seed, e, lane). The DataLoader takes
its first batch from worker 0, so a run that starts at batch n lets worker w play lane (w + n) mod W. What lies before n
is skipped undecoded, whole shards by the counts of the manifest.

Batches are cut from a lane's endless sequence and may span two of its epochs: nothing is dropped, and in each epoch
every clip comes exactly once over all lanes. (Lanes whose shards hold fewer clips reach their next epoch earlier.) The
order holds as long as the numbers of ranks, of workers and of clips a batch, and the shards, stay the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice, repeat
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from reconx_pl.data.shards.caches import CachedInputs, GuidanceInputs
from reconx_pl.data.shards.manifest import Manifest, Shard
from reconx_pl.data.shards.reader import BadClips, RawClip, batches, read_shards, training_members
from reconx_pl.data.shards.schema import decode_clip
from reconx_pl.errors import BadDataError, ConfigurationError
from reconx_pl.types import Clip, ClipBatch


def read_clips(folder: str | Path, keys: Iterable[str] | None = None) -> Iterator[Clip]:
    """Complete clips, once, in the order of the manifest.

    Args:
        folder: a folder of shards.
        keys: only these clips; shards without any of them are not opened.

    Raises:
        BadDataError: a key that is not there, or a clip that cannot be read; here nothing is skipped.
    """
    manifest = Manifest.load(folder)
    known = manifest.keys
    chosen = set(known if keys is None else keys)
    if unknown := chosen.difference(known):
        raise BadDataError(f"{folder}: no clip {', '.join(sorted(unknown)[:5])} in its {manifest.clips} clips")
    for _, raw in read_shards(manifest.folder, manifest.shards, lambda number: known[number] in chosen):
        yield decode_clip(raw.members, raw.source)


class ClipStream(IterableDataset[ClipBatch]):
    """Endless, deterministic batches; give it to ``DataLoader(stream, batch_size=None)``.

    Clips that cannot be read are replaced (``reader.batches``); each worker counts its own.

    Args:
        folder: shards with their manifest.
        seed: of the order; not negative.
        batch_size: clips a batch, on one rank.
        rank, world: this process and the number of processes that share the clips.
        start_batch: number of batches that this rank has already consumed, from the start of ``first_epoch``.
        first_epoch: the epoch that the stream begins with; each has an order of its own.
        points: points of each cloud, a prefix of its farthest-point order; 0 for none.
        shuffle: False keeps the order of the shards and of the clips in them.
        shuffle_buffer: undecoded clips that a worker holds to shuffle among; 1 shuffles only the shards.
        max_bad_share: stop when a larger share of the clips cannot be read (``reader.BadClips``).
        cached: read these caches instead of the frames for which they stand in. The order is the same.
        renders: read what guidance by rendering is made of.

    Raises:
        BadDataError, SchemaVersionError: from the manifest; while reading, damaged shards and too many bad clips.
        ConfigurationError: a folder without these caches, fewer shards than lanes, a clip of another size in a batch,
            arguments out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        seed: int = 0,
        batch_size: int = 1,
        rank: int = 0,
        world: int = 1,
        start_batch: int = 0,
        points: int = 16384,
        shuffle: bool = True,
        shuffle_buffer: int = 64,
        max_bad_share: float = 0.01,
        cached: CachedInputs | None = None,
        first_epoch: int = 0,
        renders: GuidanceInputs | None = None,
    ) -> None:
        _check_counts(batch_size, rank, world, points)
        if min(seed, start_batch, first_epoch) < 0 or shuffle_buffer < 1:
            raise ConfigurationError(
                f"seed, start_batch and first_epoch must not be negative and shuffle_buffer must be positive, "
                f"got {seed}, {start_batch}, {first_epoch}, {shuffle_buffer}"
            )
        self.manifest = _manifest(folder, cached, renders)
        self.cached, self.renders = cached, renders
        self.seed, self.batch_size, self.rank, self.world = seed, batch_size, rank, world
        self.first_epoch = first_epoch
        self.points, self.shuffle, self.shuffle_buffer = points, shuffle, shuffle_buffer
        self._bad = BadClips(self.manifest.folder, self.manifest.clips, max_bad_share)
        # shared memory, so that persistent workers see where the next pass begins
        self._start = torch.tensor(start_batch, dtype=torch.int64).share_memory_()
        self.require_lanes(1)

    @property
    def start_batch(self) -> int:
        """Where the next iteration begins; may be set between two iterations."""
        return int(self._start)

    @start_batch.setter
    def start_batch(self, batch: int) -> None:
        self._start.fill_(batch)

    def require_lanes(self, workers: int) -> None:
        """Check that every worker of every rank has a shard.

        Raises:
            ConfigurationError: fewer shards than lanes.
        """
        shards, lanes = len(self.manifest.shards), self.world * max(workers, 1)
        if shards < lanes:
            raise ConfigurationError(
                f"{self.manifest.folder}: {shards} shards cannot feed {lanes} readers ({self.world} ranks x "
                f"{max(workers, 1)} workers); use fewer workers (num_workers={shards // self.world}), "
                "or pack with fewer clips a shard"
                if shards >= self.world
                else f"{self.manifest.folder}: {shards} shards cannot feed {self.world} ranks; "
                "pack with fewer clips a shard, or train on fewer ranks"
            )

    def __iter__(self) -> Iterator[ClipBatch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        self.require_lanes(workers)
        start = self.start_batch
        turn = (worker + start) % workers
        before = len(range(turn, start, workers))  # batches of this lane that are already consumed
        raws = self._lane(self.rank * workers + turn, self.world * workers, before * self.batch_size)
        return batches(
            self._bad.decode(raws, self.points, self.cached, self.renders), repeat(self.batch_size), self._bad
        )

    def _lane(self, lane: int, lanes: int, skip: int) -> Iterator[RawClip]:
        """The endless raw sequence of one lane from its clip number ``skip`` on."""
        epoch = self.first_epoch
        while True:
            shards = self._shards(epoch)[lane::lanes]
            clips = sum(shard.clips for shard in shards)
            if skip < clips:
                yield from self._epoch(shards, self._order(clips, epoch, lane), skip)
            skip = max(skip - clips, 0)
            epoch += 1

    def _epoch(self, shards: list[Shard], order: list[int], skip: int) -> Iterator[RawClip]:
        """Clips in the given order while the shards are read in theirs; ``order`` decides how many must wait."""
        skipped = set(order[:skip])
        members = training_members(self.cached, self.renders)
        incoming = read_shards(self.manifest.folder, shards, lambda n: n not in skipped, members)
        waiting: dict[int, RawClip] = {}
        for number in order[skip:]:
            while number not in waiting:
                arrived, raw = next(incoming)
                waiting[arrived] = raw
            yield waiting.pop(number)

    def _shards(self, epoch: int) -> list[Shard]:
        shards = list(self.manifest.shards)
        if not self.shuffle:
            return shards
        rng = np.random.default_rng([self.seed, epoch, 0])
        return [shards[i] for i in rng.permutation(len(shards))]

    def _order(self, count: int, epoch: int, lane: int) -> list[int]:
        """Numbers 0..count-1 as a shuffle buffer would let them out."""
        if not self.shuffle or self.shuffle_buffer == 1:
            return list(range(count))
        draws = np.random.default_rng([self.seed, epoch, 1, lane]).random(count).tolist()
        buffer: list[int] = []
        order: list[int] = []
        arriving = iter(range(count))
        for draw in draws:
            buffer.extend(islice(arriving, self.shuffle_buffer - len(buffer)))
            place = int(draw * len(buffer))
            buffer[place], buffer[-1] = buffer[-1], buffer[place]
            order.append(buffer.pop())
        return order


class ClipPass(IterableDataset[ClipBatch]):
    """Every clip once, in the order of the manifest, the same number on every rank: for validation.

    Each rank has one contiguous part. Where the parts differ by one clip, the shorter ones repeat their last clip (a
    rank without any repeats one of the others), so that no rank waits for another; no clip is left out.

    Args:
        As for :class:`ClipStream`.
    """

    def __init__(
        self,
        folder: str | Path,
        batch_size: int = 1,
        rank: int = 0,
        world: int = 1,
        points: int = 16384,
        max_bad_share: float = 0.01,
        cached: CachedInputs | None = None,
        renders: GuidanceInputs | None = None,
    ) -> None:
        _check_counts(batch_size, rank, world, points)
        self.manifest = _manifest(folder, cached, renders)
        self.points, self.cached, self.renders = points, cached, renders
        self._bad = BadClips(self.manifest.folder, self.manifest.clips, max_bad_share)
        clips = self.manifest.clips
        numbers = np.array_split(np.arange(clips), world)[rank].tolist() or [rank % clips]
        numbers += numbers[-1:] * (-(-clips // world) - len(numbers))
        self._batches = [numbers[i : i + batch_size] for i in range(0, len(numbers), batch_size)]

    def __len__(self) -> int:
        """Batches on this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[ClipBatch]:
        info = get_worker_info()
        own = self._batches[info.id :: info.num_workers] if info else self._batches
        raws = self._raws([number for batch in own for number in batch])
        samples = self._bad.decode(raws, self.points, self.cached, self.renders)
        return batches(samples, [len(batch) for batch in own], self._bad)

    def _raws(self, numbers: list[int]) -> Iterator[RawClip]:
        """The clips of these ascending numbers; endless, for a replacement of a bad last clip."""
        times = Counter(numbers)
        folder, shards = self.manifest.folder, self.manifest.shards
        while True:
            members = training_members(self.cached, self.renders)
            for number, raw in read_shards(folder, shards, times.__contains__, members):
                yield from repeat(raw, times[number])


def _manifest(folder: str | Path, cached: CachedInputs | None, renders: GuidanceInputs | None) -> Manifest:
    manifest = Manifest.load(folder)
    for needed in (cached, renders):
        if needed is not None:
            needed.require(manifest)
    return manifest


def _check_counts(batch_size: int, rank: int, world: int, points: int) -> None:
    if batch_size < 1 or not 0 <= rank < world or points < 0:
        raise ConfigurationError(
            f"batch_size must be positive, rank in 0..world-1, points not negative; "
            f"got batch_size={batch_size}, rank={rank}, world={world}, points={points}"
        )
