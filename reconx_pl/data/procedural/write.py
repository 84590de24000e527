"""Pack procedural clips into shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reconx_pl.data.procedural.clip import Kind, Variety, clip_key, procedural_clip
from reconx_pl.data.shards.writer import ShardWriter
from reconx_pl.errors import ConfigurationError
from reconx_pl.types import Progress


def write_procedural(
    folder: str | Path,
    count: int,
    first_seed: int = 0,
    *,
    frames: int = 8,
    size: tuple[int, int] = (128, 128),
    kind: Kind | None = None,
    points: int = 16384,
    gap: float = 1.0,
    max_gap: float = 0.0,
    fps: float = 8.0,
    clips_per_shard: int = 16,
    quality: int = 95,
    variety: Variety = "plain",
    progress: Progress | None = None,
) -> int:
    """Render the seeds first_seed .. first_seed + count - 1 into shards; run it again to go on where it stopped.

    Args:
        folder: of the shards and their manifest.
        count: clips in all.
        first_seed: keep training and held-out scenes apart by disjoint ranges of seeds.
        frames, size, kind, points, fps, variety: see ``procedural_clip``.
        gap: see ``procedural_clip``.
        max_gap: above ``gap``, every seed draws its own gap evenly between the two; 0 gives all clips the same.
        clips_per_shard, quality: see ``ShardWriter``.
        progress: counts the clips in the folder, once at the start and after every clip.

    Returns:
        the number of clips rendered by this call.

    Raises:
        ConfigurationError: the folder was packed with other settings, or an argument is out of range.
    """
    if count < 1:
        raise ConfigurationError(f"count is the number of clips to render and is 1 or more, got {count}")
    if max_gap and max_gap < gap:
        raise ConfigurationError(f"max_gap is the greatest gap and {max_gap:g} lies below gap {gap:g}; 0 for one gap")
    settings = {
        "source": "procedural", "first_seed": first_seed, "frames": frames, "size": list(size), "kind": kind,
        "points": points, "gap": gap, "fps": fps,
    }  # fmt: skip
    if max_gap:
        settings["max_gap"] = max_gap
    if variety != "plain":
        settings["variety"] = variety
    seeds = range(first_seed, first_seed + count)
    rendered = 0
    with ShardWriter(folder, clips_per_shard=clips_per_shard, settings=settings, quality=quality) as writer:
        todo = [seed for seed in seeds if clip_key(seed, kind, variety) not in writer.done]
        if progress is not None:
            progress(f"packing {folder}", count - len(todo), count)
        for seed in todo:
            own = gap_of(seed, gap, max_gap)
            writer.write(procedural_clip(seed, frames, size, kind, points=points, gap=own, fps=fps, variety=variety))
            rendered += 1
            if progress is not None:
                progress(f"packing {folder}", count - len(todo) + rendered, count)
    return rendered


def gap_of(seed: int, gap: float, max_gap: float) -> float:
    """The gap of a seed's clip in a folder of many gaps."""
    return gap if not max_gap else float(np.random.default_rng([seed, 0x6A9]).uniform(gap, max_gap))
