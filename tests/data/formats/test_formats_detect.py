"""Choosing a reader: one scene, folders of scenes, nothing that is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from raw_scenes import write_chunk, write_posed

from reconx_pl.data.formats.readers import UnreadableScene, detect_format, read_scenes
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.errors import BadDataError, ConfigurationError


def test_every_shared_scene_is_recognised(shared_dir: Path) -> None:
    scenes = list(read_scenes(shared_dir / "scenes"))
    assert len(scenes) == 13 and all(isinstance(scene, RawScene) for scene in scenes)
    expected = {
        "scenes/banana/orig/colmap_sparse0": "colmap",
        "scenes/llff_fern/orig": "llff",
        "scenes/ingp_fox/orig/transforms.json": "transforms",
        "scenes/re10k_0bf152ef84195293/cameras.txt": "realestate10k",
        "scenes/banana": "posed",
        "chunks/re10k_mini": "pixelsplat",
        "chunks/re10k_mini/test/000000.torch": "pixelsplat",
    }
    assert {path: detect_format(shared_dir / path)[0] for path in expected} == expected


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    for call in (detect_format, lambda path: list(read_scenes(path))):
        with pytest.raises(
            BadDataError, match=r"this folder is empty; looked for cameras\.json.*transforms\.json.*sparse/0"
        ):
            call(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing\n")
    with pytest.raises(BadDataError, match="no known format; looked for"):
        detect_format(tmp_path)
    with pytest.raises(BadDataError, match="no such file or folder"):
        detect_format(tmp_path / "absent")
    with pytest.raises(BadDataError, match="no llff scene here"):
        list(read_scenes(tmp_path, "llff"))


def test_one_bad_scene_among_several_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_posed(tmp_path / name)
    (tmp_path / "b/images/001.png").unlink()
    a, b, c = read_scenes(tmp_path)
    assert isinstance(a, RawScene) and isinstance(c, RawScene)
    assert isinstance(b, UnreadableScene) and b.name == "b" and "001.png: this image is missing" in b.reason
    with pytest.raises(BadDataError, match=r"001\.png"):
        list(read_scenes(tmp_path / "b"))


def test_scenes_in_batches_are_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("1K/a", "1K/b", "2K/c", "c"):
        write_posed(tmp_path / name)
    (tmp_path / "videos/one/two").mkdir(parents=True)
    write_posed(tmp_path / "too/deep/down/d")
    scenes = list(read_scenes(tmp_path))
    assert [scene.name for scene in scenes] == ["a", "b", "c", "c"]
    assert "no scene in the sub-folders too, videos" in caplog.text


def test_options_reach_the_reader_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    write_chunk(tmp_path, ["a"])
    (scene,) = read_scenes(tmp_path, "pixelsplat", dataset="acid")
    assert isinstance(scene, RawScene) and scene.dataset == "acid"
    with pytest.raises(ConfigurationError, match="reader of pixelsplat has no option undistort"):
        list(read_scenes(tmp_path, "pixelsplat", undistort=True))
    with pytest.raises(ConfigurationError, match="no reader has an option colour"):
        list(read_scenes(tmp_path, colour=1))
    with pytest.raises(ConfigurationError, match="unknown format 'nerf'"):
        list(read_scenes(tmp_path, "nerf"))
