"""``reconx doctor``, with a parser of its own that needs no package: it runs where the others do not import."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from reconx_pl.cli.doctor.examination import as_json, as_text, examination
from reconx_pl.cli.doctor.findings import USES, Use
from reconx_pl.errors import ReconXError


def doctor(use: Use = "basics", json: bool = False, verify: bool = False, folder: Path = Path("weights")) -> None:
    """Look at what this machine has of what the package needs, and say what mends the rest.

    Exit code 1 if anything is missing without which the chosen use fails.

    Args:
        use: basics (what make demo needs), train (at full size), evaluate, reconstruct, or all.
        json: write one JSON object instead of lines.
        verify: read every file of weights and compare its SHA-256; otherwise what an earlier reading gave counts.
        folder: of fetched and converted weights.
    """
    if verify:
        from rich.progress import DownloadColumn

        from reconx_pl.cli.console import progress_bar

        with progress_bar("reading", DownloadColumn()) as progress:
            findings = list(examination(use, folder, True, progress))
    else:
        findings = list(examination(use, folder))
    sys.stdout.write(as_json(use, findings) if json else as_text(findings, color=sys.stdout.isatty()))
    sys.stdout.flush()
    missing = [finding.name for finding in findings if finding.status == "missing"]
    if missing:
        raise ReconXError(f"missing for --use {use}: {', '.join(missing)}")


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``reconx doctor`` alone."""
    parser = argparse.ArgumentParser(prog="reconx doctor", description=(doctor.__doc__ or "").splitlines()[0])
    parser.add_argument("--use", choices=USES, default="basics", help="what it shall suffice for (default: basics)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--verify", action="store_true", help="read every file of weights and compare its SHA-256")
    parser.add_argument("--folder", type=Path, default=Path("weights"), help="of the weights (default: weights)")
    return parser


def main(args: list[str] | None = None) -> None:
    """Run ``reconx doctor``."""
    chosen = build_parser().parse_args(args)
    try:
        doctor(**vars(chosen))
    except ReconXError as error:
        sys.exit(f"error: {error}")
