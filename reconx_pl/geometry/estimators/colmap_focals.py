"""Focal lengths that are known beforehand (EXIF), in a mapping by COLMAP: refined where the images refute them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from typing import Any

from reconx_pl.errors import BadSceneError

log = logging.getLogger(__name__)

# Images up to which known focal lengths are kept: starting 2 or 5 % off, those that two or three real images refine end
# 0 to 50 % off, and at more than twice the truth above flat ground (docs/geometry.md).
KEPT_FOCALS = 3
_DRIFT = 0.1  # (ours) share by which EXIF is off at most: it is rounded to millimetres, and lenses breathe
_EXIF_ERROR = 0.03  # (ours) standard deviation of that share
_ALIKE = 4.0  # (ours) features that err together: neighbours, and those of one point
_AS_MANY = 0.9  # (ours) share of the features in the points of a model, below which it is the worse one


def model_from_focals(known: dict[int, float], views: int, search: Callable[[Collection[int]], Any], who: str) -> Any:
    """The model of a mapping that starts from known focal lengths.

    Two or three images keep them. With more it maps twice, with the known ones kept and with them free, and takes the
    free ones if the images ask for it (``refuted``). A warning says so where they are more than 10 % off. (ours)

    Args:
        known: focal lengths in pixels by the number of COLMAP's camera; not empty.
        views: number of images.
        search: maps, with the focal lengths of the cameras of these numbers kept.
        who: the images, for messages.

    Raises:
        BadSceneError: neither mapping succeeds.
    """
    if views <= KEPT_FOCALS:
        return search(known)
    try:
        free = search(())
    except BadSceneError as error:
        log.info("with a free focal length: %s", error)
        return search(known)
    try:
        kept = search(known)
    except BadSceneError as error:
        log.info("with the focal length given: %s", error)
        kept = None
    drifts = [free.cameras[number].mean_focal_length() / focal - 1 for number, focal in known.items()]
    if kept is not None and not refuted(residuals(kept), residuals(free), drifts):
        return kept
    far = max(drifts, key=abs)
    if abs(far) > _DRIFT:
        log.warning(
            "the focal length found for %s is %+.0f %% off the one given (EXIF), with which the points agree less; the "
            "one found is used", who, 100 * far,
        )  # fmt: skip
    return free


def refuted(kept: tuple[int, float], free: tuple[int, float], drifts: Iterable[float]) -> bool:
    """Whether the images refute known focal lengths: a likelihood ratio against what EXIF is trusted with.

    Free lengths always fit a little better, and above flat ground, or with cameras side by side, any length fits. So
    the gain in likelihood, of Gaussian errors in pixels, has to outweigh how improbable the found lengths are with a
    3 % error of EXIF. (ours)

    Args:
        kept: features in the points of the model that keeps them, and the mean square of their points' errors, pixels.
        free: the same of the model that was free to change them.
        drifts: found over known length, less 1, of each.
    """
    if min(kept[0], free[0]) < _AS_MANY * max(kept[0], free[0]):
        return kept[0] < free[0]
    gain = free[0] / _ALIKE * (kept[1] / max(free[1], 1e-12) - 1)
    return gain > sum((drift / _EXIF_ERROR) ** 2 for drift in drifts)


def residuals(model: Any) -> tuple[int, float]:
    """Features in the points of a model, and the mean square over them of the error of their point, in pixels."""
    model.update_point_3d_errors()
    points = [model.points3D[number] for number in model.point3D_ids()]
    count = sum(point.track.length() for point in points)
    return count, sum(point.track.length() * point.error**2 for point in points) / max(1, count)
