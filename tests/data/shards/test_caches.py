"""Cache members: named after their weights, read instead of frames, in the same order of clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from shard_clips import FRAMES, HEIGHT, POINTS, WIDTH, edit_members, pack, pack_numbers, small_clip

from reconx_pl.data.shards.caches import CachedInputs, cache_name
from reconx_pl.data.shards.manifest import Manifest
from reconx_pl.data.shards.precompute import precompute_shards
from reconx_pl.data.shards.reader import read_shard, training_members
from reconx_pl.data.shards.schema import FRAMES as FRAMES_MEMBER
from reconx_pl.data.shards.schema import encode_cache
from reconx_pl.data.shards.stream import ClipPass, ClipStream, read_clips
from reconx_pl.errors import BadDataError, ConfigurationError
from reconx_pl.types import Clip

MOMENTS, TOKENS = cache_name("moments", "0123456789abcdef"), cache_name("clip", "fedcba9876543210")
BOTH = CachedInputs(MOMENTS, TOKENS)
CLIPS = 8


class MeanColours:
    """Stands for a frozen encoder: mean colours of 8 x 8 pixels, twice."""

    names = (MOMENTS, TOKENS)

    def __call__(self, clip: Clip) -> dict[str, bytes]:
        moments, tokens = expected(clip)
        return {MOMENTS: encode_cache(moments, "test"), TOKENS: encode_cache(tokens, "test")}


def expected(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    cells = torch.nn.functional.avg_pool2d(clip.images, 8)  # [T, 3, H / 8, W / 8]
    return torch.cat([cells, -cells], dim=1), cells[0].flatten(1).T


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    plain, cached = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("made") / "cached"
    pack_numbers(plain, CLIPS)
    precompute_shards(plain, cached, [MeanColours()])
    return plain, cached


def test_caches_stand_in_for_the_frames(folders: tuple[Path, Path]) -> None:
    batch = next(iter(ClipStream(folders[1], batch_size=2, points=POINTS, cached=BOTH)))
    assert "frames" not in batch and batch["folder"] == str(folders[1])
    assert batch["caches"][MOMENTS].shape == (2, FRAMES, 6, HEIGHT // 8, WIDTH // 8)
    assert batch["points"].shape == (2, POINTS, 3)
    clips = {clip.key: clip for clip in read_clips(folders[0])}
    for row, key in enumerate(batch["key"]):
        moments, tokens = expected(clips[key])
        assert torch.equal(batch["caches"][MOMENTS][row], moments.half())
        assert torch.equal(batch["caches"][TOKENS][row], tokens.half())


@pytest.mark.parametrize(
    ("cached", "frames"), [(BOTH, 0), (CachedInputs(moments=MOMENTS), 1), (CachedInputs(clip=TOKENS), FRAMES)]
)
def test_only_frames_without_a_stand_in_are_decoded(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, cached: CachedInputs, frames: int
) -> None:
    plain = next(iter(ClipPass(folders[0], points=0)))
    decoded: list[int] = []
    from reconx_pl.data.shards import schema

    real = schema.decode_frames
    monkeypatch.setattr(schema, "decode_frames", lambda *args: decoded.append(len(args[-1])) or real(*args))
    batch = next(iter(ClipPass(folders[1], points=0, cached=cached)))
    assert decoded == ([frames] if frames else [])
    assert batch["caches"].keys() == set(cached.names)
    if frames:
        assert torch.equal(batch["frames"], plain["frames"][:, :frames])


@pytest.mark.parametrize("make", [ClipStream, ClipPass])
def test_the_order_of_the_clips_does_not_change(folders: tuple[Path, Path], make: Callable[..., ClipStream]) -> None:
    def keys(folder: Path, cached: CachedInputs | None, **options: int) -> list[list[str]]:
        stream = make(folder, batch_size=2, points=0, cached=cached, **options)
        return [batch["key"] for batch in islice(stream, 12)]

    assert keys(folders[0], None) == keys(folders[1], None) == keys(folders[1], BOTH)
    if make is ClipStream:
        assert keys(folders[0], None, start_batch=3, seed=1) == keys(folders[1], BOTH, start_batch=3, seed=1)


def test_caches_are_not_even_read_where_nobody_asked(folders: tuple[Path, Path]) -> None:
    shard = Manifest.load(folders[1]).shards[0]
    path = folders[1] / shard.name
    assert not any(set(BOTH.names) & set(raw.members) for raw in read_shard(path, shard))
    assert all(FRAMES_MEMBER not in raw.members for raw in read_shard(path, shard, training_members(BOTH)))
    assert all({*BOTH.names, FRAMES_MEMBER} <= set(raw.members) for raw in read_shard(path, shard, None))


def test_complete_clips_are_read_from_cached_shards_too(folders: tuple[Path, Path]) -> None:
    for one, other in zip(*map(read_clips, folders), strict=True):
        assert one.key == other.key and torch.equal(one.frames, other.frames) and torch.equal(one.depth, other.depth)


def test_caches_of_other_weights_are_refused_by_name(folders: tuple[Path, Path]) -> None:
    other = CachedInputs(moments=cache_name("moments", "ffffffffffffffff"), clip=TOKENS)
    with pytest.raises(ConfigurationError) as caught:
        ClipStream(folders[1], cached=other)
    for part in (str(folders[1]), "0123456789ab", "ffffffffffff", f"reconx cache {folders[1]} OUT --config"):
        assert part in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"has no caches.*moments-0123456789ab"):
        ClipPass(folders[0], cached=BOTH)
    with pytest.raises(ConfigurationError, match="nothing to cache"):
        CachedInputs()


def test_a_missing_or_damaged_member_is_a_bad_clip(folders: tuple[Path, Path], tmp_path: Path) -> None:
    precompute_shards(folders[0], tmp_path / "cached", [MeanColours()])
    edit_members(tmp_path / "cached", "clip-001", lambda members: members.pop(MOMENTS))
    with pytest.raises(BadDataError, match=rf"clip-001: member \.{MOMENTS} is missing.*reconx cache"):
        list(ClipPass(tmp_path / "cached", points=0, cached=BOTH))
    tolerant = ClipPass(tmp_path / "cached", points=0, cached=BOTH, max_bad_share=0.5)
    assert [batch["key"] for batch in tolerant][:3] == [["clip-000"], ["clip-002"], ["clip-002"]]
    edit_members(
        tmp_path / "cached",
        "clip-001",
        lambda members: members.update({MOMENTS: encode_cache(torch.zeros(FRAMES - 1, 6, 4, 6), "test")}),
    )
    with pytest.raises(BadDataError, match=rf"clip-001: \.{MOMENTS} is float16 \(3, 6, 4, 6\)"):
        list(ClipPass(tmp_path / "cached", points=0, cached=BOTH))


def test_clips_of_different_sizes_are_not_stacked(tmp_path: Path) -> None:
    pack(tmp_path / "plain", [small_clip(0), replace(small_clip(1, height=48), key="tall")])
    precompute_shards(tmp_path / "plain", tmp_path / "cached", [MeanColours()])
    with pytest.raises(ConfigurationError, match=r"tall has moments-.*batch_size=1"):
        next(iter(ClipPass(tmp_path / "cached", batch_size=2, points=0, cached=BOTH)))


def test_values_that_float16_cannot_hold_are_refused() -> None:
    for bad in (1e6, float("nan")):
        with pytest.raises(ConfigurationError, match="here must be"):
            encode_cache(torch.tensor([bad]), "here")


def test_the_manifest_lists_the_members(folders: tuple[Path, Path]) -> None:
    settings = Manifest.load(folders[1]).settings
    assert settings["caches"] == sorted(BOTH.names) and settings["maker"] == "test"
