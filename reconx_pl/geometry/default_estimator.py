"""Who finds poses and points where nobody was named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from reconx_pl.errors import ConfigurationError, MissingWeightsError
from reconx_pl.geometry.dust3r.pretrained import WEIGHTS, PretrainedDust3r
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.geometry.estimators.colmap import ColmapEstimator
from reconx_pl.geometry.estimators.plane_sweep_estimator import PlaneSweepEstimator

log = logging.getLogger(__name__)
GeometryName = Literal["auto", "dust3r", "colmap"]


def named_estimator(name: GeometryName, device: str | None = None) -> PointMapEstimator:
    """DUSt3R, structure from motion, or the first of them that can run.

    Args:
        name: "dust3r" needs its weights; "colmap" needs none, and finds dense points by a plane sweep; "auto" takes
            DUSt3R if its weights are at hand, or else says so in the log and takes "colmap".
        device: where DUSt3R and the plane sweep compute; None takes a GPU if there is one.

    Raises:
        MissingWeightsError: "dust3r" without weights; says how to get them and how to go without.
        ConfigurationError: another name.
    """
    if name == "colmap":
        return PlaneSweepEstimator(ColmapEstimator(), device=device)
    if name == "auto":
        chosen = default_estimator(Path("photographs"), "poses", "--geometry")
        return named_estimator("colmap" if isinstance(chosen, ColmapEstimator) else "dust3r", device)
    if name != "dust3r":
        raise ConfigurationError(f"geometry is auto, dust3r or colmap, not {name!r}")
    if not WEIGHTS.is_file():
        raise MissingWeightsError(
            f"no weights of DUSt3R at {WEIGHTS}: `reconx weights fetch dust3r-512-dpt` fetches them (2.3 GB, "
            "CC BY-NC-SA 4.0: not for commercial use); or allow structure from motion, which needs no weights: "
            "--geometry colmap, or --geometry auto for whichever is there"
        )
    return PretrainedDust3r(device=device)


def default_estimator(source: Path, lacking: str, option: str = "--estimator") -> PointMapEstimator:
    """The estimator where none was chosen: DUSt3R if its weights are at hand, or else structure from motion.

    Says so in the log, and which ``option`` chooses another.
    """
    chosen: PointMapEstimator
    if WEIGHTS.is_file():
        chosen, why = PretrainedDust3r(), f"its weights (CC BY-NC-SA 4.0: not for commercial use) are at {WEIGHTS}"
    else:
        chosen, why = ColmapEstimator(), f"there are no weights of DUSt3R at {WEIGHTS}"
    log.info(
        "%s: the photographs have no %s; %s finds them, as %s. Choose another with %s",
        source, lacking, type(chosen).__name__, why, option,
    )  # fmt: skip
    return chosen
