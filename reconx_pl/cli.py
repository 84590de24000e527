"""The ``reconx`` command, and the command line of ``evaluate.py``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from reconx_pl.errors import ReconXError

console = Console(stderr=True)


@contextmanager
def progress_bar(total: int | None) -> Iterator[Callable[[str, int], None]]:
    """A progress bar with time left; the callback takes what is done now and how many are done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total)
        yield lambda text, done: progress.update(task, description=text, completed=done)


def procedural(
    out: Path,
    clips: int = 64,
    first_seed: int = 0,
    frames: int = 8,
    height: int = 128,
    width: int = 128,
    points: int = 16384,
    clips_per_shard: int = 32,
) -> None:
    """Pack procedural clips (rooms and landscapes with exact depth) into shards.

    Args:
        out: folder of the shards; packing goes on where it stopped.
        clips: how many clips; one scene each.
        first_seed: seed of the first scene; the scene of clip i has seed first_seed + i.
        frames: frames of a clip.
        height: rows, pixels.
        width: columns, pixels.
        points: points of the cached cloud.
        clips_per_shard: clips in one tar file.
    """
    from reconx_pl.data.procedural import write_procedural

    with progress_bar(clips) as step:
        write_procedural(
            out,
            count=clips,
            first_seed=first_seed,
            frames=frames,
            size=(height, width),
            points=points,
            clips_per_shard=clips_per_shard,
            progress=lambda done, total: step(f"packing {out}", done),
        )


def fetch_lpips(folder: Path | None = None) -> None:
    """Fetch the VGG16 and AlexNet backbones of LPIPS, checksums verified.

    Args:
        folder: where to keep them; None takes the cache that the package looks into.
    """
    from reconx_pl.splatting.perceptual_weights import fetch_backbone

    for net in ("vgg", "alex"):
        console.print(f"{net}: {fetch_backbone(net, folder)}")


def run(function: Callable[[], Any]) -> None:
    """Run a command; errors that this package raises on purpose end without a traceback, with exit code 1."""
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console, show_path=False)]
    )
    try:
        function()
    except ReconXError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; run the same command again to go on")


def main(args: list[str] | None = None) -> None:
    """Entry point of ``reconx``."""
    from reconx_pl.data.packing import pack_command

    commands = {"pack": pack_command, "procedural": procedural, "weights": {"lpips": fetch_lpips}}
    run(lambda: auto_cli(commands, args=args, prog="reconx", as_positional=True))


def evaluate_main(args: list[str] | None = None) -> None:
    """Entry point of ``evaluate.py``."""
    from reconx_pl.pipeline import evaluate

    def command() -> None:
        results = auto_cli(evaluate, args=args, prog="evaluate.py", as_positional=False)
        if not results["complete"]:
            raise ReconXError(f"scenes failed: {', '.join(results['failed'])}; their errors stand in results.json")

    run(command)
