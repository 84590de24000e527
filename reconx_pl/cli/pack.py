"""``reconx pack``: posed photographs and videos to shards (data/README.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reconx_pl.cli.arguments import ArgumentParser
from reconx_pl.cli.command import command_of, summary
from reconx_pl.cli.console import console, progress_bar
from reconx_pl.data.packing.packing import pack_command


def pack(out: Path, **options: Any) -> None:
    """Pack posed photographs or videos into shards; run it again to go on after an interruption.

    The arguments are those of ``reconx_pl.data.packing.packing.pack_command``.
    """
    with progress_bar() as progress:
        report = pack_command(out=out, progress=progress, **options)
    console.print(
        f"{out}: {report.packed} clips packed, {report.resumed} were there, {len(report.skipped)} skipped, "
        f"{len(report.without_cloud)} without a cloud"
    )
    if report.excluded or report.unmatched or report.other_splits:
        console.print(
            f"left out on purpose: {len(report.excluded)} scenes excluded by name, {report.other_splits} of other "
            f"splits; {len(report.unmatched)} names to exclude match no scene"
        )
    for name, median in report.checks.items():
        console.print(f"{out}/check/{name}.png: median epipolar distance {median:.2f} px")


def pack_parser() -> ArgumentParser:
    """The parser of ``reconx pack``."""
    parser = ArgumentParser(description=summary(pack))
    parser.add_function_arguments(pack_command, as_positional=True, skip={"check", "progress"})
    parser.add_argument("--check", action="store_true", help="draw epipolar lines into OUT/check")
    return parser


COMMANDS = {"pack": command_of(pack, pack_parser)}
