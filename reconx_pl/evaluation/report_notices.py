"""What a reader of the report must know before the scores: what failed, what is missing, what is not to be trusted."""

from __future__ import annotations

import re
from html import escape

from reconx_pl.evaluation.records import Record
from reconx_pl.types import AlignmentQuality


def problems(results: Record) -> str:
    """The boxes above the scores."""
    parts = []
    if results["failed"]:
        items = "".join(
            f"<li><b>{escape(key)}</b>: {escape(error)}</li>" for key, error in sorted(results["failed"].items())
        )
        parts.append(f'<div class="box warn"><p><b>Failed, and not in the scores:</b></p><ul>{items}</ul></div>')
    if results["missing"]:
        names = ", ".join(escape(key) for key in results["missing"])
        parts.append(f'<div class="box warn"><p><b>Not evaluated yet:</b> {names}</p></div>')
    for name, reason in results["absent"].items():
        parts.append(
            f'<div class="box warn"><p><b>{escape(name.upper())} is not reported.</b> {_prose(reason)}</p></div>'
        )
    parts.append(_misaligned(results))
    return "".join(parts)


def alignment_note(record: Record) -> str:
    """The residual between found poses and those of the data set; empty for a scene without found poses."""
    found = record.get("alignment")
    if not found:
        return ""
    mark = '<b class="bad">bad alignment</b>' if found["suspicious"] else "alignment"
    return f'<p class="note">{mark} of found poses with the data set\'s: {escape(found["text"])}</p>'


def _misaligned(results: Record) -> str:
    """A warning that names the scenes whose found poses contradict the data set's."""
    bad = [record for record in results["scenes"] if (record.get("alignment") or {}).get("suspicious")]
    if not bad:
        return ""
    items = "".join(f"<li><b>{escape(record['key'])}</b>: {escape(record['alignment']['text'])}</li>" for record in bad)
    return (
        '<div class="box warn"><p><b>Found poses do not agree with those of the data set:</b> more than '
        f"{AlignmentQuality.MAX_DEGREES:g}° or {AlignmentQuality.MAX_PERCENT:g} % of the extent off in a view. The "
        "clouds of these scenes are not where the cameras look, and their scores mean little.</p>"
        f"<ul>{items}</ul></div>"
    )


def _prose(text: str) -> str:
    """Escaped text, with `commands` set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
