"""Which scenes are packed: splits that do not move, and test scenes that never get into training shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from raw_scenes import write_posed

from reconx_pl.cli.main import main
from reconx_pl.data.formats.readers import UnreadableScene
from reconx_pl.data.packing.clip_sampling import PackOptions
from reconx_pl.data.packing.packing import pack_command
from reconx_pl.data.packing.scene_choice import SceneChoice, listed_scenes
from reconx_pl.data.shards.stream import read_clips
from reconx_pl.errors import BadDataError, BadSceneError, ConfigurationError

SMALL = PackOptions(frames=3, height=32, width=32, max_stride=2, points=64, clips_per_shard=2)
NAMES = [f"{number:016x}" for number in range(4000)]


def shares(choice: SceneChoice, names: list[str]) -> dict[str, int]:
    parts = [choice.split_of(name) for name in names]
    return {part: parts.count(part) for part in ("train", "val", "test")}


def test_shares_are_met_and_a_seed_is_another_split() -> None:
    found = shares(SceneChoice(val_share=0.1, test_share=0.2), NAMES)
    assert abs(found["test"] - 800) < 80 and abs(found["val"] - 400) < 60
    one, other = (SceneChoice(seed=seed) for seed in (0, 1))
    assert sum(one.split_of(name) != other.split_of(name) for name in NAMES) > 200
    assert shares(SceneChoice(val_share=0, test_share=0), NAMES)["train"] == 4000


def test_a_split_is_the_same_everywhere() -> None:
    """Pinned: shards that were packed must stay apart in later versions, on other machines and Pythons."""
    names = ["0bf152ef84195293", "0c11dbe781b1c11c", "0f47577ab3441480", "garden", "scan24"]
    choice = SceneChoice(val_share=0.3, test_share=0.3)
    assert [choice.split_of(name) for name in names] == ["test", "train", "val", "train", "train"]


def test_a_larger_share_moves_scenes_one_way() -> None:
    small, large = SceneChoice(val_share=0.05, test_share=0.05), SceneChoice(val_share=0.2, test_share=0.05)
    moves = {(small.split_of(name), large.split_of(name)) for name in NAMES}
    assert moves == {("train", "train"), ("train", "val"), ("val", "val"), ("test", "test")}


@pytest.mark.parametrize("wrong", [{"val_share": -0.1}, {"test_share": 0.6, "val_share": 0.4}])
def test_shares_that_make_no_sense(wrong: dict) -> None:
    with pytest.raises(ConfigurationError, match="leave something to train on"):
        SceneChoice(**wrong)


def test_parts_of_a_source_are_disjoint_and_whole(tmp_path: Path) -> None:
    names = [f"scene{number}" for number in range(12)]
    for name in names:
        write_posed(tmp_path / "raw" / name)
    packed: dict[str, set[str]] = {}
    for part in ("train", "val", "test"):
        report = pack_command(
            tmp_path / "raw", tmp_path / part, options=SMALL, split=part, val_share=0.3, test_share=0.3
        )
        packed[part] = {clip.scene for clip in read_clips(tmp_path / part)}
        assert report.other_splits == 12 - len(packed[part])
    assert sorted(name for part in packed.values() for name in part) == sorted(names)
    write_posed(tmp_path / "raw/another")
    pack_command(tmp_path / "raw", tmp_path / "more", options=SMALL, split="train", val_share=0.3, test_share=0.3)
    assert packed["train"] <= {clip.scene for clip in read_clips(tmp_path / "more")} <= packed["train"] | {"another"}
    with pytest.raises(ConfigurationError, match="split was 'train' and is now"):
        pack_command(tmp_path / "raw", tmp_path / "train", options=SMALL)


def test_published_indices_name_their_scenes(shared_dir: Path) -> None:
    indices = shared_dir / "indices"
    counts = {
        "pixelsplat_evaluation_index_re10k": 7194,  # entries that are null count too: these scenes are test scenes
        "pixelsplat_evaluation_index_acid": 1848,
        "latentsplat_re10k_extra": 7194,
        "mvsplat_evaluation_index_dtu_nctx2": 16,  # 64 entries of 16 scans
        "depthsplat_dl3dv_start_0_distance_50_ctx_2v_video_0_50": 140,
    }
    assert {name: len(listed_scenes([indices / f"{name}.json"])) for name in counts} == counts
    assert listed_scenes([indices / "mvsplat_evaluation_index_dtu_nctx2.json"]) >= {"scan1", "scan110", "scan114"}


def test_no_scene_of_an_evaluation_index_is_packed(shared_dir: Path, tmp_path: Path) -> None:
    """The five RE10K clips are test scenes of the index."""
    index = shared_dir / "indices/pixelsplat_evaluation_index_re10k.json"
    chunks = shared_dir / "chunks/re10k_mini"
    clips = set(json.loads((chunks / "test/index.json").read_text()))
    mine = tmp_path / "mine.txt"
    keep = sorted(clips)[0]
    mine.write_text("# seen elsewhere\n" + "\n".join(sorted(clips - {keep})) + "\n\nnowhere\n")
    report = pack_command(chunks, tmp_path / "out", options=SMALL, exclude=[mine])
    assert {clip.scene for clip in read_clips(tmp_path / "out")} == {keep}
    assert set(report.excluded) == clips - {keep} and report.unmatched == ["nowhere"]
    with pytest.raises(BadSceneError, match="5 scenes are excluded"):
        pack_command(chunks, tmp_path / "none", options=SMALL, exclude=index)
    with pytest.raises(ConfigurationError, match="excluded was '5 names"):
        pack_command(chunks, tmp_path / "out", options=SMALL)


def test_an_unreadable_scene_that_is_excluded_is_no_failure() -> None:
    choice = SceneChoice(excluded=frozenset({"a", "scan1"}))
    scenes = [UnreadableScene("a", "broken"), UnreadableScene("b", "broken"), UnreadableScene("scan1_train", "broken")]
    assert [scene.name for scene in choice.keep(scenes)] == ["b"]
    assert choice.left_out == ["a", "scan1_train"] and choice.unmatched == []


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", "{"), ("a.json", "{}"), ("a.json", "[1, 2]"), ("a.json", "3"), ("a.txt", "# only\n")],
)
def test_lists_that_cannot_be_read(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BadDataError, match=rf"{name}: (cannot read|no) names of scenes"):
        listed_scenes([tmp_path / name])
    with pytest.raises(BadDataError, match=r"absent\.json: cannot read"):
        listed_scenes([tmp_path / "absent.json"])


def test_the_command_tells_what_it_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write_posed(tmp_path / "raw" / name)
    (tmp_path / "list.txt").write_text("b\nc\nd\n")
    line = ["pack", str(tmp_path / "raw"), str(tmp_path / "out"), "--exclude", str(tmp_path / "list.txt")]
    main([*line, "--options.frames", "3", "--options.height", "32", "--options.width", "32"])
    said = " ".join(capfd.readouterr().err.split())
    assert "1 scenes excluded by name" in said and "2 names to exclude match no scene" in said
    assert {clip.scene for clip in read_clips(tmp_path / "out")} == {"a"}
