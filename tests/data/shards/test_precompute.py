"""Precomputing members of shards: by many processes, restartable, whole or not there."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden_kits import REPOSITORY
from shard_clips import corrupt_jpeg, edit_members, pack_numbers

from reconx_pl.data.shards.caches import CachedInputs, cache_name
from reconx_pl.data.shards.manifest import MANIFEST, Manifest
from reconx_pl.data.shards.precompute import PrecomputeReport, precompute_shards
from reconx_pl.data.shards.schema import encode_cache
from reconx_pl.data.shards.stream import ClipPass, ClipStream, read_clips
from reconx_pl.errors import BadDataError, ConfigurationError
from reconx_pl.files.ranks import process_place
from reconx_pl.types import Clip

NAME = cache_name("clip", "0123456789abcdef")
SHARDS, PER_SHARD = 4, 3
CLIPS = SHARDS * PER_SHARD


class Mean:
    """Mean colour of the first frame; counts, and may fail at a clip."""

    def __init__(self, name: str = NAME, fail_at: str | None = None) -> None:
        self.names, self.fail_at, self.seen = (name,), fail_at, []

    def __call__(self, clip: Clip) -> dict[str, bytes]:
        if clip.key == self.fail_at:
            raise RuntimeError("out of memory")
        self.seen.append(clip.key)
        return {self.names[0]: encode_cache(clip.images[0].mean((1, 2))[None], "test")}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    pack_numbers(folder, CLIPS, PER_SHARD)
    return folder


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole") / "out"
    precompute_shards(source, folder, [Mean()])
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_shards_keep_their_clips_and_gain_members(source: Path, tmp_path: Path) -> None:
    done: list[tuple[str, int, int | None]] = []
    report = precompute_shards(source, tmp_path / "out", [Mean()], progress=lambda *args: done.append(args))
    assert report == PrecomputeReport(tmp_path / "out", shards=SHARDS, clips=CLIPS)
    assert done[0] == ("precomputing shard-000000.tar", 1, CLIPS)
    assert done[-1] == ("precomputing shard-000003.tar", CLIPS, CLIPS)
    made = Manifest.load(tmp_path / "out")
    made.verify(checksums=True)
    assert [(s.name, s.keys) for s in made.shards] == [(s.name, s.keys) for s in Manifest.load(source).shards]
    batches = list(ClipPass(tmp_path / "out", points=0, cached=CachedInputs(clip=NAME)))
    for clip, batch in zip(read_clips(source), batches, strict=True):
        assert torch.equal(batch["caches"][NAME][0, 0], clip.images[0].mean((1, 2)).half())


def test_ranks_share_the_work_and_the_last_writes_the_manifest(
    source: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out, seen = tmp_path / "out", []
    for rank, missing in ((2, 3), (0, 1), (1, 0)):  # of three, in any order
        precomputer = Mean()
        report = precompute_shards(source, out, [precomputer], rank=rank, world=3)
        seen += precomputer.seen
        assert report.missing == missing and (out / MANIFEST).exists() == (missing == 0)
        if missing:
            with pytest.raises(BadDataError, match="has no manifest"):
                ClipStream(out)
    assert sorted(seen) == Manifest.load(source).keys and contents(out) == whole


def test_processes_that_finish_together_leave_one_whole_folder(
    source: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    barrier, errors = threading.Barrier(SHARDS), []

    class Waiting(Mean):
        def __call__(self, clip: Clip) -> dict[str, bytes]:
            if len(self.seen) == PER_SHARD - 1:
                barrier.wait(30)  # all at their last clip
            return super().__call__(clip)

    def work(rank: int) -> None:
        try:
            precompute_shards(source, tmp_path / "out", [Waiting()], rank=rank, world=SHARDS)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(SHARDS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and contents(tmp_path / "out") == whole


def test_an_interruption_costs_one_shard(source: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    with pytest.raises(RuntimeError, match="out of memory"):
        precompute_shards(source, out, [Mean(fail_at="clip-007")])
    assert not (out / MANIFEST).exists()
    (out / ".shard-000002.tar.0123456789ab.tmp").write_bytes(b"left by a kill")
    precomputer = Mean()
    report = precompute_shards(source, out, [precomputer])
    assert (report.done, report.shards) == (2, 2) and precomputer.seen[0] == "clip-006" and len(precomputer.seen) == 6
    assert contents(out) == whole


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from test_precompute import Mean, precompute_shards
class Killed(Mean):
    def __call__(self, clip):
        if clip.key == "clip-007":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(clip)
precompute_shards(sys.argv[1], sys.argv[2], [Killed()])
"""


def test_a_killed_process_loses_the_shard_that_it_was_writing(
    source: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    folders = [str(Path(__file__).parent), str(REPOSITORY / "tests" / "support")]
    command = [sys.executable, "-c", KILLED, str(source), str(out), *folders]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert len(list(out.glob(".shard-000002.tar.*.tmp"))) == 1 and len(list(out.glob("shard-*.tar"))) == 2
    precomputer = Mean()
    precompute_shards(source, out, [precomputer])
    assert len(precomputer.seen) == 6 and contents(out) == whole


def test_a_second_run_does_nothing_and_a_lost_shard_is_made_again(
    source: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out, again = tmp_path / "out", Mean(fail_at="clip-000")
    precompute_shards(source, out, [Mean()])
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert precompute_shards(source, out, [again]).done == SHARDS and again.seen == []
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    path = out / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:700])
    precompute_shards(source, out, [again])
    assert again.seen == ["clip-003", "clip-004", "clip-005"] and contents(out) == whole


def test_a_changed_source_shard_is_annotated_again(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    pack_numbers(source, 2, 1)
    precompute_shards(source, out, [Mean()])
    shard = Manifest.load(source).shards[1]
    manifest = Manifest.load(source)
    replace(manifest, shards=(manifest.shards[0], replace(shard, sha256="0" * 64))).save()
    precomputer = Mean()
    precompute_shards(source, out, [precomputer])
    assert precomputer.seen == ["clip-001"]


def test_other_weights_or_settings_need_another_folder(source: Path, tmp_path: Path) -> None:
    precompute_shards(source, tmp_path / "out", [Mean()], {"precision": "32"})
    for precomputer, precision in ((Mean(cache_name("clip", "f" * 64)), "32"), (Mean(), "bf16")):
        with pytest.raises(ConfigurationError, match=r"(?s)made with other weights or settings.*0123456789ab"):
            precompute_shards(source, tmp_path / "out", [precomputer], {"precision": precision})
    with pytest.raises(ConfigurationError, match="folder of their own"):
        precompute_shards(source, source, [Mean()])
    pack_numbers(tmp_path / "packed", 2)
    with pytest.raises(ConfigurationError, match="holds other shards"):
        precompute_shards(source, tmp_path / "packed", [Mean()])
    with pytest.raises(ConfigurationError, match="each its own"):
        precompute_shards(source, tmp_path / "twice", [Mean(), Mean()])


def test_annotations_add_up(source: Path, tmp_path: Path) -> None:
    other = cache_name("moments", "f" * 64)
    precompute_shards(source, tmp_path / "one", [Mean()])
    precompute_shards(tmp_path / "one", tmp_path / "two", [Mean(other)])
    assert Manifest.load(tmp_path / "two").settings["caches"] == [NAME, other]
    batch = next(iter(ClipStream(tmp_path / "two", points=0, cached=CachedInputs(clip=NAME))))
    assert batch["caches"].keys() == {NAME}


def test_a_bad_clip_stays_the_same_bad_clip(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    pack_numbers(source, 6)
    edit_members(source, "clip-004", corrupt_jpeg)
    report = precompute_shards(source, out, [Mean()])
    assert len(report.bad) == 1 and "clip-004" in report.bad[0]

    def keys(folder: Path, cached: CachedInputs | None) -> list[list[str]]:
        return [b["key"] for b in ClipPass(folder, 2, points=0, max_bad_share=0.5, cached=cached)]

    assert (
        keys(out, CachedInputs(clip=NAME))
        == keys(source, None)
        == [["clip-000", "clip-001"], ["clip-002", "clip-003"], ["clip-005"] * 2]
    )


def test_the_place_of_a_process() -> None:
    slurm = {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "10"}
    torchrun = {"RANK": "1", "WORLD_SIZE": "2"}
    assert process_place(environment={}) == (0, 1)
    assert process_place(environment=torchrun) == (1, 2)
    assert process_place(environment=slurm | torchrun) == (2, 4)
    assert process_place(environment=slurm | {"SLURM_ARRAY_TASK_STEP": "2"}) == (1, 4)
    assert process_place(3, 5, environment=slurm) == (3, 5)
    for rank, world in ((1, None), (None, 2), (2, 2)):
        with pytest.raises(ConfigurationError):
            process_place(rank, world, environment={})
