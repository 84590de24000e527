"""pixelSplat chunks: the shared one against its clips, and what may not be loaded."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_scenes import HEIGHT, WIDTH, assert_same_cameras, known_cameras, reference, write_chunk

from reconx_pl.data.formats.pixelsplat import read_pixelsplat
from reconx_pl.errors import BadCameraError, BadDataError


class RunsCode:
    """Unpickling an instance would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_the_shared_chunk_equals_its_clips(shared_dir: Path) -> None:
    scenes = list(read_pixelsplat(shared_dir / "chunks/re10k_mini"))
    assert len(scenes) == 5
    for scene in scenes:
        expected = reference(shared_dir / f"scenes/re10k_{scene.name}")
        assert_same_cameras(scene.cameras, expected.cameras, pose=1e-6, pixels=1e-4)
    np.testing.assert_array_equal(scene.load_image(7), expected.load_image(7))


def test_known_cameras_come_back(tmp_path: Path) -> None:
    scenes = list(read_pixelsplat(write_chunk(tmp_path / "train", ["a", "b"]).parent, dataset="acid"))
    assert [(scene.name, scene.dataset) for scene in scenes] == [("a", "acid"), ("b", "acid")]
    for scene in scenes:
        assert_same_cameras(scene.cameras, known_cameras())
        assert scene.load_image(1).shape == (HEIGHT, WIDTH, 3) and scene.fps == pytest.approx(25.0)


def test_a_chunk_that_would_need_unpickling_is_refused(tmp_path: Path) -> None:
    write_chunk(tmp_path, ["a"])
    trap = tmp_path / "code_ran"
    torch.save([{"key": RunsCode(trap)}], tmp_path / "000000.torch")
    with pytest.raises(BadDataError, match=r"000000\.torch: refused.*would run code"):
        list(read_pixelsplat(tmp_path))
    (tmp_path / "000000.torch").write_bytes(pickle.dumps([RunsCode(trap)], protocol=2))
    with pytest.raises(BadDataError, match=r"000000\.torch: "):
        list(read_pixelsplat(tmp_path))
    assert not trap.exists()


def test_a_truncated_chunk(tmp_path: Path) -> None:
    file = write_chunk(tmp_path, ["a"]) / "000000.torch"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(BadDataError, match=r"000000\.torch: cannot read this chunk"):
        list(read_pixelsplat(tmp_path))


def test_a_missing_chunk(tmp_path: Path) -> None:
    write_chunk(tmp_path, ["a"])
    (tmp_path / "index.json").write_text(json.dumps({"a": "000000.torch", "b": "000001.torch"}))
    with pytest.raises(BadDataError, match=r"000001\.torch: this chunk is missing"):
        list(read_pixelsplat(tmp_path))


def test_a_corrupt_image_and_a_bad_camera(tmp_path: Path) -> None:
    file = write_chunk(tmp_path, ["a"]) / "000000.torch"
    content = torch.load(file, weights_only=True)
    content[0]["images"][3] = content[0]["images"][3][:40]
    torch.save(content, file)
    with pytest.raises(BadDataError, match=r"000000\.torch, scene 0 \(a\), image 3"):
        list(read_pixelsplat(tmp_path))
    content = torch.load(write_chunk(tmp_path, ["a"]) / "000000.torch", weights_only=True)
    content[0]["cameras"][2, 9] = float("nan")
    torch.save(content, file)
    with pytest.raises(BadCameraError, match=r"scene 0 \(a\), image 2.*NaN"):
        list(read_pixelsplat(tmp_path))
