"""Scenes of a protocol on disk: real photographs, chunks, shards; which views, which geometry, what is missing."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from raw_scenes import write_chunk, write_posed

from reconx_pl.data.formats.readers import only_scene
from reconx_pl.data.packing.clip_sampling import scene_clip
from reconx_pl.data.procedural import write_procedural
from reconx_pl.data.shards.stream import read_clips
from reconx_pl.errors import BadDataError, BadSceneError, ConfigurationError
from reconx_pl.evaluation.protocols.files import load_protocol
from reconx_pl.evaluation.protocols.index import ProtocolEntry
from reconx_pl.evaluation.protocols.protocol import PosePolicy, Protocol, ViewRule
from reconx_pl.evaluation.protocols.scenes import ProtocolScenes, views_of
from reconx_pl.evaluation.task import FROM_CONTEXT_DEPTH, FROM_POINTS


def protocol(**changes: Any) -> Protocol:
    content: dict[str, Any] = {
        "name": "own",
        "title": "own",
        "dataset": "data",
        "format": "posed",
        "path": "{scene}",
        "height": 32,
        "width": 48,
        "poses": PosePolicy("interpolated"),
        "geometry": "scene",
        "entries": {"banana": {"context": [6, 2], "target": [4, 0, 6]}},
    }
    return Protocol(**{**content, **changes})


def test_views_are_cut_as_clips_are(shared_dir: Path) -> None:
    raw = only_scene(shared_dir / "scenes/banana")
    entry = ProtocolEntry("banana", "banana", (6, 2), (4, 0, 6))
    views = views_of(raw, entry, protocol())
    clip = scene_clip(raw, [6, 4, 0, 2], 32, 48)
    torch.testing.assert_close(views.context_images, clip.images[[0, 3]])
    torch.testing.assert_close(views.target_images[:2], clip.images[[1, 2]])
    torch.testing.assert_close(views.target_images[2], views.context_images[0])  # a target may be a context view
    torch.testing.assert_close(views.context_cameras.world_to_camera, clip.cameras.world_to_camera[[0, 3]])
    torch.testing.assert_close(views.target_cameras.intrinsics[:2], clip.cameras.intrinsics[[1, 2]])
    assert views.context_cameras.intrinsics.dtype == torch.float32 and views.context_images.max() <= 1
    assert (views.context_indices, views.target_indices) == ((6, 2), (4, 0, 6))
    assert views.cloud is not None and clip.cloud is not None and views.geometry == FROM_POINTS
    torch.testing.assert_close(views.cloud.points, clip.cloud.points)
    assert views.context_depth is None and (views.key, views.dataset) == ("banana", "data")


def test_the_geometry_is_what_the_protocol_allows(shared_dir: Path) -> None:
    raw = only_scene(shared_dir / "scenes/banana")
    entry = ProtocolEntry("banana", "banana", (0, 2), (1,))
    for geometry in ("inputs", "depth"):
        bare = views_of(raw, entry, protocol(geometry=geometry))
        assert bare.cloud is None and bare.context_depth is None and bare.geometry == ""
    depth = only_scene(shared_dir / "scenes/motorcycle_stereo")
    if depth.frames[0].load_depth is None:
        depth = _with_depth(depth)
    pair = ProtocolEntry("motorcycle", "motorcycle", (0, 1), (1,))
    shown = views_of(depth, pair, protocol(geometry="depth"))
    assert shown.geometry == FROM_CONTEXT_DEPTH and shown.cloud is not None
    assert shown.context_confidence is not None and shown.context_depth is not None
    assert shown.context_confidence.shape == shown.context_depth.shape
    assert shown.context_depth is not None and tuple(shown.context_depth.shape) == (2, 32, 48)
    hidden = views_of(depth, pair, protocol(geometry="inputs"))
    assert hidden.context_depth is None and hidden.cloud is None


def _with_depth(raw: Any) -> Any:
    frames = [dataclasses.replace(raw.frames[0], load_depth=lambda: np.full((50, 70), 3.0, np.float32))]
    return dataclasses.replace(raw, frames=(*frames, *raw.frames[1:]))


def test_masks_are_cut_with_their_images(tmp_path: Path) -> None:
    raw = only_scene(write_posed(tmp_path / "a"))  # 48 x 64

    def left_half() -> np.ndarray:
        return np.arange(64)[None].repeat(48, 0) < 32

    frames = [dataclasses.replace(frame, load_mask=left_half) for frame in raw.frames]
    masked = dataclasses.replace(raw, frames=tuple(frames))
    entry = ProtocolEntry("a", "a", (0, 4), (1, 3))
    assert views_of(masked, entry, protocol()).target_masks is None
    masks = views_of(masked, entry, protocol(masks="targets")).target_masks  # 36 x 48, cut to 32 x 48
    assert masks is not None and masks.dtype == torch.bool and tuple(masks.shape) == (2, 32, 48)
    assert masks[:, :, :24].all() and not masks[:, :, 24:].any()
    with pytest.raises(BadSceneError, match="this view has none"):
        views_of(raw, entry, protocol(masks="targets"))


def test_llff_as_it_is_released(tmp_path: Path, shared_dir: Path) -> None:
    fern = tmp_path / "nerf_llff_data/fern"
    fern.mkdir(parents=True)
    shutil.copy(shared_dir / "scenes/llff_fern/orig/poses_bounds.npy", fern)
    (fern / "images_8").symlink_to(shared_dir / "scenes/llff_fern/images")
    scenes = ProtocolScenes(load_protocol("llff"), tmp_path, tmp_path)
    views = scenes.views(scenes.choose(["fern"])[0])
    assert views.context_indices == (0, 19) and views.target_indices == (1, 9, 17)
    assert tuple(views.target_images.shape) == (3, 3, 256, 256)
    raw = only_scene(shared_dir / "scenes/llff_fern")  # the same photographs with cameras.json
    photograph = Image.fromarray(raw.load_image(9)).resize((341, 256), Image.Resampling.LANCZOS)
    expected = torch.from_numpy(np.array(photograph)[:, 42:298]).permute(2, 0, 1) / 255
    torch.testing.assert_close(views.target_images[1], expected, atol=1e-6, rtol=0)
    reasons = dict((entry.scene, why) for entry, why in scenes.missing())
    assert reasons.pop("fern") == "" and set(reasons) == {
        *("flower", "fortress", "horns", "leaves", "orchids", "room", "trex")
    }
    assert all(f"nerf_llff_data/{scene} does not exist" in why for scene, why in reasons.items())


def test_dtu_as_mvsnet_lays_it_out(tmp_path: Path, shared_dir: Path) -> None:
    raw = only_scene(shared_dir / "scenes/dtu_scan24")
    scan, cameras = tmp_path / "dtu/Rectified/scan21_train", tmp_path / "dtu/Cameras/train"
    scan.mkdir(parents=True)
    cameras.mkdir(parents=True)
    for view, frame in enumerate(raw.frames):
        image = Image.new("RGB", (640, 512), (view, 0, 0)) if view != 24 else Image.fromarray(raw.load_image(24))
        image.resize((640, 512)).save(scan / f"rect_{view + 1:03d}_3_r5000.png")
        pose = "\n".join(" ".join(map(str, row)) for row in frame.world_to_camera)
        text = f"extrinsic\n{pose}\n\nintrinsic\n361.5 0 82.9\n0 360.4 66.4\n0 0 1\n\n425 2.5\n"
        (cameras / f"{view:08d}_cam.txt").write_text(text)
    scenes = ProtocolScenes(load_protocol("dtu-mvsplat"), tmp_path, shared_dir / "indices")
    found = [entry for entry, why in scenes.missing() if not why]
    assert [entry.key for entry in found] == [f"scan21_train_0{number}" for number in range(4)]
    views = scenes.views(found[1])
    assert (views.context_indices, views.target_indices) == ((33, 31), (24,))
    assert [round(float(image[0].mean()) * 255) for image in views.context_images] == [33, 31]
    assert views.target_images.std() > 0.1  # the photograph of view 24
    torch.testing.assert_close(
        views.target_cameras.world_to_camera[0], torch.from_numpy(raw.frames[24].world_to_camera).float()
    )
    assert round(float(views.target_cameras.intrinsics[0, 0, 0])) == 723  # 361.5 x 4, halved with the image
    text = ProtocolScenes(load_protocol("dtu-every8th"), tmp_path, tmp_path)
    assert text.views(text.choose(["scan21_train"])[0]).target_indices == (1, 9, 17, 25, 33, 41)


def test_chunks_are_found_by_their_index(tmp_path: Path, shared_dir: Path) -> None:
    clips = sorted(folder.name.removeprefix("re10k_") for folder in (shared_dir / "scenes").glob("re10k_*"))
    entries = {clip: {"context": [2, 20], "target": [10, 11]} for clip in clips}
    chunks = protocol(format="pixelsplat", path="re10k_mini", geometry="inputs", entries=entries)
    scenes = ProtocolScenes(chunks, shared_dir / "chunks", tmp_path)
    assert [why for _, why in scenes.missing()] == [""] * 5
    views = scenes.views(scenes.entries[3])
    raw = only_scene(shared_dir / f"scenes/re10k_{clips[3]}")
    direct = views_of(raw, scenes.entries[3], chunks)
    assert (views.target_images - direct.target_images).abs().mean() < 0.02  # the chunk has its own JPEG
    torch.testing.assert_close(views.target_cameras.intrinsics, direct.target_cameras.intrinsics, atol=0.05, rtol=0)
    absent = dataclasses.replace(chunks, entries={"feed": {"context": [0, 30], "target": [1]}, **entries})
    scenes = ProtocolScenes(absent, shared_dir / "chunks", tmp_path)
    assert "no chunk has the scene feed" in next(scenes.missing())[1]
    with pytest.raises(BadDataError, match="no chunk has the scene feed; own looks for re10k_mini below"):
        scenes.views(scenes.entries[0])


def test_chunks_without_an_index_are_searched_and_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_chunk(tmp_path / "re10k/test", ["a", "b"])
    (tmp_path / "re10k/test/index.json").unlink()
    entries = {name: {"context": [0, 4], "target": [2]} for name in ("a", "b")}
    scenes = ProtocolScenes(protocol(format="pixelsplat", path="re10k", entries=entries), tmp_path, tmp_path)
    reads = []
    original = ProtocolScenes._read_chunk
    monkeypatch.setattr(ProtocolScenes, "_read_chunk", lambda self, chunk: reads.append(1) or original(self, chunk))
    for entry in scenes.entries:
        assert scenes.views(entry).key == entry.key
    assert len(reads) == 2  # to find them, and to read them
    (tmp_path / "re10k/test/index.json").write_text(json.dumps({"a": "000000.torch", "c": "000000.torch"}))
    wrong = ProtocolScenes(dataclasses.replace(scenes.protocol, entries={"c": entries["a"]}), tmp_path, tmp_path)
    with pytest.raises(BadDataError, match="index.json says that c is in it, and it is not"):
        wrong.views(wrong.entries[0])


def test_clips_of_shards(tmp_path: Path) -> None:
    write_procedural(tmp_path / "rooms/easy", count=2, first_seed=5, frames=5, size=(32, 48), points=300)
    options = {"clips": 2, "first_seed": 5, "size": [32, 48]}
    shards = protocol(format="shards", path="rooms/easy", entries={}, views=ViewRule(2, 2), options=options)
    scenes = ProtocolScenes(shards, tmp_path, tmp_path)
    first, second = (scenes.views(entry) for entry in scenes.entries)
    assert first.key != second.key and first.context_indices == (0, 4) and first.target_indices == (1, 3)
    assert first.context_depth is not None and first.cloud is not None and first.geometry == FROM_CONTEXT_DEPTH
    stored = next(read_clips(tmp_path / "rooms/easy", [first.key]))
    assert first.context_confidence is not None and stored.confidence is not None
    assert torch.equal(first.context_confidence, stored.confidence)
    assert not torch.equal(first.context_images, second.context_images)
    other = dataclasses.replace(shards, options={**options, "clips": 3, "first_seed": 6})
    assert other.hash != shards.hash
    with pytest.raises(BadDataError, match="clips 2 instead of 3, first_seed 5 instead of 6"):
        ProtocolScenes(other, tmp_path, tmp_path).choose(None)
    large = ProtocolScenes(dataclasses.replace(shards, height=64), tmp_path, tmp_path)
    with pytest.raises(BadSceneError, match="packed at 32 x 48, the protocol is of 64 x 48"):
        large.views(large.entries[0])


def test_a_part_of_a_benchmark(tmp_path: Path) -> None:
    view = {"context": [0, 4], "target": [2]}
    entries = {f"scan{scan}_{part}": {"scene": f"scan{scan}", **view} for scan in (1, 8, 21) for part in (0, 1)}
    scenes = ProtocolScenes(protocol(entries=entries), tmp_path, tmp_path)

    def keys(*wanted: str) -> list[str]:
        return [entry.key for entry in scenes.choose(wanted)]

    assert keys() == list(entries)
    assert keys("scan21", "scan1_1") == ["scan1_1", "scan21_0", "scan21_1"]  # in the protocol's order
    assert keys("3") == ["scan1_0", "scan8_0", "scan21_0"] and keys("6") == list(entries)
    with pytest.raises(ConfigurationError, match="own has no scene or entry scan2"):
        keys("scan2", "scan1")
    for count in ("0", "7"):
        with pytest.raises(ConfigurationError, match="has 6 entries"):
            keys(count)


def test_what_is_missing_or_short_is_named(tmp_path: Path) -> None:
    write_posed(tmp_path / "a")
    write_posed(tmp_path / "broken")
    (tmp_path / "broken/cameras.json").write_text("{")
    view = {"context": [0, 4], "target": [2]}
    entries = {"a": view, "absent": view, "broken": view, "late": {"scene": "a", "context": [0, 4], "target": [5]}}
    scenes = ProtocolScenes(protocol(entries=entries), tmp_path, tmp_path)
    found = {entry.key: why for entry, why in scenes.missing()}
    assert found == {"a": "", "absent": f"{tmp_path / 'absent'} does not exist", "broken": "", "late": ""}
    read = {entry.key: why for entry, why in scenes.missing(read=True)}
    assert read["a"] == "" and "broken" in read["broken"] and "frame 5 is asked for" in read["late"]
    with pytest.raises(BadDataError, match=r"absent does not exist; own looks for \{scene\} below"):
        scenes.views(scenes.entries[1])
