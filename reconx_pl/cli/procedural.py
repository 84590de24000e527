"""``reconx procedural``: made-up scenes as shards."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from reconx_pl.cli.command import command_of
from reconx_pl.cli.console import progress_bar


def procedural(
    out: Path,
    clips: int = 64,
    first_seed: int = 0,
    frames: int = 8,
    height: int = 128,
    width: int = 128,
    points: int = 16384,
    gap: float = 1.0,
    max_gap: float = 0.0,
    clips_per_shard: int = 32,
    variety: Literal["plain", "varied", "estimated"] = "plain",
) -> None:
    """Pack procedural clips (made-up scenes with depth) into shards.

    Args:
        out: folder of the shards; packing goes on where it stopped.
        clips: how many clips; one scene each.
        first_seed: seed of the first scene; the scene of clip i has seed first_seed + i.
        frames: frames of a clip.
        height: rows, pixels.
        width: columns, pixels.
        points: points of the cached cloud.
        gap: scales the distance between first and last view, in (0, 4]; above 1 they share less of the scene.
        max_gap: above gap, every scene draws its own between the two; 0 for one gap.
        clips_per_shard: clips in one tar file.
        variety: "plain" has rooms and landscapes with exact depth; "varied" more kinds of things and textures;
            "estimated" also the errors of estimated geometry.
    """
    from reconx_pl.data.procedural import write_procedural

    with progress_bar() as progress:
        write_procedural(
            out,
            count=clips,
            first_seed=first_seed,
            frames=frames,
            size=(height, width),
            points=points,
            gap=gap,
            max_gap=max_gap,
            clips_per_shard=clips_per_shard,
            variety=variety,
            progress=progress,
        )


COMMANDS = {"procedural": command_of(procedural)}
