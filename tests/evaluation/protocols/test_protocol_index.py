"""The family's index files as published, and what is no index."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reconx_pl.errors import BadDataError
from reconx_pl.evaluation.protocols.index import ProtocolEntry, parse_index, read_index

PUBLISHED = {  # keys with views, keys without
    "pixelsplat_evaluation_index_re10k": (6474, 720),
    "pixelsplat_evaluation_index_acid": (1595, 253),
    "noposplat_evaluation_index_re10k": (5601, 1593),
    "noposplat_evaluation_index_acid": (1341, 507),
    "mvsplat_evaluation_index_dtu_nctx2": (64, 0),
    "mvsplat_evaluation_index_dtu_nctx3": (64, 0),
    "depthsplat_dl3dv_start_0_distance_10_ctx_2v_tgt_4v": (140, 0),
    "depthsplat_dl3dv_start_0_distance_50_ctx_2v_video_0_50": (140, 0),
    "depthsplat_dl3dv_start_0_distance_50_ctx_6v_video_0_50": (140, 0),
    "mvsplat360_dl3dv_ctx_5v_tgt_56v": (140, 0),
    "latentsplat_re10k_extra": (6424, 770),
}


def test_every_published_index_is_read_whole(shared_dir: Path) -> None:
    files = sorted((shared_dir / "indices").glob("*.json"))
    assert {file.stem for file in files} == set(PUBLISHED)
    for file in files:
        index = read_index(file)
        assert (len(index.entries), len(index.empty)) == PUBLISHED[file.stem], file
        assert len(index.entries) + len(index.empty) == len(json.loads(file.read_text()))


def test_entries_are_those_of_the_file(shared_dir: Path) -> None:
    easy = read_index(shared_dir / "indices/pixelsplat_evaluation_index_re10k.json").entries
    assert easy[0] == ProtocolEntry("5aca87f95a9412c6", "5aca87f95a9412c6", (58, 133), (84, 102, 129))
    assert (min(entry.gap for entry in easy), max(entry.gap for entry in easy)) == (45, 136)
    extra = read_index(shared_dir / "indices/latentsplat_re10k_extra.json").entries  # lists of one entry
    assert extra[0] == ProtocolEntry("5aca87f95a9412c6", "5aca87f95a9412c6", (58, 133), (13, 135, 141))
    five = read_index(shared_dir / "indices/mvsplat360_dl3dv_ctx_5v_tgt_56v.json").entries
    assert {(len(entry.context), len(entry.target)) for entry in five} == {(5, 56)}


def test_dtu_has_sixteen_scans_with_four_targets_each(shared_dir: Path) -> None:
    file = shared_dir / "indices/mvsplat_evaluation_index_dtu_nctx2.json"
    entries = read_index(file, scene=r"(scan\d+_train)_\d+").entries
    scans = [entry.scene for entry in entries]
    assert len(set(scans)) == 16 and all(scans.count(scan) == 4 for scan in scans)
    assert {entry.context for entry in entries} == {(33, 31)}  # the order of the file, not sorted
    assert [entry.target for entry in entries[:4]] == [(32,), (24,), (23,), (44,)]
    assert entries[1].key == "scan1_train_01" and entries[1].scene == "scan1_train"


def test_targets_that_are_contexts_are_kept(shared_dir: Path) -> None:
    for name, expected in (("re10k", 575), ("acid", 132)):
        entries = read_index(shared_dir / f"indices/pixelsplat_evaluation_index_{name}.json").entries
        assert sum(bool(set(entry.context) & set(entry.target)) for entry in entries) == expected


def test_a_list_of_several_entries_gets_a_key_each() -> None:
    one = {"context": [0, 4], "target": [2]}
    index = parse_index({"a": [one, {**one, "target": [3]}], "b": [one], "c": [], "d": None}, "index.json")
    assert [(entry.key, entry.scene, entry.target) for entry in index.entries] == [
        ("a_00", "a", (2,)),
        ("a_01", "a", (3,)),
        ("b", "b", (2,)),
    ]
    assert index.empty == ("c", "d")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "holds a list"),
        ("{", "not JSON"),
        ('{"a": {"context": [0, 1], "target": [2]}, "a": null}', "'a' occurs twice"),
        ('{"a": {"context": [0], "target": [2]}}', r"a has \[0\] under 'context'"),
        ('{"a": {"context": [0, 0], "target": [2]}}', "none twice"),
        ('{"a": {"context": [0, 1], "target": []}}', "under 'target'"),
        ('{"a": {"context": [0, -1], "target": [2]}}', "no list of frame numbers under 'context'"),
        ('{"a": {"context": [0, 1.5], "target": [2]}}', "no list of frame numbers under 'context'"),
        ('{"a": {"context": [0, 1]}}', "no list of frame numbers under 'target'"),
        ('{"a": 3}', "no list of frame numbers"),
        (
            '{"a": [{"context": [0, 1], "target": [2]}, {"context": [0, 1], "target": [3]}],'
            ' "a_00": {"context": [0, 1], "target": [2]}}',
            "several entries are called a_00",
        ),
    ],
)
def test_what_is_no_index_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "index.json"
    file.write_text(text)
    with pytest.raises(BadDataError, match=message) as raised:
        read_index(file)
    assert str(file) in str(raised.value)


def test_other_bytes_and_other_keys_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "index.json"
    file.write_text('{"scene": null}')
    with pytest.raises(BadDataError, match="reconx protocols fetch"):
        read_index(file, sha256="0" * 64)
    with pytest.raises(BadDataError, match="'scene' does not have the form"):
        read_index(file, scene=r"(scan\d+)_\d+")
    with pytest.raises(BadDataError, match="cannot read this index"):
        read_index(tmp_path / "absent.json")
