"""The Markdown table of a protocol: our rows beside the published ones, and what is missing from ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from reconx_pl.evaluation.coverage import HALVES
from reconx_pl.evaluation.missing import unscored
from reconx_pl.evaluation.protocols.protocol import Protocol
from reconx_pl.evaluation.records import Record, scene_folder
from reconx_pl.evaluation.report_notices import coverage_note, left_out_note
from reconx_pl.files.atomic import atomic_write
from reconx_pl.metrics.image import DIGITS, HIGHER_IS_BETTER

TABLE = "table.md"
LISTED = 5  # best and worst entries


def write_table(out: Path, results: Record, protocol: Protocol, checkpoint: str, of: int) -> Path:
    """Write ``out/table.md``; see ``protocol_table``."""
    path = Path(out) / TABLE
    with atomic_write(path) as unfinished:
        unfinished.write_text(protocol_table(results, protocol, checkpoint, of), encoding="utf-8")
    return path


def protocol_table(results: Record, protocol: Protocol, checkpoint: str, of: int) -> str:
    """The table as Markdown.

    Args:
        results: content of results.json.
        protocol: the protocol.
        checkpoint: what the user named.
        of: entries of the whole protocol; more than were asked for where a part of it was run.
    """
    expected, finished = results["expected"], results["finished"]
    parts = [f"# {protocol.name}: {protocol.title}", *_banners(results, protocol, of)]
    parts.append("\n".join(_rows(results, protocol)))
    facts = {
        "Protocol": f"{protocol.name}, protocol `{protocol.hash}`",
        "Entries": f"{finished:,} scored of {expected:,} asked for; the protocol has {of:,}",
        "Images": f"{protocol.height} x {protocol.width}, resized with Lanczos to the short side, centre crop",
        "Poses": str(protocol.poses),
        "Geometry": "; ".join(f"{text} ({_entries(count)})" for text, count in results["geometry"].items()) or "none",
        "Masks": protocol.masks,
        "Checkpoint": f"`{checkpoint}`",
        "Model": f"`{results['model']}`",
        "Estimator": f"`{results.get('estimator') or 'none'}`",
        "Settings": f"`{results['config_hash']}`",
        "Version": f"reconx_pl {results['version']}",
    }
    parts.append("\n".join(f"- {name}: {_plain(text)}" for name, text in facts.items()))
    parts += [_plain(note) for note in (coverage_note(results), left_out_note(results)) if note]
    if protocol.published:
        parts.append(f"Published rows: {protocol.source}. Scores are means over the targets of an entry, then entries.")
    parts += _extremes(results)
    if protocol.notes:
        parts.append("## What the paper does not say\n\n" + "\n".join(f"- {_plain(note)}" for note in protocol.notes))
    return "\n\n".join(parts) + "\n"


def _banners(results: Record, protocol: Protocol, of: int) -> list[str]:
    """What a reader has to know before any number."""
    banners = []
    failed, missing, expected = results["failed"], results["missing"], results["expected"]
    if failed or missing or not results["complete"]:
        banners.append(
            f"> **Not complete: {results['finished']:,} of {_entries(expected)} scored.** The means leave out "
            f"{len(failed):,} that failed and {len(missing):,} that are missing; compare them with nothing."
        )
        if lines := unscored(results):
            banners[-1] += "\n>\n" + "\n".join(f"> - {_plain(line)}" for line in lines)
    if expected != of:
        banners.append(
            f"> **A part of the protocol: {expected:,} of {_entries(of)}.** Published rows are of the whole."
        )
    for metric, why in results["absent"].items():
        banners.append(f"> **No {metric.upper()}:** {_plain(why)}")
    return banners


def _rows(results: Record, protocol: Protocol) -> list[str]:
    """Ours in the order of the methods, then those that were published."""
    metrics = [name for name in protocol.metrics if name not in results["absent"]]
    halves = [name for name in HALVES if results.get(f"mean_{name}")]
    lead = metrics[:1]  # of covered and uncovered pixels
    heads = [f"{name.upper()} {'↑' if HIGHER_IS_BETTER[name] else '↓'}" for name in metrics]
    heads += [f"{name.upper()}, {half}" for half in halves for name in lead]
    lines = [f"| method | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for method, label in results["methods"].items():
        if method in results["mean"]:
            cells = [_cells(results["mean"][method], metrics)]
            cells += [_cells(results[f"mean_{half}"].get(method, {}), lead) for half in halves]
            lines.append(f"| {_plain(label)} | {' | '.join(cells)} |")
    for row in protocol.published:
        scores = {name: value for name in metrics if (value := getattr(row, name, None)) is not None}
        cells = [_cells(scores, metrics), *("–" for _ in halves)]
        lines.append(f"| *published:* {_plain(row.method)} | {' | '.join(cells)} |")
    return lines


def _cells(scores: Mapping[str, float], metrics: Sequence[str]) -> str:
    return " | ".join(_number(name, scores.get(name)) for name in metrics)


def _number(metric: str, value: float | None) -> str:
    return "–" if value is None else f"{value:.{DIGITS[metric]}f}"


def _extremes(results: Record) -> list[str]:
    """Worst and best entries of the first method, by its first metric."""
    method = next((name for name in results["methods"] if name in results["mean"]), None)
    metrics = [name for name in results["metrics"] if name not in results["absent"]]
    if method is None or not metrics:
        return []
    scored = [record for record in results["scenes"] if method in record["scores"]]
    lead = metrics[0]
    direction = 1 if HIGHER_IS_BETTER[lead] else -1
    ranked = sorted(scored, key=lambda record: direction * record["scores"][method]["mean"][lead])
    shown = [("Worst", ranked[:LISTED]), ("Best", ranked[::-1][:LISTED])]
    parts = []
    for title, records in shown if len(ranked) > 1 else []:
        lines = [f"## {title} entries by {lead.upper()}", ""]
        lines += [
            f"| entry | scene | {' | '.join(name.upper() for name in metrics)} |",
            "|---" * (len(metrics) + 2) + "|",
        ]
        for record in records:
            cells = _cells(record["scores"][method]["mean"], metrics)
            lines.append(f"| {_linked(record)} | {_plain(record['scene'])} | {cells} |")
        parts.append("\n".join(lines))
    return parts


def _linked(record: Record) -> str:
    """The entry's key, as a link to its contact sheet where there is one."""
    sheet = record["files"].get("contact_sheet")
    if sheet is None:
        return _plain(record["key"])
    return f"[{_plain(record['key'])}]({(scene_folder(Path(), record['key']) / sheet).as_posix()})"


def _entries(count: int) -> str:
    return f"{count:,} entry" if count == 1 else f"{count:,} entries"


def _plain(text: str) -> str:
    """Text that breaks neither a cell nor a line."""
    return " ".join(str(text).split()).replace("|", "\\|")
