"""Protocol files: what is in them, what their hash covers, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from reconx_pl.errors import BadDataError, BadSceneError, ConfigurationError
from reconx_pl.evaluation.protocols.files import FOLDER, load_protocol, protocol_names
from reconx_pl.evaluation.protocols.index import ProtocolEntry
from reconx_pl.evaluation.protocols.protocol import Protocol, ViewRule

ENTRIES = {
    "re10k-easy": 6474,
    "acid-easy": 1595,
    "re10k-hard": 192,
    "acid-hard": 295,
    "llff": 8,
    "dtu-mvsplat": 64,
    "dtu-every8th": 16,
    **{f"mipnerf360-{count}": 9 for count in (2, 3, 6, 9)},
    **{f"tanks-{count}": 2 for count in (2, 3, 6, 9)},
    **{f"dl3dv-{count}": 140 for count in (2, 3, 6, 9)},
}
OWN = {
    "name": "own",
    "title": "Two photographs and one between",
    "dataset": "banana",
    "format": "posed",
    "path": "{scene}",
    "height": 64,
    "width": 64,
    "poses": {"generated": "interpolated"},
    "entries": {"banana": {"context": [0, 4], "target": [2]}},
}


def write(folder: Path, **changes: Any) -> Path:
    content = {**OWN, **changes}
    file = folder / "own.yaml"
    file.write_text(
        yaml.safe_dump({name: value for name, value in content.items() if value is not ...}, sort_keys=False)
    )
    return file


def test_every_benchmark_is_here_and_named_by_its_file() -> None:
    assert set(ENTRIES) <= set(protocol_names())
    protocols = [load_protocol(name) for name in protocol_names()]
    assert [protocol.name for protocol in protocols] == protocol_names()
    assert len({protocol.hash for protocol in protocols}) == len(protocols)


@pytest.mark.parametrize(("name", "count"), ENTRIES.items())
def test_counts_are_those_of_the_papers(name: str, count: int, shared_dir: Path) -> None:
    entries = load_protocol(name).list_entries(shared_dir / "indices")
    assert len(entries) == count and len({entry.key for entry in entries}) == count


def test_the_hard_sets_have_wide_gaps_and_the_easy_ones_do_not(shared_dir: Path) -> None:
    gaps = {
        name: [entry.gap for entry in load_protocol(name).list_entries(shared_dir / "indices")]
        for name in ("re10k-easy", "re10k-hard", "acid-easy", "acid-hard")
    }
    assert max(gaps["re10k-easy"] + gaps["acid-easy"]) == 136 and min(gaps["re10k-hard"] + gaps["acid-hard"]) > 200


def test_published_rows_of_a_number_of_views_are_its_own() -> None:
    rows = {count: load_protocol(f"mipnerf360-{count}").published for count in (2, 3, 6, 9)}
    assert {count: [row.psnr for row in found] for count, found in rows.items()} == {
        2: [13.37],
        3: [16.66],
        6: [18.72],
        9: [18.17],
    }
    assert [(row.method, row.psnr, row.ssim, row.lpips) for row in load_protocol("re10k-easy").published] == [
        ("pixelSplat", 25.89, 0.858, 0.142),
        ("MVSplat", 26.39, 0.869, 0.128),
        ("ReconX", 28.31, 0.912, 0.088),
    ]


def test_the_hash_covers_what_changes_numbers_and_nothing_else(tmp_path: Path) -> None:
    protocol = load_protocol("re10k-easy")
    index = protocol.index
    assert index is not None
    same = {
        "name": "x",
        "title": "x",
        "path": "elsewhere",
        "source": "",
        "published": (),
        "notes": (),
        "index": dataclasses.replace(index, url="http://mirror", file="other.json"),
    }
    for name, value in same.items():
        assert dataclasses.replace(protocol, **{name: value}).hash == protocol.hash, name
    other = {
        "height": 128,
        "width": 128,
        "format": "realestate10k",
        "options": {"dataset": "acid"},
        "geometry": "depth",
        "metrics": ("psnr",),
        "fps": 9.0,
        "poses": dataclasses.replace(protocol.poses, generated="interpolated"),
        "index": dataclasses.replace(index, sha256="0" * 64),
    }
    for name, value in other.items():
        changed = {name: value, **({"path": "{scene}"} if name == "format" else {})}
        assert dataclasses.replace(protocol, **changed).hash != protocol.hash, name
    refined = dataclasses.replace(protocol.poses, test_pose_refinement=100)
    assert dataclasses.replace(protocol, poses=refined).hash != protocol.hash
    for change in ({"min_gap": 201}, {"use": "scenes"}, {"scene": "(.*)"}):
        views = ViewRule(2) if "use" in change else None
        changed = dataclasses.replace(protocol, index=dataclasses.replace(index, **change), views=views)
        assert changed.hash != protocol.hash, change
    # every field is in one of the two lists, so that a new one has to be decided on
    own = load_protocol(write(tmp_path))
    undecided = {"crop", "resize", "masks", "dataset", "scenes", "entries", "views"}  # in the hash by default
    assert {field.name for field in dataclasses.fields(Protocol)} == {*same, *other, *undecided}
    assert set(own.hashed) == {"revision", *other, *undecided}


def test_the_hash_does_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    first = load_protocol(write(tmp_path)).hash
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(dict(reversed(OWN.items())), sort_keys=False))
    assert load_protocol(file).hash == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hight": 64}, "hight"),
        ({"poses": {"generated": "aligned", "targets": "dataset"}}, "targets"),
        ({"poses": {"generated": "guessed"}}, "generated"),
        ({"height": ...}, "height"),
        ({"height": "tall"}, "height"),
        ({"height": 4}, "8 pixels"),
        ({"format": "nerf"}, "format is 'nerf'"),
        ({"path": "scenes"}, "{scene} has to stand in it"),
        ({"metrics": ["psnr", "vmaf"]}, "metrics are"),
        ({"masks": "sometimes"}, "masks"),
        ({"scenes": ["a"]}, "exactly one of index, scenes, entries"),
        ({"entries": ...}, "exactly one of index, scenes, entries"),
        ({"views": {"contexts": 2}}, "views is a rule"),
        ({"entries": ..., "scenes": ["a"]}, "views is a rule"),
        ({"entries": ..., "scenes": ["a", "a"], "views": {"contexts": 2}}, "listed twice"),
        ({"entries": ..., "scenes": ["a"], "views": {"contexts": 1}}, "two contexts"),
        ({"name": "other"}, "its name is 'other'"),
        ({"format": "shards"}, "shards bring their own"),
        ({"format": "shards", "entries": ..., "views": {"contexts": 2}}, "geometry has to be 'scene'"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = write(tmp_path, **changes)
    with pytest.raises(ConfigurationError) as raised:
        load_protocol(file)
    assert str(file) in str(raised.value) and message in str(raised.value)


def test_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no protocol 're10k'; there are acid-easy, acid-hard"):
        load_protocol("re10k")
    with pytest.raises(ConfigurationError, match=r"mipnerf360-2, mipnerf360-3, mipnerf360-6, mipnerf360-9"):
        load_protocol("mipnerf360-4")
    with pytest.raises(ConfigurationError, match="mipnerf360-2"):
        load_protocol(FOLDER / "mipnerf360.yaml")
    with pytest.raises(ConfigurationError, match="only llff"):
        load_protocol("llff-2")
    with pytest.raises(ConfigurationError, match="install the package again"):
        load_protocol("llff", tmp_path / "absent")
    with pytest.raises(ConfigurationError, match="no such protocol file"):
        load_protocol(tmp_path / "absent.yaml")


def test_entries_by_hand(tmp_path: Path) -> None:
    entry = {"context": [0, 4], "target": [2]}
    protocol = load_protocol(write(tmp_path, entries={"one": {"scene": "banana", **entry}, "fern": entry}))
    assert protocol.list_entries(tmp_path) == [
        ProtocolEntry("one", "banana", (0, 4), (2,)),
        ProtocolEntry("fern", "fern", (0, 4), (2,)),
    ]
    with pytest.raises(BadSceneError, match="frame 4 is asked for and scene banana has 4 frames"):
        protocol.resolve(protocol.list_entries(tmp_path)[0], 4)


def test_a_rule_of_the_papers_text() -> None:
    """Training views evenly spaced, every 8th of the rest for test."""
    context, target = ViewRule(2, 8, "contexts").split(49, "dtu")
    assert context == (0, 48) and target == (1, 9, 17, 25, 33, 41)
    context, target = ViewRule(3, 8, "contexts").split(20, "fern")
    assert context == (0, 10, 19) and target == (1, 9, 18)
    assert ViewRule(2, 1, "contexts").split(5, "clip") == ((0, 4), (1, 2, 3))


def test_targets_are_the_same_for_every_number_of_contexts() -> None:
    splits = {count: ViewRule(count, 8, "targets").split(33, "garden") for count in (2, 3, 6, 9)}
    assert {target for _, target in splits.values()} == {(0, 8, 16, 24, 32)}
    assert splits[2][0] == (1, 31) and splits[3][0] == (1, 17, 31)
    for count, (context, target) in splits.items():
        assert len(context) == count and not set(context) & set(target) and list(context) == sorted(context)


def test_a_rule_says_when_there_are_too_few_frames() -> None:
    for frames, rule in ((2, ViewRule(2)), (8, ViewRule(9)), (9, ViewRule(9, 8, "targets"))):
        with pytest.raises(BadSceneError, match=f"tiny: {frames} frames are too few"):
            rule.split(frames, "tiny")


def test_an_index_that_is_missing_or_has_other_entries(tmp_path: Path, shared_dir: Path) -> None:
    protocol = load_protocol("re10k-hard")
    with pytest.raises(BadDataError, match="reconx protocols fetch re10k-hard"):
        protocol.list_entries(tmp_path)
    assert protocol.index is not None
    wrong = dataclasses.replace(protocol, index=dataclasses.replace(protocol.index, min_gap=250))
    with pytest.raises(BadDataError, match="expects 192"):
        wrong.list_entries(shared_dir / "indices")
