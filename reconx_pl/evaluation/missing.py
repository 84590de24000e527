"""What is missing from results, for those who ran the evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from reconx_pl.evaluation.records import Record

NAMED = 50  # scenes; the others are counted


def missing_entries(results: Record, own: Sequence[str] | None = None) -> Record:
    """The results with only those missing and failed entries that a process answers for.

    Args:
        results: content of results.json, of whatever was there when it was made.
        own: keys of this process; those of others may still come. None counts all.
    """
    if own is None:
        return results
    counted = set(own)
    return {
        **results,
        "missing": [key for key in results["missing"] if key in counted],
        "failed": {key: why for key, why in results["failed"].items() if key in counted},
    }


def unscored(results: Record) -> list[str]:
    """A line for each scene without scores, with why; beyond ``NAMED`` of them their number."""
    lines = [f"{key} failed: {error}" for key, error in sorted(results["failed"].items())]
    lines += [f"{key} is missing" for key in sorted(results["missing"])]
    return lines[:NAMED] + ([f"and {len(lines) - NAMED:,} more"] if len(lines) > NAMED else [])


def unfinished(results: Record) -> str:
    """What keeps results from being complete."""
    if lines := unscored(results):
        count = len(results["failed"]) + len(results["missing"])
        return f"not evaluated: {count} of {results['expected']} scenes\n  " + "\n  ".join(lines)
    if not results["expected"]:
        return "nothing to evaluate: the source holds no scene"
    return "not every scene is evaluated yet; run the same command again to go on"
