"""All that the doctor looks at, in the order in which things have to be mended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from reconx_pl.cli.doctor.findings import Finding, Use
from reconx_pl.cli.doctor.packages import packages
from reconx_pl.cli.doctor.storage import storage

if TYPE_CHECKING:  # the doctor runs where torch does not
    from reconx_pl.types import Progress

_AGAIN = "mend the packages above, then run reconx doctor again"


def examination(use: Use, folder: Path, verify: bool = False, progress: Progress | None = None) -> Iterator[Finding]:
    """What this machine has of what a use needs, line after line.

    Args:
        use: see ``findings.Use``.
        folder: of fetched and converted weights.
        verify: read the weights' files to their end; otherwise earlier readings of unchanged files count.
        progress: of that, counts the bytes of a file.
    """
    yield from packages(use)
    try:
        from reconx_pl.cli.doctor.machine import machine
    except Exception as error:  # of a broken package, which may raise anything
        yield Finding("machine", "processor, GPU", "missing", f"not looked at: {_first_line(error)}", _AGAIN)
    else:
        yield from machine(use)
    to_fetch = 0
    try:
        from reconx_pl.cli.doctor.pretrained import bytes_to_fetch, needed_weights, weights_lines
    except Exception as error:
        yield Finding("weights", "pretrained", "missing", f"not looked at: {_first_line(error)}", _AGAIN)
    else:
        needed = needed_weights(use, folder)
        yield from weights_lines(needed, verify, progress)
        to_fetch = bytes_to_fetch(needed)
    yield from storage(folder, to_fetch)


def as_json(use: Use, findings: list[Finding]) -> str:
    """``use``, ``complete`` (nothing that it needs is missing) and ``findings``, in the fields of ``Finding``."""
    complete = all(finding.status != "missing" for finding in findings)
    content = {"use": use, "complete": complete, "findings": [asdict(finding) for finding in findings]}
    return json.dumps(content, indent=2) + "\n"


def as_text(findings: list[Finding], color: bool = False) -> str:
    """One line each under the name of its topic, with what mends it below where it is not ok."""
    lines, topic = [], ""
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            lines.append(topic)
        status = f"{finding.status:<8}"
        if color:
            status = f"\x1b[{ {'ok': 32, 'warning': 33, 'missing': 31}[finding.status] }m{status}\x1b[0m"
        lines.append(f"  {status} {finding.name}: {finding.text}")
        if finding.remedy:
            lines.append(f"           -> {finding.remedy}")
    return "\n".join(lines) + "\n"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
