"""Damaged shards: every message names the file; bad clips in a stream are counted, logged once, replaced."""

from __future__ import annotations

import json
import logging
from itertools import islice
from pathlib import Path

import pytest
import torch
from shard_clips import corrupt_jpeg, edit_header, edit_members, pack_numbers, relist

from reconx_pl.data.shards.manifest import Manifest
from reconx_pl.data.shards.reader import BadClips, RawClip
from reconx_pl.data.shards.schema import SCHEMA_VERSION
from reconx_pl.data.shards.stream import ClipPass, ClipStream, read_clips
from reconx_pl.errors import BadCameraError, BadDataError, SchemaVersionError


def keys(stream: ClipStream, count: int) -> list[list[str]]:
    return [batch["key"] for batch in islice(stream, count)]


def ordered(folder: Path, **arguments: float) -> ClipStream:
    return ClipStream(folder, shuffle=False, points=4, **arguments)


def test_truncated_tar_is_found_by_its_size(tmp_path: Path) -> None:
    manifest = pack_numbers(tmp_path, 6)
    path = tmp_path / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-1500])
    with pytest.raises(BadDataError, match=r"shard-000001\.tar has \d+ bytes instead of \d+.*truncated.*same pack"):
        manifest.verify()


@pytest.mark.parametrize("cut", ["inside a member", "between two clips", "inside a header"])
def test_truncated_tar_is_found_while_reading(tmp_path: Path, cut: str) -> None:
    manifest = pack_numbers(tmp_path, 6)
    path = tmp_path / "shard-000001.tar"
    data = path.read_bytes()
    second_clip = data.index(b"clip-004.cloud.npy")
    length = {
        "inside a member": second_clip + 700,
        "between two clips": second_clip,
        "inside a header": second_clip + 99,
    }
    path.write_bytes(data[: length[cut]])
    relist(tmp_path, manifest.shards[1], length[cut])
    Manifest.load(tmp_path).verify()
    for read in (lambda: list(read_clips(tmp_path)), lambda: keys(ordered(tmp_path), 6)):
        with pytest.raises(BadDataError, match=r"shard-000001\.tar: .*truncated.*same pack command"):
            read()


def test_broken_tar_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    pack_numbers(tmp_path, 3)
    path = tmp_path / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    start = data.index(b"clip-001.cloud.npy")
    data[start : start + 512] = b"?" * 512
    path.write_bytes(data)
    with pytest.raises(BadDataError, match=r"shard-000000\.tar: truncated or replaced: 1 clips instead of 3"):
        list(read_clips(tmp_path))


def test_shard_that_vanished(tmp_path: Path) -> None:
    manifest = pack_numbers(tmp_path, 3)
    (tmp_path / "shard-000000.tar").unlink()
    with pytest.raises(BadDataError, match=r"shard-000000\.tar is missing.*same pack command"):
        manifest.verify()
    with pytest.raises(BadDataError, match=r"shard-000000\.tar"):
        list(read_clips(tmp_path))


def test_corrupt_jpeg_names_shard_clip_and_frame(tmp_path: Path) -> None:
    pack_numbers(tmp_path, 6)
    edit_members(tmp_path, "clip-004", corrupt_jpeg)
    Manifest.load(tmp_path).verify()
    with pytest.raises(
        BadDataError, match=r"shard-000001\.tar: clip clip-004, frame 1: the JPEG is corrupt.*same pack"
    ):
        list(read_clips(tmp_path))


def test_corrupt_jpeg_in_a_stream_is_counted_logged_once_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack_numbers(tmp_path, 6)
    edit_members(tmp_path, "clip-004", corrupt_jpeg)
    stream = ordered(tmp_path, batch_size=2, max_bad_share=0.2)
    with caplog.at_level(logging.WARNING):
        found = list(islice(stream, 9))  # three epochs
    epoch = [["clip-000", "clip-001"], ["clip-002", "clip-003"], ["clip-005", "clip-005"]]
    assert [batch["key"] for batch in found] == epoch * 3
    assert torch.equal(found[2]["frames"][0], found[2]["frames"][1])
    assert (len(stream._bad.bad), stream._bad.seen) == (1, 18)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "shard-000001.tar: clip clip-004, frame 1" in caplog.text


def test_batch_without_a_good_clip_borrows_the_next_good_one(tmp_path: Path) -> None:
    pack_numbers(tmp_path, 7)
    for key in ("clip-002", "clip-003", "clip-004"):
        edit_members(tmp_path, key, corrupt_jpeg)
    found = keys(ordered(tmp_path, batch_size=2, max_bad_share=1), 7)
    # the second batch borrows 5 from the third, where it comes again
    assert found[:3] == [["clip-000", "clip-001"], ["clip-005", "clip-005"], ["clip-005", "clip-005"]]
    assert found[3] == ["clip-006", "clip-000"]  # the position counted the bad ones
    assert found[4:7] == [["clip-001", "clip-001"], ["clip-005", "clip-005"], ["clip-005", "clip-006"]]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_resume_is_exact_with_bad_clips(tmp_path: Path, batch_size: int) -> None:
    pack_numbers(tmp_path, 10)
    for key in ("clip-002", "clip-003", "clip-004", "clip-009"):
        edit_members(tmp_path, key, corrupt_jpeg)
    arguments = {"seed": 4, "batch_size": batch_size, "points": 4, "max_bad_share": 1.0, "shuffle_buffer": 3}
    whole = list(islice(ClipStream(tmp_path, **arguments), 16))
    for start in range(1, 16):
        tail = list(islice(ClipStream(tmp_path, start_batch=start, **arguments), 16 - start))
        assert [batch["key"] for batch in tail] == [batch["key"] for batch in whole[start:]]
        assert all(torch.equal(a["frames"], b["frames"]) for a, b in zip(tail, whole[start:], strict=True))


def test_too_many_bad_clips_stop_the_stream(tmp_path: Path) -> None:
    pack_numbers(tmp_path, 9)
    for key in ("clip-001", "clip-005"):
        edit_members(tmp_path, key, corrupt_jpeg)
    assert len(keys(ordered(tmp_path, max_bad_share=0.23), 40)) == 40  # 2 of 9 are fewer, however often they come
    with pytest.raises(BadDataError) as error:
        keys(ordered(tmp_path, max_bad_share=0.22), 9)
    message = str(error.value)
    assert f"{tmp_path}: 2 bad clips among the first 6" in message and "more than 0.22 of 9" in message
    assert "shard-000000.tar: clip clip-001" in message and "shard-000001.tar: clip clip-005" in message
    assert "same pack command" in message and "max_bad_share" in message


def test_share_of_zero_stops_at_the_first(tmp_path: Path) -> None:
    pack_numbers(tmp_path, 9)
    edit_members(tmp_path, "clip-005", corrupt_jpeg)
    assert len(keys(ordered(tmp_path, max_bad_share=0), 5)) == 5
    with pytest.raises(BadDataError, match="1 bad clips among the first 6.*\n.*clip-005"):
        keys(ordered(tmp_path, max_bad_share=0), 6)


@pytest.mark.parametrize(("seen", "tolerated"), [(0, 3), (300, 3), (1000, 10), (20_000, 50)])
def test_share_in_a_large_folder(seen: int, tolerated: int) -> None:
    bad = BadClips(Path("large"), clips=5000, max_share=0.01)
    bad.seen = seen - tolerated  # an early bad clip is not half of all, and no clip counts twice
    raws = [RawClip("shard-000000.tar", {"__key__": f"clip-{number}"}) for number in range(tolerated + 1)]
    assert list(bad.decode(raws[:tolerated], 0)) == [None] * tolerated
    assert list(bad.decode(raws[:1], 0)) == [None]
    with pytest.raises(BadDataError, match=rf"large: {tolerated + 1} bad clips.*more than 0\.01 of"):
        list(bad.decode(raws[tolerated:], 0))


def test_nothing_readable_stops_whatever_the_share(tmp_path: Path) -> None:
    pack_numbers(tmp_path, 3)
    for number in range(3):
        edit_members(tmp_path, f"clip-{number:03d}", corrupt_jpeg)
    with pytest.raises(BadDataError, match="3 bad clips among the first 21.*the last 20 of them without a good one"):
        keys(ordered(tmp_path, max_bad_share=1), 1)


def test_bad_last_clip_of_a_pass(tmp_path: Path) -> None:
    pack_numbers(tmp_path, 5)
    edit_members(tmp_path, "clip-004", corrupt_jpeg)
    found = [batch["key"] for batch in ClipPass(tmp_path, 1, points=4, max_bad_share=0.2)]
    assert found == [["clip-000"], ["clip-001"], ["clip-002"], ["clip-003"], ["clip-000"]]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"world_to_camera": [[[float("nan")] * 4] * 4] * 4}, BadCameraError, "camera 0 has NaN"),
        ({"intrinsics": [[[0.0, 0, 1], [0, 5, 1], [0, 0, 1]]] * 4}, BadCameraError, "camera 0 has focal length"),
        ({"fps": None}, BadDataError, "json lacks fps"),
        ({"world_to_camera": None, "caption": None}, BadDataError, "json lacks caption, world_to_camera"),
    ],
    ids=["NaN", "focal length of zero", "missing key", "missing keys"],
)
def test_bad_headers(
    tmp_path: Path, changes: dict[str, object], kind: type[Exception], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    pack_numbers(tmp_path, 4)
    edit_members(tmp_path, "clip-001", edit_header(**changes))
    with pytest.raises(kind, match=rf"shard-000000\.tar: clip clip-001: .*{message}"):
        list(read_clips(tmp_path))
    assert keys(ordered(tmp_path, max_bad_share=0.25), 4) == [["clip-000"], ["clip-002"], ["clip-002"], ["clip-003"]]
    assert message in caplog.text


@pytest.mark.parametrize("member", ["json", "jpgs", "cloud_rgb.npy", "cloud_confidence.npy"])
def test_missing_member(tmp_path: Path, member: str) -> None:
    pack_numbers(tmp_path, 4)
    edit_members(tmp_path, "clip-001", lambda members: members.pop(member))
    with pytest.raises(BadDataError, match=rf"shard-000000\.tar: clip clip-001: member \.{member} is missing"):
        list(read_clips(tmp_path))


def test_cloud_with_too_few_points(tmp_path: Path) -> None:
    pack_numbers(tmp_path, 3)
    with pytest.raises(BadDataError, match=r"shard-000000\.tar: clip clip-000: the cloud has 20 points.*points=20"):
        next(iter(ClipStream(tmp_path, points=21, shuffle=False)))


@pytest.mark.parametrize("newer", [SCHEMA_VERSION + 1, 99])
def test_newer_schema_stops_at_once(tmp_path: Path, newer: int) -> None:
    pack_numbers(tmp_path, 4)
    edit_members(tmp_path, "clip-001", edit_header(schema=newer))
    for read in (lambda: list(read_clips(tmp_path)), lambda: keys(ordered(tmp_path, max_bad_share=1), 3)):
        with pytest.raises(
            SchemaVersionError, match=rf"shard-000000\.tar: clip clip-001: .*{newer}.*upgrade reconx_pl"
        ):
            read()


@pytest.mark.parametrize("suffix", ["pyd", "latents.pth"])
def test_pickle_member_is_refused_by_every_reader(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    pack_numbers(tmp_path, 4)
    edit_members(tmp_path, "clip-001", lambda members: members.update({suffix: b"\x80\x04."}))
    message = rf"shard-000000\.tar: clip clip-001: member \.{suffix} may be a pickle"
    with pytest.raises(BadDataError, match=message):
        list(read_clips(tmp_path))
    assert keys(ordered(tmp_path, max_bad_share=0.25), 3)[1] == ["clip-002"]
    assert "may be a pickle" in caplog.text
    with pytest.raises(BadDataError, match=message):
        keys(ordered(tmp_path, max_bad_share=0), 3)


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for read in (lambda: next(read_clips(tmp_path / "empty")), lambda: ClipStream(tmp_path / "empty")):
        with pytest.raises(BadDataError, match=r"empty is empty; .*`reconx pack`"):
            read()


def test_two_clips_of_one_key_in_a_shard(tmp_path: Path) -> None:
    pack_numbers(tmp_path, 3)
    path = edit_members(tmp_path, "clip-001", lambda members: members.update({"JSON": members["json"]}))
    with pytest.raises(BadDataError, match=rf"{path.name}.*duplicate"):
        list(read_clips(tmp_path))


def test_header_of_another_clip(tmp_path: Path) -> None:
    pack_numbers(tmp_path, 3)
    edit_members(tmp_path, "clip-001", lambda members: members.update({"json": json.dumps({"schema": 1}).encode()}))
    with pytest.raises(BadDataError, match=r"clip clip-001: \.json lacks key, dataset"):
        list(read_clips(tmp_path))
