"""Sky in depth, and what guidance reads of a clip: written, read, refused."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shard_clips import FRAMES, HEIGHT, WIDTH, edit_header, edit_members, pack, small_clip
from torch import Tensor

from reconx_pl.data.shards.caches import CachedInputs, GuidanceInputs
from reconx_pl.data.shards.guidance_members import encode_splats
from reconx_pl.data.shards.manifest import Manifest
from reconx_pl.data.shards.precompute import precompute_shards
from reconx_pl.data.shards.reader import training_members
from reconx_pl.data.shards.schema import (
    MEMBERS,
    SCHEMA_VERSION,
    decode_clip,
    encode_cache,
    encode_clip,
    encode_geometry,
)
from reconx_pl.data.shards.stream import ClipPass, ClipStream, read_clips
from reconx_pl.errors import BadDataError, BadSceneError, ConfigurationError
from reconx_pl.types import Clip, ClipBatch

INF = torch.inf
SPLATS = "splats-0123456789ab.npy"


def sky_clip(number: int = 1) -> Clip:
    """Depth of some metres, sky above, and a corner of which nothing is known."""
    clip = small_clip(number)
    assert clip.depth is not None
    depth = 1 + 5 * clip.depth
    depth[:, :8] = INF
    depth[:, -4:, :4] = 0
    return replace(clip, depth=depth)


# --- sky


def test_sky_and_what_is_unknown_come_back() -> None:
    clip = sky_clip()
    back = decode_clip(encode_clip(clip), "there.tar")
    assert back.depth is not None and clip.depth is not None
    assert torch.equal(back.depth, clip.depth) and int((back.depth == INF).sum()) == 2 * 8 * WIDTH


def test_sky_in_half_the_bytes() -> None:
    clip = sky_clip()
    whole, half = encode_geometry(clip)["depth.npy"], encode_geometry(clip, half=True)["depth.npy"]
    assert len(half) - 128 == (len(whole) - 128) / 2
    back = decode_clip(encode_clip(clip) | encode_geometry(clip, half=True), "there.tar")
    assert back.depth is not None and clip.depth is not None and back.depth.dtype == torch.float32
    assert torch.equal(back.depth == INF, clip.depth == INF) and torch.equal(back.depth == 0, clip.depth == 0)
    torch.testing.assert_close(back.depth, clip.depth, rtol=1e-3, atol=0)


def test_depth_that_float16_would_take_for_sky_stays_whole() -> None:
    clip = sky_clip()
    assert clip.depth is not None
    vast = replace(clip, depth=clip.depth * 20_000)
    assert len(encode_geometry(vast, half=True)["depth.npy"]) == len(encode_geometry(clip)["depth.npy"])
    back = decode_clip(encode_clip(vast) | encode_geometry(vast, half=True), "there.tar")
    assert vast.depth is not None and torch.equal(back.depth, vast.depth)  # type: ignore[arg-type]


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("value", [float("nan"), -INF])
def test_depth_that_means_nothing_is_not_written(value: float, half: bool) -> None:
    clip = sky_clip()
    assert clip.depth is not None
    clip.depth[0, 10, 10] = value
    with pytest.raises(ConfigurationError, match="depth.npy must be .* finite numbers"):
        encode_geometry(clip, half)


def test_infinity_is_for_depth_alone() -> None:
    clip = small_clip(1)
    assert clip.confidence is not None and clip.cloud is not None
    endless = replace(clip, confidence=torch.full_like(clip.confidence, INF))
    with pytest.raises(ConfigurationError, match="confidence.npy must be"):
        encode_geometry(endless)
    far = replace(clip, cloud=replace(clip.cloud, points=torch.full_like(clip.cloud.points, INF)))
    with pytest.raises(ConfigurationError, match="cloud.npy must be"):
        encode_geometry(far)


@pytest.mark.parametrize(("value", "named"), [(float("nan"), "depth"), (-INF, "depth"), (INF, "confidence")])
def test_values_of_another_program_are_refused(value: float, named: str) -> None:
    members = encode_clip(small_clip(1))
    values = torch.ones(2, HEIGHT, WIDTH)
    values[1, 2, 3] = value
    members[f"{named}.npy"] = encode_cache(torch.ones(2, HEIGHT, WIDTH), "x")  # of the right shape
    assert decode_clip(members, "there.tar").depth is not None
    members[f"{named}.npy"] = _raw(values)
    with pytest.raises(BadDataError, match=rf"there.tar: clip clip-001: .{named}.npy has NaN or infinite values"):
        decode_clip(members, "there.tar")


def _raw(values: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values.numpy())
    return buffer.getvalue()


def test_a_shard_of_before_has_nothing_that_is_known_to_be_far(tmp_path: Path) -> None:
    """Schema 1 wrote 0 for both, and is read as it was meant: nothing is known there."""
    assert SCHEMA_VERSION == 2
    clip = small_clip(0)
    assert clip.depth is not None
    clip.depth[:, :8] = 0
    pack(tmp_path, [clip])
    edit_members(tmp_path, clip.key, edit_header(schema=1))
    (back,) = read_clips(tmp_path)
    assert torch.equal(back.depth, clip.depth)  # type: ignore[arg-type]
    (batch,) = ClipPass(tmp_path, points=0, renders=GuidanceInputs(depth=True))
    assert torch.equal(batch["depth"][0], clip.depth)


# --- what guidance reads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips with renders of a short fit, and with latents."""
    plain, made = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("made")
    pack(plain, [sky_clip(number) for number in range(4)], 2)
    precompute_shards(plain, made, [Maker()])
    return made


class Maker:
    names = (SPLATS, "moments-0123456789ab.npy")

    def __call__(self, clip: Clip) -> dict[str, bytes]:
        latents = encode_cache(torch.full((FRAMES, 8, 4, 6), float(splats(clip)[0, 0, 0, 0])), "x")
        return {SPLATS: encode_splats(splats(clip), "x"), "moments-0123456789ab.npy": latents}


def splats(clip: Clip) -> Tensor:
    draw = torch.Generator().manual_seed(int(clip.key[-3:]))
    return torch.randint(0, 256, (FRAMES, 4, HEIGHT, WIDTH), dtype=torch.uint8, generator=draw)


EVERYTHING = GuidanceInputs(views=True, depth=True, colors=True, point_confidence=True, splats=SPLATS)
CACHED = CachedInputs(moments="moments-0123456789ab.npy")


def batch_of(folder: Path, inputs: GuidanceInputs | None, cached: CachedInputs | None = None) -> ClipBatch:
    return next(iter(ClipPass(folder, 2, points=7, cached=cached, renders=inputs)))


def test_everything_that_guidance_reads(folder: Path) -> None:
    batch, clips = batch_of(folder, EVERYTHING), list(read_clips(folder))[:2]
    for place, clip in enumerate(clips):
        assert clip.cloud is not None and clip.depth is not None and clip.confidence is not None
        assert torch.equal(batch["depth"][place], clip.depth)
        assert torch.equal(batch["confidence"][place], clip.confidence)
        assert torch.equal(batch["colors"][place], clip.cloud.colors[:7])
        assert torch.equal(batch["point_confidence"][place], clip.cloud.confidence[:7])
        assert torch.equal(batch["splats"][place], splats(clip))
    assert "views" not in batch  # they are among the frames


def test_nothing_else_is_there_where_nobody_asks(folder: Path) -> None:
    plain = batch_of(folder, None)
    assert plain.keys() == {"key", "caption", "frames", "world_to_camera", "intrinsics", "fps", "points"}
    colored = batch_of(folder, GuidanceInputs(colors=True))
    assert colored.keys() == plain.keys() | {"colors"}
    assert torch.equal(colored["points"], plain["points"]) and torch.equal(colored["frames"], plain["frames"])


def test_first_and_last_frame_come_beside_caches(folder: Path) -> None:
    batch, clips = batch_of(folder, GuidanceInputs(views=True), CACHED), list(read_clips(folder))
    assert batch["frames"].shape[1] == 1 and batch["caches"].keys() == {"moments-0123456789ab.npy"}
    assert torch.equal(batch["views"], torch.stack([clip.frames[[0, -1]] for clip in clips[:2]]))
    no_frames = CachedInputs(moments="moments-0123456789ab.npy", clip="clip-0123456789ab.npy")
    assert "jpgs" not in training_members(no_frames, GuidanceInputs(depth=True))
    assert training_members(no_frames, GuidanceInputs(views=True)) == training_members(no_frames) | {"jpgs"}


def test_only_what_is_asked_for_is_read(folder: Path) -> None:
    assert training_members(None) == {"json", "jpgs", "cloud.npy"}
    assert training_members(None, GuidanceInputs(depth=True)) == {
        "json", "jpgs", "cloud.npy", "depth.npy", "confidence.npy",
    }  # fmt: skip
    assert training_members(None, EVERYTHING) == MEMBERS | {SPLATS}


def test_training_reads_them_in_the_same_order(folder: Path) -> None:
    plain, guided = (ClipStream(folder, points=7, renders=inputs) for inputs in (None, EVERYTHING))
    for one, other, _ in zip(plain, guided, range(6), strict=False):
        assert one["key"] == other["key"]
        assert torch.equal(other["splats"][0, 0, 0], splats(small_clip(int(one["key"][0][-3:])))[0, 0])


def test_depth_without_confidence_is_trusted(tmp_path: Path) -> None:
    pack(tmp_path, [replace(sky_clip(), confidence=None)])
    (batch,) = ClipPass(tmp_path, points=0, renders=GuidanceInputs(depth=True, min_confidence=50.0))
    assert bool((batch["confidence"] == INF).all())


def no_colors(members: dict[str, bytes]) -> None:
    members["cloud_rgb.npy"] = _raw(torch.zeros(3, 3, dtype=torch.uint8))


def few_confidences(members: dict[str, bytes]) -> None:
    members["cloud_confidence.npy"] = _raw(torch.ones(3))


def other_splats(members: dict[str, bytes]) -> None:
    members[SPLATS] = encode_splats(torch.zeros(FRAMES, 4, HEIGHT, WIDTH - 1, dtype=torch.uint8), "x")


def without(name: str) -> Callable[[dict[str, bytes]], None]:
    return lambda members: members.pop(name) and None


def nothing_known(members: dict[str, bytes]) -> None:
    members["depth.npy"] = _raw(torch.zeros(2, HEIGHT, WIDTH))


BAD: dict[str, tuple[Callable[[dict[str, bytes]], None], GuidanceInputs, str]] = {
    "no depth": (without("depth.npy"), EVERYTHING, "has no depth, and guidance by rendering asks for it: pack"),
    "depth of nothing": (nothing_known, EVERYTHING, "no pixel of its depth has a confidence of 1; lower render.min_co"),
    "doubtful depth": (
        lambda members: None,
        GuidanceInputs(depth=True, min_confidence=3.0),
        "no pixel of its depth has a confidence of 3",
    ),
    "doubtful points": (
        lambda members: None,
        GuidanceInputs(point_confidence=True, min_confidence=3.0),
        "none of the first 7 points has a confidence of 3",
    ),
    "few colours": (no_colors, EVERYTHING, "3 colours do not go with 7 points"),
    "few confidences": (few_confidences, EVERYTHING, "3 confidences do not go with 7 points"),
    "no renders of a fit": (without(SPLATS), EVERYTHING, f"member .{SPLATS} is missing: make it with `reconx cache`"),
    "renders of another size": (other_splats, EVERYTHING, rf"it must be uint8 \(4, 4, {HEIGHT}, {WIDTH}\)"),
}


@pytest.mark.parametrize(("damage", "inputs", "words"), BAD.values(), ids=BAD)
def test_a_clip_without_what_guidance_reads_is_a_bad_one(
    folder: Path, tmp_path: Path, damage: Any, inputs: GuidanceInputs, words: str
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    for key in Manifest.load(copy).keys:
        edit_members(copy, key, damage)
    with pytest.raises(BadDataError, match=f"(?s)clip clip-000: .*{words}"):
        next(iter(ClipPass(copy, points=7, renders=inputs)))


def test_a_few_such_clips_are_replaced_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pack(tmp_path, [sky_clip(0), replace(sky_clip(1), depth=None)])
    with caplog.at_level(logging.WARNING):
        (batch,) = ClipPass(tmp_path, 2, points=7, max_bad_share=0.5, renders=GuidanceInputs(depth=True))
    assert batch["key"] == ["clip-000", "clip-000"] and "clip clip-001: has no depth" in caplog.text


def test_shards_without_the_renders_of_a_fit_are_refused_by_name(tmp_path: Path) -> None:
    pack(tmp_path, [small_clip(0)])
    words = (
        rf"{tmp_path}: has no caches, and guidance by renders .* needs {SPLATS}. Make it with `reconx cache {tmp_path}"
    )
    with pytest.raises(ConfigurationError, match=words):
        ClipStream(tmp_path, renders=GuidanceInputs(splats=SPLATS))
    with pytest.raises(ConfigurationError, match="needs splats"):
        ClipPass(tmp_path, renders=GuidanceInputs(splats=SPLATS))
    assert ClipPass(tmp_path, points=0, renders=GuidanceInputs(depth=True)) is not None


# --- one after the other


class Deeper:
    """Depth of 7 everywhere, or none."""

    names = ("depth.npy", "confidence.npy", "cloud.npy", "cloud_rgb.npy", "cloud_confidence.npy")

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def __call__(self, clip: Clip) -> dict[str, bytes]:
        if self.fails:
            raise BadSceneError(f"clip {clip.key}: nothing found")
        return encode_geometry(replace(clip, depth=torch.full((2, HEIGHT, WIDTH), 7.0), cloud=None))


class Watching:
    names = (SPLATS,)

    def __init__(self) -> None:
        self.seen: list[Clip] = []

    def __call__(self, clip: Clip) -> dict[str, bytes]:
        self.seen.append(clip)
        return {SPLATS: encode_splats(splats(clip), "x")}


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_made_of_depth_is_made_of_the_depth_that_was_made(tmp_path: Path, fails: bool) -> None:
    pack(tmp_path / "plain", [small_clip(0)])
    watching = Watching()
    precompute_shards(tmp_path / "plain", tmp_path / "out", [Deeper(fails), watching])
    (seen,) = watching.seen
    assert seen.cloud is None and torch.equal(seen.frames, next(read_clips(tmp_path / "plain")).frames)
    if fails:
        assert seen.depth is None
    else:
        assert seen.depth is not None and bool((seen.depth == 7).all())
    (back,) = read_clips(tmp_path / "out")
    assert (back.depth is None) == fails and back.key == seen.key
