"""Weights of the networks that find geometry: offered, or fetched as asked, before anything long begins."""

from __future__ import annotations

import logging
from pathlib import Path

from reconx_pl.cli.console import console
from reconx_pl.cli.model_weights import agreed, processes
from reconx_pl.diffusion.weights.releases import GEOMETRY_RELEASES
from reconx_pl.errors import BadWeightsError, MissingWeightsError
from reconx_pl.geometry.da3.pretrained import SAID
from reconx_pl.geometry.default_estimator import GeometryName, default_geometry

log = logging.getLogger(__name__)
_FOLDER = Path("weights")  # where every estimator looks for its own
_RELEASED: dict[GeometryName, tuple[str, str]] = {  # what fetches it, and its size and licence in words
    "da3-base": ("da3-base", SAID["da3-base"]),
    "da3-small": ("da3-small", SAID["da3-small"]),
    "dust3r": ("dust3r-512-dpt", "2.3 GB, CC BY-NC-SA 4.0: not for commercial use"),
}


def provide_geometry(name: GeometryName, yes: bool) -> GeometryName:
    """See to it that the weights of a network that finds geometry are here, if somebody wants them fetched.

    If they are not, somebody at a terminal is asked once, in one line. Under "auto" they are only an offer: where
    nobody says yes, or they cannot be fetched, structure from motion stands in, and the log says so.

    Args:
        name: see ``named_estimator``, which refuses a network that was named and still has no weights.
        yes: fetch without asking.

    Returns:
        "da3-base" or "colmap" for "auto", else ``name``.

    Raises:
        MissingWeightsError: weights of a network that was named cannot be fetched, or several processes would do it.
        BadWeightsError: what arrived for a network that was named is not what the hub states.
    """
    wanted: GeometryName = "da3-base" if name == "auto" else name
    if wanted in _RELEASED and not (_FOLDER / GEOMETRY_RELEASES[_RELEASED[wanted][0]].saved_as).is_file():
        try:
            _offer(wanted, yes, " Without it structure from motion finds geometry." if name == "auto" else "")
        except (MissingWeightsError, BadWeightsError, OSError) as error:
            if name != "auto":
                raise
            log.warning("%s was only an offer, and the run goes on without it: %s", wanted, error)
    return default_geometry() if name == "auto" else name


def _offer(name: GeometryName, yes: bool, otherwise: str) -> None:
    """Fetch the weights if ``yes``, or if somebody at a terminal says so."""
    from reconx_pl.pretrained.fetch import fetch_release

    fetched_as, said = _RELEASED[name]
    release = GEOMETRY_RELEASES[fetched_as]
    if yes and processes() > 1:
        raise MissingWeightsError(
            f"{name} is not here, and several processes run this: fetch it once before, "
            f"`reconx weights fetch {fetched_as}`"
        )
    if yes or agreed(f"{name} ({release.title}, {said}) is not here.{otherwise} Fetch it now?"):
        console.print(f"fetching {name} ({said}): {release.notice}", highlight=False, soft_wrap=True)
        console.print(f"{name}: {fetch_release(release, _FOLDER)}", highlight=False, soft_wrap=True)
