"""Who finds poses and points where nobody was named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from reconx_pl.errors import ConfigurationError, MissingWeightsError
from reconx_pl.geometry.da3.pretrained import SAID, PretrainedDa3
from reconx_pl.geometry.da3.pretrained import WEIGHTS as DA3_WEIGHTS
from reconx_pl.geometry.dust3r.pretrained import WEIGHTS as DUST3R_WEIGHTS
from reconx_pl.geometry.dust3r.pretrained import PretrainedDust3r
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.geometry.estimators.colmap import ColmapEstimator
from reconx_pl.geometry.estimators.plane_sweep_estimator import PlaneSweepEstimator
from reconx_pl.geometry.refinement.estimator import RefinedEstimator

log = logging.getLogger(__name__)
GeometryName = Literal["auto", "da3-base", "da3-small", "dust3r", "colmap"]
_WITHOUT = (
    "or allow structure from motion, which needs no weights: --geometry colmap, or --geometry auto for whichever is "
    "there"
)


def named_estimator(name: GeometryName, device: str | None = None) -> PointMapEstimator:
    """Depth-Anything-3, DUSt3R, structure from motion, or the first of them that can run and may be used freely.

    Args:
        name: "da3-base", "da3-small" and "dust3r" need their weights, and those of DUSt3R are non-commercial; "colmap"
            needs none, and finds dense points by a plane sweep; "auto" takes "da3-base" if its weights are at hand, or
            else says so in the log and takes "colmap". It never takes DUSt3R.
        device: where networks and the plane sweep compute; None takes a GPU if there is one.

    Raises:
        MissingWeightsError: no weights of the one that was named; says how to get them and how to go without.
        ConfigurationError: another name.
    """
    if name == "auto":
        name = default_geometry()
    if name == "colmap":
        return PlaneSweepEstimator(ColmapEstimator(), device=device)
    if name == "da3-base" or name == "da3-small":
        if not DA3_WEIGHTS[name].is_file():
            raise MissingWeightsError(
                f"no weights of Depth-Anything-3 at {DA3_WEIGHTS[name]}: `reconx weights fetch {name}` fetches them "
                f"({SAID[name]}); {_WITHOUT}"
            )
        return PretrainedDa3(DA3_WEIGHTS[name], device=device)
    if name != "dust3r":
        raise ConfigurationError(f"geometry is auto, da3-base, da3-small, dust3r or colmap, not {name!r}")
    if not DUST3R_WEIGHTS.is_file():
        raise MissingWeightsError(
            f"no weights of DUSt3R at {DUST3R_WEIGHTS}: `reconx weights fetch dust3r-512-dpt` fetches them (2.3 GB, "
            f"CC BY-NC-SA 4.0: not for commercial use); {_WITHOUT}"
        )
    return PretrainedDust3r(device=device)


def refined_estimator(inner: PointMapEstimator) -> PointMapEstimator:
    """``RefinedEstimator`` around an estimator; structure from motion as it is, with a line in the log.

    Raises:
        ConfigurationError: another estimator that has no depth of its own.
        MissingDependencyError: pycolmap is not installed.
    """
    poses = inner.sparse if isinstance(inner, PlaneSweepEstimator) else inner
    if isinstance(poses, ColmapEstimator):
        log.info("structure from motion ends with bundle adjustment already: its cameras are not refined once more")
        return inner
    return RefinedEstimator(inner)


def default_geometry() -> GeometryName:
    """What "auto" stands for here and now, said in the log."""
    chosen = default_estimator(Path("photographs"), "poses", "--geometry")
    return "colmap" if isinstance(chosen, ColmapEstimator) else "da3-base"


def default_estimator(source: Path, lacking: str, option: str = "--estimator") -> PointMapEstimator:
    """The estimator where none was chosen: Depth-Anything-3 if its weights are at hand, or else structure from motion.

    Says so in the log, how to get the weights, and which ``option`` chooses another. DUSt3R, whose weights are
    non-commercial, has to be chosen.
    """
    chosen: PointMapEstimator
    place, said = DA3_WEIGHTS["da3-base"], SAID["da3-base"]
    if place.is_file():
        chosen, why = PretrainedDa3(), f"its weights ({said}) are at {place}"
    else:
        chosen = ColmapEstimator()
        why = f"there are no weights of Depth-Anything-3 at {place} (`reconx weights fetch da3-base`: {said})"
    log.info(
        "%s: the photographs have no %s; %s finds them, as %s. Choose another with %s",
        source, lacking, type(chosen).__name__, why, option,
    )  # fmt: skip
    return chosen
