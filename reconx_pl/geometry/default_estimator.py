"""Who finds poses and points where nobody was named."""

from __future__ import annotations

import logging
from pathlib import Path

from reconx_pl.geometry.colmap_estimator import ColmapEstimator
from reconx_pl.geometry.dust3r.pretrained import WEIGHTS, PretrainedDust3r
from reconx_pl.geometry.estimator import PointMapEstimator

log = logging.getLogger(__name__)


def default_estimator(source: Path, lacking: str) -> PointMapEstimator:
    """The estimator where none was chosen: DUSt3R if its weights are at hand, or else structure from motion.

    Says so in the log.
    """
    chosen: PointMapEstimator
    if WEIGHTS.is_file():
        chosen, why = PretrainedDust3r(), f"its weights (CC BY-NC-SA 4.0: not for commercial use) are at {WEIGHTS}"
    else:
        chosen, why = ColmapEstimator(), f"there are no weights of DUSt3R at {WEIGHTS}"
    log.info(
        "%s: the photographs have no %s; %s finds them, as %s. Choose another with --estimator",
        source, lacking, type(chosen).__name__, why,
    )  # fmt: skip
    return chosen
