"""Shards are complete or not there, equal for equal input, and packing goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from golden_kits import REPOSITORY
from shard_clips import pack, pack_numbers, small_clip

from reconx_pl.data.shards.manifest import MANIFEST, Manifest
from reconx_pl.data.shards.schema import SCHEMA_VERSION, encode_clip
from reconx_pl.data.shards.stream import read_clips
from reconx_pl.data.shards.writer import ShardWriter
from reconx_pl.errors import BadCameraError, BadDataError, ConfigurationError, SchemaVersionError
from reconx_pl.types import Cameras


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_manifest_describes_the_shards(tmp_path: Path) -> None:
    pack_numbers(tmp_path, 7, clips_per_shard=3)
    data = json.loads((tmp_path / MANIFEST).read_text())
    assert data["schema"] == SCHEMA_VERSION
    assert data["settings"] == {"maker": "test", "clips_per_shard": 3, "jpeg_quality": 95}
    assert [(shard["name"], shard["clips"]) for shard in data["shards"]] == [
        ("shard-000000.tar", 3),
        ("shard-000001.tar", 3),
        ("shard-000002.tar", 1),
    ]
    for shard in data["shards"]:
        blob = (tmp_path / shard["name"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(blob), hashlib.sha256(blob).hexdigest())
    manifest = Manifest.load(tmp_path)
    manifest.verify(checksums=True)
    assert manifest.clips == 7 and manifest.keys == [f"clip-{n:03d}" for n in range(7)]
    assert [clip.key for clip in read_clips(tmp_path)] == manifest.keys
    assert sorted(contents(tmp_path)) == [MANIFEST, *(s.name for s in manifest.shards)]  # nothing temporary is left


def test_tar_is_deterministic_and_anonymous(tmp_path: Path) -> None:
    pack_numbers(tmp_path / "a", 4)
    pack_numbers(tmp_path / "b", 4)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with tarfile.open(tmp_path / "a" / "shard-000000.tar") as tar:
        for info in tar.getmembers():
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")
        assert [name for name in tar.getnames() if name.endswith(".jpgs")] == [f"clip-{n:03d}.jpgs" for n in range(3)]


def test_long_keys(tmp_path: Path) -> None:
    clip = replace(small_clip(0), key="scene-" + "x" * 200)
    pack(tmp_path, [clip])
    assert next(read_clips(tmp_path)).key == clip.key


def test_read_clips_by_key(tmp_path: Path) -> None:
    pack_numbers(tmp_path, 7)
    assert [clip.key for clip in read_clips(tmp_path, ["clip-005", "clip-001"])] == ["clip-001", "clip-005"]
    with pytest.raises(BadDataError, match="no clip clip-900"):
        next(read_clips(tmp_path, ["clip-001", "clip-900"]))


def test_exception_loses_only_the_shard_being_written_and_resume_gives_the_same_bytes(tmp_path: Path) -> None:
    pack_numbers(tmp_path / "whole", 8)
    with pytest.raises(RuntimeError, match="crash"), ShardWriter(tmp_path / "cut", 3, {"maker": "test"}) as writer:
        for number in range(5):
            writer.write(small_clip(number))
        assert writer.done == {f"clip-{n:03d}" for n in range(5)}
        raise RuntimeError("crash")
    assert writer.done == {f"clip-{n:03d}" for n in range(3)}
    assert sorted(contents(tmp_path / "cut")) == [MANIFEST, "shard-000000.tar"]
    with ShardWriter(tmp_path / "cut", 3, {"maker": "test"}) as writer:
        assert writer.done == {f"clip-{n:03d}" for n in range(3)}
        for number in range(8):
            if f"clip-{number:03d}" not in writer.done:
                writer.write(small_clip(number))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from shard_clips import small_clip
from reconx_pl.data.shards import manifest, writer
if {between}:  # after the shard has its name and before the manifest lists it
    manifest.Manifest.save = lambda self: os.kill(os.getpid(), signal.SIGKILL)
with writer.ShardWriter(Path({folder!r}), 3, {{"maker": "test"}}) as packer:
    for number in range(8):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        packer.write(small_clip(number))
"""


@pytest.mark.parametrize("between", [False, True], ids=["inside a shard", "between shard and manifest"])
def test_killed_process_can_be_resumed(tmp_path: Path, between: bool) -> None:
    pack_numbers(tmp_path / "whole", 8)
    folder = tmp_path / "killed"
    script = KILLED.format(tests=str(REPOSITORY / "tests" / "support"), folder=str(folder), between=between)
    run = subprocess.run([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    assert run.returncode == -signal.SIGKILL
    left = sorted(contents(folder))
    assert left == (["shard-000000.tar"] if between else [".shard-000001.tar.tmp", MANIFEST, "shard-000000.tar"])
    with ShardWriter(folder, 3, {"maker": "test"}) as writer:
        assert writer.done == (set() if between else {f"clip-{n:03d}" for n in range(3)})
        for number in range(8):
            if f"clip-{number:03d}" not in writer.done:
                writer.write(small_clip(number))
    assert contents(folder) == contents(tmp_path / "whole")


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    pack_numbers(tmp_path, 4)
    with pytest.raises(ConfigurationError) as error:
        ShardWriter(tmp_path, 3, {"maker": "someone else", "size": [1, 2]}, quality=80)
    message = str(error.value)
    for part in (
        str(tmp_path),
        "jpeg_quality was 95 and is now 80",
        "maker was 'test' and is now 'someone else'",
        "size was '(not set)' and is now [1, 2]",
        "choose another folder",
    ):
        assert part in message


def test_settings_are_compared_as_json(tmp_path: Path) -> None:
    for numbers in (range(2), range(2, 4)):
        with ShardWriter(tmp_path, 2, {"size": (32, 48)}) as writer:
            for number in numbers:
                writer.write(small_clip(number))
    assert Manifest.load(tmp_path).clips == 4


def test_duplicate_keys_are_an_error(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 2) as writer:
        writer.write(small_clip(0))
        with pytest.raises(BadDataError, match="clip clip-000 is already packed"):
            writer.write(small_clip(0))  # in the shard being written
        writer.write(small_clip(1))
        with pytest.raises(BadDataError, match="clip clip-001 is already packed"):
            writer.write_members("clip-001", encode_clip(small_clip(1)))  # in a finished one
    assert Manifest.load(tmp_path).keys == ["clip-000", "clip-001"]


def test_a_bad_clip_does_not_spoil_the_shard(tmp_path: Path) -> None:
    clip = small_clip(1)
    cameras = clip.cameras
    nan = Cameras(cameras.world_to_camera * float("nan"), cameras.intrinsics, cameras.height, cameras.width)
    with ShardWriter(tmp_path, 3) as writer:
        writer.write(small_clip(0))
        with pytest.raises(BadCameraError, match="clip clip-001"):
            writer.write(replace(clip, cameras=nan))
        writer.write(small_clip(2))
    assert [clip.key for clip in read_clips(tmp_path)] == ["clip-000", "clip-002"]


def test_damaged_shards_are_packed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack_numbers(tmp_path / "whole", 9)
    pack_numbers(tmp_path / "holes", 9)
    first, second = tmp_path / "holes" / "shard-000000.tar", tmp_path / "holes" / "shard-000001.tar"
    first.write_bytes(first.read_bytes()[:-600])
    second.unlink()
    with pytest.raises(BadDataError, match=r"shard-000000\.tar.*truncated.*shard-000001\.tar is missing.*same pack"):
        Manifest.load(tmp_path / "holes").verify()
    with ShardWriter(tmp_path / "holes", 3, {"maker": "test"}) as writer:
        assert writer.done == {"clip-006", "clip-007", "clip-008"}
        for number in range(9):
            if f"clip-{number:03d}" not in writer.done:
                writer.write(small_clip(number))
    assert "shard-000001.tar is missing; packing it again" in caplog.text
    assert contents(tmp_path / "holes") == contents(tmp_path / "whole")


def test_verify_finds_changed_contents_on_demand(tmp_path: Path) -> None:
    manifest = pack_numbers(tmp_path, 3)
    path = tmp_path / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    manifest.verify()
    with pytest.raises(BadDataError, match=r"shard-000000\.tar has the checksum"):
        manifest.verify(checksums=True)


def test_two_writers_are_noticed(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, 2) as mine:
        mine.write(small_clip(0))
        with ShardWriter(tmp_path, 2) as other:
            other.write(small_clip(5))
        with pytest.raises(ConfigurationError, match="changed by another process"):
            mine.write(small_clip(1))
    assert Manifest.load(tmp_path).keys == ["clip-005"]
    Manifest.load(tmp_path).verify(checksums=True)


def test_unlisted_shards_are_not_overwritten(tmp_path: Path) -> None:
    pack_numbers(tmp_path, 6)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(ConfigurationError, match="2 shards that its manifest does not list"):
        ShardWriter(tmp_path, 3)


def test_manifest_errors_name_the_folder_and_the_command(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    for name, reason in (
        ("absent", "no such folder"),
        ("empty", "is empty"),
        ("other", "has no manifest.json"),
        ("file", "not a folder"),
    ):
        with pytest.raises(BadDataError, match=rf"{name}:? {reason}.*`reconx pack`.*`reconx procedural`"):
            Manifest.load(tmp_path / name)


def test_manifest_of_a_newer_schema_or_nonsense(tmp_path: Path) -> None:
    manifest = pack_numbers(tmp_path, 3)
    replace(manifest, schema=SCHEMA_VERSION + 1).save()
    with pytest.raises(SchemaVersionError, match=rf"{MANIFEST}.*schema {SCHEMA_VERSION + 1}.*upgrade reconx_pl"):
        Manifest.load(tmp_path)
    (outside,) = (replace(shard, name="../shard-000000.tar") for shard in manifest.shards)
    for nonsense in (
        b"{",
        b"[]",
        b'{"schema": 1}',
        replace(manifest, shards=(outside,)).dump(),
        replace(manifest, shards=manifest.shards * 2).dump(),
        replace(manifest, shards=()).dump(),
    ):
        (tmp_path / MANIFEST).write_bytes(nonsense)
        with pytest.raises(BadDataError, match=MANIFEST):
            Manifest.load(tmp_path)
