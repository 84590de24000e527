"""Weights of a release that a command needs and that are not here: said, and fetched after asking."""

from __future__ import annotations

import sys
from pathlib import Path

from reconx_pl.cli.console import console
from reconx_pl.diffusion.weights.releases import RELEASES, Release
from reconx_pl.errors import MissingWeightsError


def provide_model(name: str | None, yes: bool) -> None:
    """See to it that the weights of a model that is named by its release are here, before anything long begins.

    If they are not, it says what they are. At a terminal it asks once whether to fetch them.

    Args:
        name: as ``training.models.find_model`` takes it; what is no release is left to that.
        yes: fetch without asking.

    Raises:
        MissingWeightsError: they are not here, and nobody said yes, or they cannot be fetched.
        BadWeightsError: what arrived is not what the hub states.
    """
    if name not in RELEASES or Path(name).exists():
        return
    from reconx_pl.pretrained.fetch import fetch_release
    from reconx_pl.training.models import WEIGHTS, release_place

    if release_place(name) is not None:
        return
    release = RELEASES[name]
    needed, command = _needed(name, release, WEIGHTS / release.saved_as), f"reconx weights fetch {name}"
    if processes() > 1:
        raise MissingWeightsError(f"{needed} Several processes run this: fetch it once before, `{command}`")
    console.print(needed, highlight=False, soft_wrap=True)
    if not yes and not agreed("Fetch it now?"):
        raise MissingWeightsError(f"{name} is not here: `{command}` fetches it, and so does this command with --yes")
    console.print(f"{name}: {fetch_release(release, WEIGHTS)}", highlight=False, soft_wrap=True)


def _needed(name: str, release: Release, place: Path) -> str:
    size = "" if release.gigabytes is None else f", {release.gigabytes:g} GB"
    licence = f"Licence: {release.licence or 'see its LICENSE file, which was not read here'}."
    if release.notice:
        licence = f"{release.notice[0].upper()}{release.notice[1:]}."
    return (
        f"{name} ({release.title}) is not here. It needs {release.file} of https://huggingface.co/{release.repository}"
        f"{size}, which goes to {place}. {licence}"
    )


def processes() -> int:
    """How many run this command together, and would fetch into one file."""
    from reconx_pl.evaluation.protocols.run import process_of_run

    return process_of_run()[1]


def agreed(question: str) -> bool:
    """What somebody at a terminal answers; no where nobody is there, or several processes would ask."""
    if not sys.stdin or not sys.stdin.isatty() or processes() > 1:
        return False
    try:
        answer = console.input(f"{question} \\[y/N] ")
    except EOFError:
        return False
    return answer.strip().lower() in ("y", "yes")
