"""``reconx cache``: what frozen encoders and estimators make of every clip, computed once (data/README.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reconx_pl.cli.arguments import ArgumentParser
from reconx_pl.cli.command import command_of, summary
from reconx_pl.cli.console import console, progress_bar
from reconx_pl.training.precompute import cache_shards


def cache(shards: Path, out: Path, **options: Any) -> None:
    """Copy shards with what frozen encoders and estimators make of every clip; run it again to go on.

    The arguments are those of ``reconx_pl.training.precompute.cache_shards``.
    """
    with progress_bar() as progress:
        report = cache_shards(shards, out, progress=progress, **options)
    console.print(
        f"{out}: {report.shards} shards ({report.clips} clips) written, {report.done} were there, "
        f"{len(report.bad)} bad clips copied as they are, {len(report.without)} clips left without a cloud"
    )
    for line in report.without[:5]:
        console.print(f"  {line}")
    if report.missing:
        console.print(f"{report.missing} shards are left to other processes; the last to finish writes the manifest")


def cache_parser() -> ArgumentParser:
    """The parser of ``reconx cache``."""
    parser = ArgumentParser(description=summary(cache))
    parser.add_function_arguments(cache_shards, as_positional=True, skip={"progress"})
    return parser


COMMANDS = {"cache": command_of(cache, cache_parser)}
