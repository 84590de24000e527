"""A clip through its shard members and back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from shard_clips import POINTS, small_clip

from reconx_pl.data.shards.jpeg import decode_frames, encode_frames
from reconx_pl.data.shards.schema import MEMBERS, SCHEMA_VERSION, decode_clip, decode_header, decode_points, encode_clip
from reconx_pl.errors import BadCameraError, BadDataError, ConfigurationError


def test_round_trip_keeps_everything_but_jpeg_noise() -> None:
    clip = small_clip(3)
    members = encode_clip(clip)
    assert set(members) == MEMBERS
    back = decode_clip(members, "there.tar")
    for name in ("key", "dataset", "scene", "frame_indices", "fps", "caption"):
        assert getattr(back, name) == getattr(clip, name)
    assert torch.equal(back.cameras.world_to_camera, clip.cameras.world_to_camera)
    assert torch.equal(back.cameras.intrinsics, clip.cameras.intrinsics)
    assert (back.cameras.height, back.cameras.width) == (clip.cameras.height, clip.cameras.width)
    assert torch.equal(back.depth, clip.depth) and torch.equal(back.confidence, clip.confidence)
    assert torch.equal(back.cloud.points, clip.cloud.points)
    assert torch.equal(back.cloud.confidence, clip.cloud.confidence)
    assert (back.cloud.colors - clip.cloud.colors).abs().max() <= 0.5 / 255 + 1e-6
    error = (back.frames.int() - clip.frames.int()).abs().float()
    assert back.frames.dtype == torch.uint8 and back.frames.shape == clip.frames.shape
    assert 0 < error.mean() < 1.5 and error.max() < 12


def test_clip_without_geometry() -> None:
    clip = replace(small_clip(1), depth=None, confidence=None, cloud=None)
    members = encode_clip(clip)
    assert set(members) == {"json", "jpgs"}
    back = decode_clip(members, "there.tar")
    assert back.depth is None and back.confidence is None and back.cloud is None
    assert decode_points(members, "there.tar", back.key, back.cameras.world_to_camera[0], 0).shape == (0, 3)
    with pytest.raises(BadDataError, match=r"there\.tar: clip clip-001: has no cloud.*points=0"):
        decode_points(members, "there.tar", back.key, back.cameras.world_to_camera[0], 5)


def test_same_clip_gives_same_bytes() -> None:
    assert encode_clip(small_clip(5)) == encode_clip(small_clip(5))
    assert encode_clip(small_clip(5))["json"] != encode_clip(small_clip(6))["json"]
    # memory order and gradient history of the input do not matter
    clip = small_clip(5)
    channels_last = replace(clip, frames=clip.frames.contiguous(memory_format=torch.channels_last))
    assert encode_clip(channels_last) == encode_clip(clip)


def test_quality_changes_size_and_error() -> None:
    frames = small_clip(2).frames
    coarse, fine = encode_frames(frames, 30)[0], encode_frames(frames, 98)[0]
    assert len(coarse) < len(fine)
    with pytest.raises(ConfigurationError, match="quality"):
        encode_frames(frames, 0)


def test_some_frames_only() -> None:
    clip = small_clip(4, frames=6)
    members = encode_clip(clip)
    full = decode_clip(members, "there.tar")
    ends = decode_clip(members, "there.tar", frames=[0, 2, 5])
    assert torch.equal(ends.frames, full.frames[[0, 2, 5]])
    assert torch.equal(ends.cameras.world_to_camera, full.cameras.world_to_camera[[0, 2, 5]])
    assert ends.frame_indices == tuple(clip.frame_indices[i] for i in (0, 2, 5))
    assert torch.equal(ends.depth, full.depth)
    middle = decode_clip(members, "there.tar", frames=[1, 2])
    assert middle.depth is None and middle.confidence is None  # they belong to the first and the last frame


def test_frames_not_asked_for_are_not_decoded() -> None:
    blob, sizes = encode_frames(small_clip(1).frames)
    broken = b"\0" * sizes[0] + blob[sizes[0] :]
    assert decode_frames(broken, sizes, 32, 48, "x", indices=[1, 3]).shape == (2, 3, 32, 48)
    with pytest.raises(BadDataError, match="x, frame 0"):
        decode_frames(broken, sizes, 32, 48, "x")


def test_prefix_of_the_cloud() -> None:
    clip = small_clip(4)
    members = encode_clip(clip)
    assert torch.equal(decode_points(members, "s", clip.key, clip.cameras.world_to_camera[0], 7), clip.cloud.points[:7])
    assert len(decode_points(members, "s", clip.key, clip.cameras.world_to_camera[0])) == POINTS
    with pytest.raises(BadDataError, match=rf"s: clip clip-004: the cloud has {POINTS} points and 21"):
        decode_points(members, "s", clip.key, clip.cameras.world_to_camera[0], POINTS + 1)


@pytest.mark.parametrize("key", ["", "a.b", "__meta", "a//b", "/a", "../a", "a b", "x/__y__"])
def test_keys_that_cannot_name_a_member(key: str) -> None:
    with pytest.raises(ConfigurationError, match="key"):
        encode_clip(replace(small_clip(0), key=key))


def test_keys_with_folders() -> None:
    clip = replace(small_clip(0), key="re10k/abc_12-3/7")
    assert decode_clip(encode_clip(clip), "s").key == clip.key


GOOD = small_clip(0)
BENT = replace(GOOD.cameras, world_to_camera=2 * GOOD.cameras.world_to_camera)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        (
            {"cameras": replace(GOOD.cameras, world_to_camera=2 * GOOD.cameras.world_to_camera)},
            BadCameraError,
            "clip-000",
        ),
        ({"depth": torch.full((2, 32, 48), torch.nan)}, ConfigurationError, "depth"),
        ({"confidence": torch.ones(3, 32, 48)}, ConfigurationError, r"confidence\.npy must be \(2, 32, 48\)"),
        ({"frame_indices": (1, 2)}, ConfigurationError, "frame indices"),
        ({"fps": 0.0}, ConfigurationError, "fps"),
        ({"frames": GOOD.images}, ConfigurationError, "uint8"),
    ],
)
def test_encode_refuses_what_decode_would(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        encode_clip(replace(GOOD, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_indices": [1, 2]}, "4 frames, 2 frame indices"),
        ({"fps": "fast"}, "wrong kind"),
        ({"fps": float("nan")}, "positive"),
        ({"key": "another"}, "belongs to clip another"),
        ({"intrinsics": [[1.0]]}, "intrinsics"),
        ({"world_to_camera": [1.0, None]}, "wrong kind"),
        ({"height": 40}, "frame 0.*32 x 48"),
        ({"height": 8}, "frame 0.*larger than 8 x 48"),
        ({"jpeg_sizes": [10, 10, 10, 10]}, "jpeg_sizes"),
        ({"schema": 0.5}, "schema"),
        ({"schema": "new"}, "schema"),
    ],
)
def test_headers_that_contradict_themselves(changes: dict[str, object], message: str) -> None:
    members: dict[str, object] = {"__key__": "clip-000", **encode_clip(small_clip(0))}
    members["json"] = json.dumps({**json.loads(members["json"]), **changes}).encode()
    with pytest.raises((BadDataError, BadCameraError), match=rf"there\.tar(: clip [a-z0-9-]+)?.*{message}"):
        decode_clip(members, "there.tar")


def test_arrays_of_another_shape_or_kind() -> None:
    good = encode_clip(small_clip(0))
    other = encode_clip(small_clip(0, height=40))
    with pytest.raises(
        BadDataError, match=r"depth\.npy is float32 \(2, 40, 48\), it must be float32 or float16 \(2, 32, 48\)"
    ):
        decode_clip({**good, "depth.npy": other["depth.npy"]}, "s")
    with pytest.raises(BadDataError, match=r"cloud_rgb\.npy is float32"):
        decode_clip({**good, "cloud_rgb.npy": good["cloud.npy"]}, "s")
    with pytest.raises(BadDataError, match=r"cloud\.npy is not a plain"):
        decode_clip({**good, "cloud.npy": good["cloud.npy"][:100]}, "s")


def test_object_array_is_never_unpickled(tmp_path) -> None:
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    members = {**encode_clip(small_clip(0)), "cloud.npy": (tmp_path / "evil.npy").read_bytes()}
    with pytest.raises(BadDataError, match=r"cloud\.npy is not a plain \.npy array"):
        decode_clip(members, "s")


@pytest.mark.parametrize("suffix", ["pyd", "pkl", "pickle", "pth", "pt", "torch", "latents.PT", "pkl.gz"])
def test_members_that_may_be_pickles_are_refused(suffix: str) -> None:
    members = {**encode_clip(small_clip(0)), suffix: b"harmless"}
    with pytest.raises(BadDataError, match=rf"there\.tar.*member \.{suffix} may be a pickle"):
        decode_clip(members, "there.tar")


def test_other_members_are_left_alone() -> None:
    members = {**encode_clip(small_clip(0)), "latents.safetensors": b"?"}
    assert decode_header(members, "s").key == "clip-000"
    assert json.loads(members["json"])["schema"] == SCHEMA_VERSION
