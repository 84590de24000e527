"""Packing: what is chosen, that geometry goes with the images, that nothing is left out silently, resuming."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from raw_scenes import HEIGHT, WIDTH, edit_json, known_cameras, picture, reference, write_chunk, write_posed

from reconx_pl.data.formats.readers import read_scenes
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.data.packing.packing import (
    PackOptions,
    choose_clips,
    clip_key,
    pack,
    pack_command,
    scene_clip,
)
from reconx_pl.data.shards.manifest import Manifest
from reconx_pl.data.shards.stream import read_clips
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import project, unproject

SMALL = PackOptions(frames=3, height=32, width=32, max_stride=2, points=256, min_points=8, clips_per_shard=2)


def shards(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("shard-*.tar"))}


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": 1},
        {"height": 4},
        {"min_stride": 3, "max_stride": 2},
        {"max_gap": 10},
        {"min_gap": 90, "max_gap": 80},
        {"clips_per_scene": 0},
        {"points": 0},
        {"quality": 0},
        {"default_fps": 0.0},
    ],
)
def test_options_that_contradict_each_other(wrong: dict) -> None:
    with pytest.raises(ConfigurationError):
        PackOptions(**wrong)


def test_clips_are_within_their_bounds_and_repeat_with_the_seed() -> None:
    options = PackOptions(frames=8, min_stride=2, max_stride=9, min_gap=20, max_gap=50, clips_per_scene=40)
    clips = choose_clips(120, options, np.random.default_rng(1))
    assert clips == choose_clips(120, options, np.random.default_rng(1))
    assert clips != choose_clips(120, options, np.random.default_rng(2))
    assert len({(clip.start, clip.step) for clip in clips}) == len(clips) == 40
    for clip in clips:
        assert len(clip) == 8 and clip[0] >= 0 and clip[-1] < 120 and 20 <= clip[-1] - clip[0] <= 50
    assert {clip.step for clip in clips} == {3, 4, 5, 6, 7}  # 7 steps: 21 to 49 frames
    assert choose_clips(20, options, np.random.default_rng(1)) == []
    assert choose_clips(8, PackOptions(frames=8, clips_per_scene=3), np.random.default_rng(1)) == [range(8)]


def test_images_and_cameras_go_together(tmp_path: Path) -> None:
    scene = reference(write_posed(tmp_path))
    clip = scene_clip(scene, [0, 2, 4], 24, 24)
    known = known_cameras()
    # 48x64 to 24x32, four columns off on both sides
    expected = known.intrinsics[[0, 2, 4]].clone()
    expected[:, :2] /= 2
    expected[:, 0, 2] -= 4
    torch.testing.assert_close(clip.cameras.intrinsics, expected.float())
    torch.testing.assert_close(clip.cameras.world_to_camera, known.world_to_camera[[0, 2, 4]].float())
    image = picture(2).resize((32, 24), Image.Resampling.LANCZOS).crop((4, 0, 28, 24))
    np.testing.assert_array_equal(clip.frames[1].permute(1, 2, 0).numpy(), np.asarray(image))
    assert clip.frame_indices == (0, 2, 4) and clip.fps == 24.0


def test_frame_rate_is_divided_by_the_stride(tmp_path: Path) -> None:
    scene = reference(write_posed(tmp_path, fps=30.0, caption="a hall"))
    clip = scene_clip(scene, [0, 2, 4], 24, 24)
    assert clip.fps == 15.0 and clip.caption == "a hall"


def test_depth_becomes_maps_and_a_cloud(shared_dir: Path) -> None:
    scene = reference(shared_dir / "scenes/pi3_room")
    clip = scene_clip(scene, [0, 1], 128, 128, points=500)
    assert clip.depth is not None and clip.confidence is not None and clip.cloud is not None
    assert clip.depth.shape == clip.confidence.shape == (2, 128, 128) and len(clip.cloud) == 500
    # the cloud's points have the colours of the pixels they fall on, in the view they came from
    pixels, depth = project(clip.cloud.points, clip.cameras)
    inside = (depth > 0) & (pixels > 0).all(-1) & (pixels < 128).all(-1)
    assert inside.any(0).all()
    errors = torch.full((2, 500), 9.0)
    for view in range(2):
        x, y = pixels[view, inside[view]].long().unbind(-1)
        errors[view, inside[view]] = (clip.images[view, :, y, x].T - clip.cloud.colors[inside[view]]).abs().amax(1)
    assert (errors.amin(0) < 1e-3).float().mean() > 0.95
    # depth is that of the same cameras: taken to the other view it agrees there
    valid = clip.depth[0] > 0
    pixels, z = project(unproject(clip.depth[:1], clip.cameras[0])[0][valid], clip.cameras[1])
    x, y = pixels[0].long().unbind(-1)
    seen = (z[0] > 0) & (pixels[0] > 0).all(-1) & (pixels[0] < 128).all(-1)
    other = clip.depth[1, y[seen], x[seen]]
    assert ((other - z[0, seen]).abs() / z[0, seen])[other > 0].median() < 0.02


def test_a_reconstruction_becomes_the_visible_cloud(shared_dir: Path) -> None:
    scene = reference(shared_dir / "scenes/banana")
    clip = scene_clip(scene, [0, 1, 2], 128, 128, points=300)
    assert scene.cloud is not None and clip.cloud is not None and clip.depth is None
    pixels, depth = project(clip.cloud.points, clip.cameras[[0, -1]])
    assert ((depth > 0) & (pixels >= 0).all(-1) & (pixels < 128).all(-1)).any(0).all()
    # farthest-point order: the first tenth already spans the cloud
    extent = [points.amax(0) - points.amin(0) for points in (clip.cloud.points[:30], clip.cloud.points)]
    assert len(clip.cloud) == 300 and (extent[0] > 0.6 * extent[1]).all()
    assert scene_clip(scene, [0, 1, 2], 128, 128, min_points=100_000, points=100_000).cloud is None


def test_one_command_packs_a_folder_of_scenes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b.with.dots", "short"):
        write_posed(tmp_path / "raw" / name)
    edit_json(tmp_path / "raw/short/cameras.json", lambda content: content.update(frames=content["frames"][:2]))
    write_posed(tmp_path / "raw/broken")
    image = tmp_path / "raw/broken/images/002.png"
    image.write_bytes(image.read_bytes()[:-600])  # its header is whole, so only decoding finds it
    calls: list[tuple[str, int, int | None]] = []
    options = replace(SMALL, clips_per_scene=2)
    report = pack_command(
        tmp_path / "raw",
        tmp_path / "out",
        options=options,
        dataset="mine",
        progress=lambda *call: calls.append(call),
    )
    assert (report.scenes, report.packed, report.resumed) == (2, 4, 0)
    assert calls[0] == ("packing a", 2, None) and calls[-1] == ("packing short", 4, None)
    reasons = dict(report.skipped)
    assert "2 frames are too few for a clip of 3" in reasons["short"]
    assert set(reasons) == {"short", "mine-broken-0000", "mine-broken-0001"}
    assert "images/002.png: cannot decode" in reasons["mine-broken-0000"]
    assert len(report.without_cloud) == 4 and "points=0" in caplog.text
    clips = list(read_clips(tmp_path / "out"))
    assert [clip.key for clip in clips] == [
        "mine-a-0000", "mine-a-0001", "mine-b_with_dots-0000", "mine-b_with_dots-0001",
    ]  # fmt: skip
    assert clips[2].scene == "b.with.dots" and clips[0].frames.shape == (3, 3, 32, 32)


def test_packing_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_posed(tmp_path / "raw" / name)
    pack_command(tmp_path / "raw", tmp_path / "whole", options=SMALL)

    class Stopped(Exception):
        pass

    def stop(what: str, done: int, total: int | None) -> None:
        if what == "packing b":
            raise Stopped

    with pytest.raises(Stopped):
        pack_command(tmp_path / "raw", tmp_path / "parts", options=SMALL, progress=stop)
    report = pack_command(tmp_path / "raw", tmp_path / "parts", options=SMALL)
    assert (report.packed, report.resumed) == (1, 2)
    assert shards(tmp_path / "parts") == shards(tmp_path / "whole")
    again = pack_command(tmp_path / "raw", tmp_path / "parts", options=SMALL)
    assert (again.packed, again.resumed) == (0, 3)
    with pytest.raises(ConfigurationError, match="height was 32 and is now 40"):
        pack_command(tmp_path / "raw", tmp_path / "parts", options=replace(SMALL, height=40))


def test_a_done_clip_is_not_read_again(tmp_path: Path) -> None:
    scene = reference(write_posed(tmp_path / "raw"))
    pack([scene], tmp_path / "out", SMALL)

    def fail() -> np.ndarray:
        raise AssertionError("read again")

    unread = replace(scene, frames=tuple(replace(frame, load=fail) for frame in scene.frames))
    assert pack([unread], tmp_path / "out", SMALL).resumed == 1


def test_adding_a_scene_changes_no_other(tmp_path: Path) -> None:
    for name in ("b", "c"):
        write_posed(tmp_path / "raw" / name)
    pack_command(tmp_path / "raw", tmp_path / "two", options=SMALL)
    write_posed(tmp_path / "raw/a")
    pack_command(tmp_path / "raw", tmp_path / "three", options=SMALL)
    two = {clip.key: clip.frame_indices for clip in read_clips(tmp_path / "two")}
    three = {clip.key: clip.frame_indices for clip in read_clips(tmp_path / "three")}
    assert two.items() < three.items()


def test_scenes_of_one_name_are_told(tmp_path: Path) -> None:
    scene = reference(write_posed(tmp_path / "raw"))
    report = pack([scene, scene], tmp_path / "out", SMALL)
    assert report.packed == 1 and "another scene has this name" in report.skipped[0][1]
    assert clip_key("a/b", "c d.e", 7) == "a_b-c_d_e-0007"


def test_images_of_different_sizes(tmp_path: Path) -> None:
    write_posed(tmp_path / "raw")
    picture(0, HEIGHT * 2, WIDTH * 2).save(tmp_path / "raw/images/002.png")
    with pytest.raises(BadSceneError, match=r"nothing was packed(.|\n)*002\.png is 128x96, but .* is 64x48"):
        pack_command(tmp_path / "raw", tmp_path / "out", options=SMALL)


def test_chunks_and_real_clips_pack_alike(shared_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = replace(SMALL, frames=4, height=64, width=64)
    report = pack_command(shared_dir / "chunks/re10k_mini", tmp_path / "out", options=options)
    assert report.scenes == report.packed == 5 and not report.skipped
    Manifest.load(tmp_path / "out").verify(checksums=True)
    clip = next(read_clips(tmp_path / "out"))
    source = reference(shared_dir / f"scenes/re10k_{clip.scene}")
    expected = scene_clip(source, list(clip.frame_indices), 64, 64)
    torch.testing.assert_close(clip.cameras.intrinsics, expected.cameras.intrinsics, atol=1e-4, rtol=0)
    assert (clip.images - expected.images).abs().mean() < 0.02  # JPEG


def test_check_draws_a_picture(shared_dir: Path, tmp_path: Path) -> None:
    source = shared_dir / "scenes/re10k_2c80f9eb0d3b2bb4"
    options = replace(SMALL, frames=4, height=64, width=64)
    report = pack_command(source, tmp_path / "out", "realestate10k", options, check=True, crop="centre")
    (median,) = report.checks.values()
    assert median < 1.0
    with Image.open(tmp_path / "out/check/re10k_2c80f9eb0d3b2bb4.png") as drawn:
        assert drawn.width > 500


def test_a_corrupt_jpeg_in_a_chunk_costs_that_scene_alone(tmp_path: Path) -> None:
    write_chunk(tmp_path / "raw", ["a", "b"])
    content = torch.load(tmp_path / "raw/000000.torch", weights_only=True)
    stored = io.BytesIO(content[0]["images"][0].numpy().tobytes()).getvalue()
    content[0]["images"] = [torch.frombuffer(bytearray(stored[:-200]), dtype=torch.uint8)] * 5
    torch.save(content, tmp_path / "raw/000000.torch")
    report = pack_command(tmp_path / "raw", tmp_path / "out", options=SMALL)
    ((name, reason),) = report.skipped
    assert name == "realestate10k-a-0000" and "scene 0 (a), image" in reason and report.packed == 1
    assert all(isinstance(scene, RawScene) for scene in read_scenes(tmp_path / "raw"))
