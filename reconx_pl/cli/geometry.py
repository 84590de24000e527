"""``reconx geometry``: cameras and points of photographs (docs/geometry.md)."""

from __future__ import annotations

from pathlib import Path

from reconx_pl.cli.command import command_of
from reconx_pl.cli.console import console
from reconx_pl.geometry.estimators.base import PointMapEstimator


def geometry(source: Path, out: Path, estimator: PointMapEstimator | None = None) -> None:
    """Find cameras and points of photographs; write a posed scene that pack and evaluate.py read.

    Args:
        source: folder of photographs, or a posed scene, which keeps its poses and gets new points.
        out: folder of the scene, in the layout of data/posed.md.
        estimator: how; None is structure from motion (reconx_pl.geometry.estimators.colmap.ColmapEstimator).
    """
    from reconx_pl.data.photos.posed_clip import find_geometry

    made = find_geometry(source, out, estimator)
    console.print(f"{out}: {made.views} views, {made.points} points")


COMMANDS = {"geometry": command_of(geometry)}
