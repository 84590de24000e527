"""Pretrained weights that a use needs: there, and whole?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from reconx_pl.cli.doctor.findings import Finding, Need, Use, lacking, need_of
from reconx_pl.pretrained.inventory import Weights, examine, inventory
from reconx_pl.types import Progress

TOPIC = "weights"
_NEEDS: dict[str, Mapping[Use, Need]] = {
    "lpips-vgg": {"basics": "required"},
    "lpips-alex": {"basics": "required"},
    "dynamicrafter-512-interp": {"train": "required", "evaluate": "useful", "reconstruct": "useful"},
    "dust3r-512-dpt": {"train": "useful"},
    "da3-base": {"train": "useful", "evaluate": "useful", "reconstruct": "useful"},
}


def needed_weights(use: Use, folder: Path) -> list[tuple[Weights, Need | None]]:
    """What the use needs, and whatever else is there; for ``all`` also what could be fetched and nothing needs."""
    known = [(weights, need_of(use, _NEEDS.get(weights.name, {}))) for weights in inventory(folder)]
    return [(weights, need) for weights, need in known if need is not None or weights.present or use == "all"]


def bytes_to_fetch(needed: list[tuple[Weights, Need | None]]) -> int:
    """Bytes of what is required and not there, but for LPIPS, which does not go into the folder of weights."""
    wanted = [weights for weights, need in needed if need == "required" and not weights.present and not weights.net]
    return sum(weights.bytes or 0 for weights in wanted)


def weights_lines(
    needed: list[tuple[Weights, Need | None]], read: bool, progress: Progress | None = None
) -> Iterator[Finding]:
    """One line for each.

    Args:
        needed: see ``needed_weights``.
        read: read all of every file; otherwise what an earlier reading of the unchanged file gave counts.
        progress: counts the bytes of a file.
    """
    for weights, need in needed:
        verdict = examine(weights, progress, read)
        size = "" if weights.bytes is None else f", {weights.bytes / 1e9:.3g} GB"
        limit = "" if weights.commercial else f"; {weights.licence}"
        text = f"{weights.purpose}{size}: {verdict.text}{limit}"
        if verdict.status == "absent" and need is None:
            text = f"{weights.purpose}{size}: not here, and nothing needs it{limit}"
            yield Finding(TOPIC, weights.name, "ok", text)
        elif verdict.status in ("verified", "unverified"):
            yield Finding(TOPIC, weights.name, "ok", f"{text} ({weights.place})")
        elif verdict.status == "unrecorded":
            yield Finding(TOPIC, weights.name, "warning", f"{text} ({weights.place})", verdict.remedy)
        else:
            yield Finding(TOPIC, weights.name, lacking(need or "useful"), text, verdict.remedy)
