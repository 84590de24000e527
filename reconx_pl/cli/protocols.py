"""``reconx protocols``: what there is, where it comes from, whether the data are there (docs/protocols.md)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from reconx_pl.cli.arguments import ArgumentParser
from reconx_pl.cli.command import command_of, group_of, summary
from reconx_pl.cli.console import console, progress_bar
from reconx_pl.errors import BadDataError, ReconXError
from reconx_pl.evaluation.missing import unfinished
from reconx_pl.evaluation.protocols.fetch import fetch_indices, index_folder
from reconx_pl.evaluation.protocols.files import load_protocol, protocol_names
from reconx_pl.evaluation.protocols.protocol import Protocol
from reconx_pl.evaluation.protocols.run import ProtocolRun
from reconx_pl.evaluation.protocols.scenes import ProtocolScenes
from reconx_pl.evaluation.protocols.table import TABLE
from reconx_pl.evaluation.records import Record

SHOWN = 20  # what is missing


def list_protocols() -> None:
    """List the protocols: name, entries, title."""
    for name in protocol_names():
        protocol = load_protocol(name)
        console.print(f"{name:14} {_size(protocol):>8}  {protocol.title}", highlight=False)


def show(name: str) -> None:
    """Show what a protocol is: data, views, cameras, published rows, what the paper does not say.

    Args:
        name: of a protocol, or a protocol file.
    """
    protocol = load_protocol(name)
    index = protocol.index
    facts = {
        "hash": protocol.hash,
        "data": f"{protocol.path} (format {protocol.format})",
        "entries": _size(protocol),
        "index": f"{index.file}\nfrom {index.url}" if index else "none needed",
        "views": _views(protocol),
        "images": f"{protocol.height} x {protocol.width}",
        "poses": str(protocol.poses),
        "points from": protocol.geometry,
        "masks": protocol.masks,
        "metrics": ", ".join(protocol.metrics),
    }
    console.print(f"{protocol.name}: {protocol.title}", highlight=False)
    for fact, text in facts.items():
        console.print(f"  {fact:12} {text.replace(chr(10), chr(10) + 15 * ' ')}", highlight=False, soft_wrap=True)
    for row in protocol.published:
        scores = (f"{metric.upper()} {value:g}" for metric in protocol.metrics if (value := getattr(row, metric)))
        console.print(f"  published    {row.method}: {', '.join(scores)}", highlight=False)
    for note in protocol.notes:
        console.print(f"  note         {' '.join(note.split())}", highlight=False, soft_wrap=True)


def fetch(name: str | None = None, to: Path | None = None, mirror: str | None = None) -> None:
    """Fetch published index files, checksums verified; those that are there are left alone.

    Args:
        name: of a protocol; without it the indices of all.
        to: folder; by default $RECONX_INDICES, else the cache.
        mirror: address of a folder that has the files under our names, in the place of their publishers.
    """
    protocols = [load_protocol(each) for each in ([name] if name is not None else protocol_names())]
    wanted = [protocol.index for protocol in protocols if protocol.index is not None]
    if not wanted:
        console.print(f"{name} needs no index file")
        return
    folder = index_folder(to)
    for file, what in fetch_indices(wanted, folder, mirror).items():
        console.print(f"{folder / file}: {what}", highlight=False, soft_wrap=True)


def check(name: str, data: Path, indices: Path | None = None, read: bool = False) -> None:
    """Check that the data of a protocol are where it looks for them; what is missing is listed, with exit code 1.

    Args:
        name: of a protocol, or a protocol file.
        data: folder of the data sets.
        indices: folder of the index files; by default $RECONX_INDICES, else the cache.
        read: read every scene, too, and see that it has the frames that are asked for.
    """
    scenes = ProtocolScenes(load_protocol(name), data, index_folder(indices))
    reasons: dict[str, list[str]] = {}
    count = len(scenes.entries)
    with progress_bar() as progress:
        for done, (entry, why) in enumerate(scenes.missing(read), start=1):
            progress(entry.key, done, count)
            if why:
                reasons.setdefault(why, []).append(entry.key)
    if reasons:
        lines = [
            f"{keys[0]}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}: {why}" for why, keys in reasons.items()
        ]
        lines = lines[:SHOWN] + ([f"and {len(lines) - SHOWN} more reasons"] if len(lines) > SHOWN else [])
        bad = sum(len(keys) for keys in reasons.values())
        raise BadDataError(f"{name}: {bad} of {count} entries cannot be evaluated\n  " + "\n  ".join(lines))
    console.print(f"{name}: all {count} entries are there")


def gather(out: Path, allow_failed: int = 0) -> None:
    """Make results.json, table and report of what all processes of an evaluation have left so far.

    Args:
        out: folder of an evaluation, --out of evaluate.py --protocol.
        allow_failed: entries that may fail or be missing without an exit code of 1.
    """
    report_missing(out, ProtocolRun.load(out).gather(out), allow_failed)


def report_missing(out: Path, results: Record, allowed: int) -> None:
    """Say where the table is; raise ReconXError, naming them, if more entries than ``allowed`` have no scores."""
    console.print(f"{out / TABLE}: {results['finished']} entries scored", highlight=False, soft_wrap=True)
    lacking = len(results["failed"]) + len(results["missing"])
    if lacking > allowed or not results["expected"]:
        raise ReconXError(f"{out}: {unfinished(results)}")
    if lacking:
        console.print(f"allowed: {unfinished(results)}", highlight=False, soft_wrap=True)


def _parser_of(function: Callable[..., None]) -> ArgumentParser:
    parser = ArgumentParser(description=summary(function))
    if function in (show, check):
        parser.add_argument("name", help="of a protocol, or a protocol file")
    elif function is fetch:
        parser.add_argument("name", nargs="?", help="of a protocol; without it the indices of all")
    elif function is gather:
        parser.add_argument("out", type=Path, help="folder of an evaluation, --out of evaluate.py --protocol")
    if function is check:
        parser.add_argument("--read", action="store_true", help="read every scene, too, and count its frames")
    parser.add_function_arguments(function, skip={"name", "out", "read"})
    return parser


def _size(protocol: Protocol) -> str:
    listed = protocol.scenes or protocol.entries
    count = protocol.index.expected if protocol.index is not None else len(listed)
    return f"{count:,}" if count else "shards"


def _views(protocol: Protocol) -> str:
    if protocol.views is None:
        return "listed" if protocol.index is None else "those of the index"
    rule = protocol.views
    targets = "all" if rule.targets_every == 1 else f"one in {rule.targets_every}"
    if rule.choose_first == "targets":
        return f"targets {targets} of the frames, {rule.contexts} contexts evenly among the others"
    return f"{rule.contexts} contexts evenly among the frames, targets {targets} of the others"


FUNCTIONS: dict[str, Callable[..., None]] = {
    "list": list_protocols,
    "show": show,
    "fetch": fetch,
    "check": check,
    "gather": gather,
}
ACTIONS = {name: command_of(function, partial(_parser_of, function)) for name, function in FUNCTIONS.items()}
COMMANDS = {
    "protocols": group_of("Published protocols: list and show them, fetch their indices, check their data.", ACTIONS)
}
