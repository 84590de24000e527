"""The stream is a function of (seed, batch number): it resumes exactly and shows every clip once an epoch."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from shard_clips import FRAMES, HEIGHT, POINTS, WIDTH, pack, pack_numbers, small_clip
from torch.utils.data import DataLoader, get_worker_info

from reconx_pl.data.shards import stream as stream_module
from reconx_pl.data.shards.manifest import Manifest
from reconx_pl.data.shards.reader import read_shards
from reconx_pl.data.shards.stream import ClipPass, ClipStream, read_clips
from reconx_pl.errors import ConfigurationError
from reconx_pl.types import ClipBatch

CLIPS = 14  # in 5 shards of 3, 3, 3, 3, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    pack_numbers(folder, CLIPS, clips_per_shard=3)
    return folder


class Worker:
    """Plays one worker of a DataLoader in this process."""

    def __init__(self, id: int, num_workers: int) -> None:
        self.id, self.num_workers = id, num_workers


def take(stream: ClipStream, count: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> list[ClipBatch]:
    """The first batches as a DataLoader would interleave those of its workers, without starting processes."""
    iterators = []
    for worker in range(max(workers, 1)):
        info = Worker(worker, workers) if workers else None
        monkeypatch.setattr(stream_module, "get_worker_info", lambda info=info: info)
        iterators.append(iter(stream))
    return [next(iterators[number % len(iterators)]) for number in range(count)]


def assert_equal(one: list[ClipBatch], other: list[ClipBatch]) -> None:
    assert [batch["key"] for batch in one] == [batch["key"] for batch in other]
    for a, b in zip(one, other, strict=True):
        assert a["caption"] == b["caption"]
        for name in ("frames", "world_to_camera", "intrinsics", "fps", "points"):
            assert torch.equal(a[name], b[name]), name


def test_batch_has_the_shapes_and_values_of_the_clips(folder: Path) -> None:
    batch = next(iter(ClipStream(folder, batch_size=2, points=8)))
    assert batch["frames"].shape == (2, FRAMES, 3, HEIGHT, WIDTH) and batch["frames"].dtype == torch.uint8
    assert batch["points"].shape == (2, 8, 3) and batch["fps"].dtype == torch.float32
    clips = {clip.key: clip for clip in read_clips(folder)}
    for row, key in enumerate(batch["key"]):
        clip = clips[key]
        assert batch["caption"][row] == clip.caption and batch["fps"][row] == clip.fps
        assert torch.equal(batch["frames"][row], clip.frames)
        assert torch.equal(batch["world_to_camera"][row], clip.cameras.world_to_camera)
        assert torch.equal(batch["intrinsics"][row], clip.cameras.intrinsics)
        assert torch.equal(batch["points"][row], clip.cloud.points[:8])


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_resume_is_exact(folder: Path, workers: int, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    total = 17  # of 2 clips: more than two epochs for every lane
    for rank in range(world):
        arguments = {"seed": 7, "batch_size": 2, "rank": rank, "world": world, "points": POINTS, "shuffle_buffer": 4}
        whole = take(ClipStream(folder, **arguments), total, workers, monkeypatch)
        assert len({tuple(batch["key"]) for batch in whole}) > total // 2
        for start in (1, 2, 3, 4, 7, 11, 16):
            stream = ClipStream(folder, start_batch=start, **arguments)
            assert_equal(take(stream, total - start, workers, monkeypatch), whole[start:])


@pytest.mark.parametrize(("workers", "world"), [(0, 1), (2, 1), (1, 2), (2, 2), (0, 5)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_clip_comes_once_an_epoch_over_all_lanes(folder: Path, workers: int, world: int, shuffle: bool) -> None:
    # Batches may span two epochs of a lane, so the epochs are counted where they are known: in the raw sequence.
    lanes = max(workers, 1) * world
    stream = ClipStream(folder, seed=3, shuffle=shuffle, shuffle_buffer=4)
    for epoch in range(3):
        seen: Counter[str] = Counter()
        for lane in range(lanes):
            shares = [sum(s.clips for s in stream._shards(e)[lane::lanes]) for e in range(epoch + 1)]
            raws = stream._lane(lane, lanes, sum(shares[:-1]))
            seen.update(raw.members["__key__"] for raw in islice(raws, shares[-1]))
        assert seen == Counter(Manifest.load(folder).keys)


def test_one_lane_shows_every_clip_in_each_stretch_of_an_epoch(folder: Path) -> None:
    keys = [batch["key"][0] for batch in islice(ClipStream(folder, seed=1, points=0), 3 * CLIPS)]
    epochs = [keys[i : i + CLIPS] for i in range(0, len(keys), CLIPS)]
    assert all(sorted(epoch) == Manifest.load(folder).keys for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3  # another order each time


def test_order_depends_on_the_seed_and_on_nothing_else(folder: Path) -> None:
    def keys(**arguments: int) -> list[str]:
        torch.manual_seed(len(arguments))
        return [batch["key"][0] for batch in islice(ClipStream(folder, points=0, **arguments), CLIPS)]

    assert keys(seed=0) == keys() != keys(seed=1)


def test_without_a_buffer_only_the_shards_change_places(folder: Path) -> None:
    shards = [shard.keys for shard in Manifest.load(folder).shards]
    keys = [b["key"][0] for b in islice(ClipStream(folder, seed=1, points=0, shuffle_buffer=1), CLIPS)]
    order = sorted(shards, key=lambda shard: keys.index(shard[0]))
    assert keys == [key for shard in order for key in shard] and order != shards


def test_without_shuffling_the_order_is_that_of_the_manifest(folder: Path) -> None:
    stream = ClipStream(folder, points=0, shuffle=False)
    assert [batch["key"][0] for batch in islice(stream, 2 * CLIPS)] == Manifest.load(folder).keys * 2


def test_shuffle_mixes_shards_no_further_than_its_buffer(folder: Path) -> None:
    stream = ClipStream(folder, shuffle_buffer=4)
    order = stream._order(100, epoch=0, lane=0)
    assert sorted(order) == list(range(100)) and order != sorted(order)
    assert all(number < place + 4 for place, number in enumerate(order))
    assert order != stream._order(100, epoch=1, lane=0) and order != stream._order(100, epoch=0, lane=1)


def test_ranks_share_an_epoch_without_overlap(folder: Path) -> None:
    stream = [ClipStream(folder, seed=5, rank=rank, world=2, points=0) for rank in range(2)]
    lane_clips = [sum(s.clips for s in stream[0]._shards(0)[rank::2]) for rank in range(2)]
    keys = [{b["key"][0] for b in islice(stream[rank], lane_clips[rank])} for rank in range(2)]
    assert not keys[0] & keys[1] and sorted(keys[0] | keys[1]) == Manifest.load(folder).keys


def test_what_lies_before_the_start_is_not_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, decoded = [], []
    real_read, real_decode = read_shards, stream_module.BadClips.decode

    def reading(folder, shards, wanted, members):
        opened.append(len(shards))
        return real_read(folder, shards, wanted, members)

    def decoding(self, raws, *arguments):
        return real_decode(self, (decoded.append(raw.members["__key__"]) or raw for raw in raws), *arguments)

    monkeypatch.setattr(stream_module, "read_shards", reading)
    monkeypatch.setattr(stream_module.BadClips, "decode", decoding)
    batch = next(iter(ClipStream(folder, start_batch=10 * CLIPS + 5, points=0)))
    assert len(opened) == 1 and decoded == batch["key"]


def test_whole_shards_before_the_start_are_not_opened(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "shard-000000.tar").unlink()
    stream = ClipStream(copy, shuffle=False, start_batch=3, points=0)
    assert next(iter(stream))["key"] == ["clip-003"]


@pytest.mark.parametrize("workers", [1, 2])
def test_real_workers(folder: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"seed": 2, "batch_size": 2, "points": 5, "shuffle_buffer": 3}
    expected = take(ClipStream(folder, **arguments), 12, workers, monkeypatch)
    monkeypatch.setattr(stream_module, "get_worker_info", get_worker_info)
    loader = DataLoader(ClipStream(folder, **arguments), batch_size=None, num_workers=workers, persistent_workers=True)
    assert_equal(list(islice(loader, 12)), expected)
    # the position may be moved between two iterations, even of workers that live on
    loader.dataset.start_batch = 5
    assert_equal(list(islice(loader, 7)), expected[5:])


def test_fewer_shards_than_lanes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = ClipStream(folder, world=2)
    stream.require_lanes(2)
    with pytest.raises(ConfigurationError, match=r"5 shards.*6 readers \(2 ranks x 3 workers\).*num_workers=2"):
        stream.require_lanes(3)
    with pytest.raises(ConfigurationError, match="5 shards cannot feed 6 ranks"):
        ClipStream(folder, world=6)
    with pytest.raises(ConfigurationError, match="5 shards cannot feed 6 readers"):  # in the worker, too
        take(ClipStream(folder), 1, 6, monkeypatch)


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 0},
        {"rank": 1},
        {"points": -1},
        {"seed": -1},
        {"start_batch": -1},
        {"shuffle_buffer": 0},
        {"max_bad_share": 1.5},
    ],
)
def test_arguments_out_of_range(folder: Path, arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        ClipStream(folder, **arguments)


def test_clips_of_different_sizes_need_batches_of_one(tmp_path: Path) -> None:
    pack(tmp_path, [small_clip(0), small_clip(1, height=40), small_clip(2, frames=5)])
    with pytest.raises(ConfigurationError, match=r"clip clip-001 has frames \(4, 3, 40, 48\), clip clip-000"):
        next(iter(ClipStream(tmp_path, batch_size=3, points=0, shuffle=False)))
    shapes = {batch["frames"].shape[1:] for batch in islice(ClipStream(tmp_path, points=0), 3)}
    assert len(shapes) == 3


@pytest.mark.parametrize(("world", "batch_size", "workers"), [(1, 1, 0), (1, 4, 0), (2, 3, 0), (3, 2, 2), (4, 4, 0)])
def test_pass_shows_every_clip_and_equally_many_on_every_rank(
    folder: Path, world: int, batch_size: int, workers: int
) -> None:
    shown = []
    for rank in range(world):
        clips = ClipPass(folder, batch_size, rank, world, points=3)
        found = list(DataLoader(clips, batch_size=None, num_workers=workers))
        assert len(found) == len(clips)
        shown.append([key for batch in found for key in batch["key"]])
    assert {len(keys) for keys in shown} == {-(-CLIPS // world)}
    assert set().union(*shown) == set(Manifest.load(folder).keys)
    assert all(keys == sorted(keys) for keys in shown)  # in order
    assert sum(map(len, shown)) - CLIPS < world  # what is repeated


def test_pass_with_more_ranks_than_clips(tmp_path: Path) -> None:
    pack_numbers(tmp_path, 2)
    keys = [[batch["key"] for batch in ClipPass(tmp_path, 2, rank, 5, points=0)] for rank in range(5)]
    assert keys == [[["clip-000"]], [["clip-001"]], [["clip-000"]], [["clip-001"]], [["clip-000"]]]


def test_small_tensors_of_a_batch_travel_in_one_piece(tmp_path: Path) -> None:
    """A worker hands over each piece of memory by a message of its own."""
    pack_numbers(tmp_path, 4)
    batch = next(iter(ClipStream(tmp_path, batch_size=2, points=4, shuffle=False)))
    small = [batch[name] for name in ("world_to_camera", "intrinsics", "points", "fps")]
    assert len({tensor.untyped_storage().data_ptr() for tensor in small}) == 1
    for number, clip in enumerate(islice(read_clips(tmp_path), 2)):
        assert torch.equal(batch["world_to_camera"][number], clip.cameras.world_to_camera)
        assert torch.equal(batch["intrinsics"][number], clip.cameras.intrinsics)
        assert clip.cloud is not None and torch.equal(batch["points"][number], clip.cloud.points[:4])
        assert float(batch["fps"][number]) == clip.fps
