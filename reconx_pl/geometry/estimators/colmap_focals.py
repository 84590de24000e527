"""Focal lengths that are known beforehand (EXIF), in a mapping by COLMAP: refined where the images determine them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from typing import Any

from reconx_pl.errors import BadSceneError

log = logging.getLogger(__name__)

# Images up to which known focal lengths are kept: starting 2 or 5 % off, those that two or three real images refine end
# 0 to 50 % off, and at more than twice the truth above flat ground (docs/geometry.md).
KEPT_FOCALS = 3
_DRIFT = 0.1  # (ours) share by which EXIF is off at most: it is rounded to millimetres, and lenses breathe
_AS_GOOD = 0.9  # (ours) share of the points, and of the inverse of their error


def model_from_focals(known: dict[int, float], views: int, search: Callable[[Collection[int]], Any], who: str) -> Any:
    """The model of a mapping that starts from known focal lengths.

    Two or three images keep them. More refine them, but if that leads farther away than 10 %, and the points agree as
    well with the known ones, these are kept too; if they agree less, a warning says that the known ones are wrong.
    (ours)

    Args:
        known: focal lengths in pixels by the number of COLMAP's camera; not empty.
        views: number of images.
        search: maps, with the focal lengths of the cameras of these numbers kept.
        who: the images, for messages.

    Raises:
        BadSceneError: neither mapping succeeds.
    """
    free = None
    if views > KEPT_FOCALS:
        try:
            free = search(())
        except BadSceneError as error:
            log.info("with a free focal length: %s", error)
    drift = {} if free is None else {n: free.cameras[n].mean_focal_length() / known[n] - 1 for n in known}
    far = max(drift.values(), key=abs, default=math.inf)
    if free is not None and abs(far) <= _DRIFT:
        return free
    try:
        kept = search(known)
    except BadSceneError:
        if free is None:
            raise
        kept = None
    if free is None or (kept is not None and _as_good(kept, free)):
        return kept
    log.warning(
        "the focal length found for %s is %+.0f %% off the one given (EXIF), with which the points agree less; the one "
        "found is used", who, 100 * far,
    )  # fmt: skip
    return free


def _as_good(model: Any, other: Any) -> bool:
    """Whether a model explains about as much as another, which was freer to fit."""
    for each in (model, other):
        each.update_point_3d_errors()
    errors = [each.compute_mean_reprojection_error() for each in (model, other)]
    return model.num_points3D() >= _AS_GOOD * other.num_points3D() and _AS_GOOD * errors[0] <= errors[1]
