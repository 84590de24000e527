"""Focal lengths in a mapping by COLMAP: those of EXIF are kept unless the images refute them, others are searched."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from reconx_pl.geometry.estimators.colmap_mapping import FEW, NOISE, Mapper, agreement, feature_errors, noise_of

log = logging.getLogger(__name__)

# Images up to which known focal lengths are kept: starting 2 or 5 % off, those that two or three real images refine end
# 0 to 50 % off, and at more than twice the truth above flat ground (docs/geometry.md).
KEPT_FOCALS = 3
_DRIFT = 0.1  # (ours) share by which EXIF is off at most: it is rounded to millimetres, and lenses breathe
_SURE = 5.0  # (ours) log-likelihood that a free model gains by chance, at most
_DISTORTED = 0.005  # (ours) share of it gained by what no pinhole explains: distortion, rolling shutter
EXIF_ERROR = 0.03  # (ours) standard deviation of that share
ALIKE = 4.0  # (ours) features that err together: neighbours, and those of one point

# Where nothing is known: longer sides of the image, from the widest phones to short telephoto lenses.
RANGE = (0.4, 0.5, 0.65, 0.8, 1.0, 1.3, 1.7, 2.3)
_USUAL, _SPREAD = 0.8, 0.5  # (ours) what phones and compact cameras have, and how far others are, in logarithm


def model_from_known(known: Mapping[int, float], mapper: Mapper, who: str) -> Any:
    """The model of a mapping that starts from known focal lengths; None if there is none.

    Two or three images keep them. With more it maps twice, with the known ones kept and with them free, and takes the
    free ones if the images ask for it (``refuted``). A warning says so where they are more than 10 % off. (ours)

    Args:
        known: focal lengths in pixels by the number of COLMAP's camera; not empty.
        mapper: of the images.
        who: the images, for messages.
    """
    kept = mapper.model(known)
    if mapper.matches.views <= KEPT_FOCALS:
        return kept
    free = mapper.model()
    if kept is None or free is None:
        return kept or free
    # Either mapping may bend the scene, or lose an image or some points, where the other does not.
    known = {number: focal for number, focal in known.items() if free.exists_camera(number)}
    kept, free = (
        max(both, key=lambda one: (one.num_reg_images(), _agreement(one, mapper)))
        for both in ((kept, _with_focals(free, known, mapper)), (free, mapper.completed(mapper.polished(kept, ()), ())))
    )
    if kept.num_reg_images() > free.num_reg_images():
        return kept
    drifts = [free.cameras[number].mean_focal_length() / focal - 1 for number, focal in known.items()]
    noise = noise_of(feature_errors(free)[0])
    if not refuted(_agreement(kept, mapper, noise), _agreement(free, mapper, noise), drifts):
        return kept
    far = max(drifts, key=abs, default=0.0)
    if abs(far) > _DRIFT:
        log.warning(
            "the focal length found for %s is %+.0f %% off the one given (EXIF), with which the points agree less; the "
            "one found is used", who, 100 * far,
        )  # fmt: skip
    return free


def _with_focals(model: Any, focals: Mapping[int, float], mapper: Mapper) -> Any:
    """A copy of a model, completed with other focal lengths, which are kept."""
    moved = mapper.matches.pycolmap.Reconstruction(model)
    for number, focal in focals.items():
        camera = moved.cameras[number]
        lengths = len(camera.focal_length_idxs())
        camera.params = [*[focal] * lengths, *camera.params[lengths:]]
    return mapper.completed(mapper.polished(moved, focals), focals)


def refuted(kept: float, free: float, drifts: Iterable[float]) -> bool:
    """Whether the images refute known focal lengths: a likelihood ratio against what EXIF is trusted with.

    Free lengths always fit a little better, and above flat ground, or with cameras side by side, any length fits. So
    the gain in likelihood has to outweigh what chance and lens distortion give, and how improbable the found lengths
    are with a 3 % error of EXIF. Lengths that are all within these 3 % refute nothing. (ours)

    Args:
        kept: agreement of the model that keeps them (``colmap_mapping.agreement``).
        free: of the model that was free to change them.
        drifts: found over known length, less 1, of each.
    """
    drifts = list(drifts)
    if max(map(abs, drifts), default=0.0) <= EXIF_ERROR:
        return False
    idle = max(_SURE, _DISTORTED * kept / ALIKE)
    return (free - kept) / ALIKE > idle + 0.5 * sum((drift / EXIF_ERROR) ** 2 for drift in drifts)


def model_from_range(mapper: Mapper, who: str) -> Any:
    """The model of a mapping without known focal lengths; None if there is none.

    From a wrong one, mapping ends in a scene that is bent to fit, far from the right one. So up to ``FEW`` images are
    mapped with each length of ``RANGE``, the same in longer sides for all lenses, kept and then freed. From those of
    the best, by agreement and by how usual its lenses are, they are mapped once more: with a length that is nearly
    right, fewer wrong matches pass. More images tell their focal lengths better; they start from COLMAP's guess alone.
    (ours)

    Args:
        mapper: of the images.
        who: the images, for messages.
    """
    matches = mapper.matches
    if matches.views > FEW:
        return mapper.model()
    longer = max(matches.height, matches.width)
    tried = [_best_of(dict.fromkeys(matches.cameras(), sides * longer), mapper) for sides in RANGE]
    best = max((one for one in tried if one), key=lambda model: _rank(model, mapper), default=None)
    if best is None:
        return None
    found = {number: camera.mean_focal_length() for number, camera in best.cameras.items()}
    again = _best_of(found, mapper)
    if again is not None and again.num_reg_images() >= best.num_reg_images():
        best = again
    few = matches.views <= KEPT_FOCALS
    log.log(
        logging.WARNING if few else logging.INFO,
        "%s: no focal length is known (EXIF); %s of the longer side explains the photographs best%s",
        who, ", ".join(f"{camera.mean_focal_length() / longer:.2f}" for camera in best.cameras.values()),
        "; so few hardly tell it: photographs with EXIF, or more of them, do" if few else "",
    )  # fmt: skip
    return best


def _best_of(focals: Mapping[int, float], mapper: Mapper) -> Any:
    """The better of two models: one with these focal lengths, kept, and one in which they are free afterwards."""
    mapper.matches.set_focals(focals)
    kept = mapper.model(focals)
    return None if kept is None else max(kept, mapper.polished(kept, ()), key=lambda model: _rank(model, mapper))


def _agreement(model: Any, mapper: Mapper, noise: float = NOISE) -> float:
    return agreement(model, mapper.max_error, noise)


def _rank(model: Any, mapper: Mapper) -> tuple[int, float]:
    """Images of a model; of models with as many, its agreement less how improbable its lenses are."""
    longer = max(mapper.matches.height, mapper.matches.width)
    return model.num_reg_images(), _agreement(model, mapper) / ALIKE - _unusual(model, longer)


def _unusual(model: Any, longer: int) -> float:
    """How improbable the lenses of a model are: half the squared deviations from usual ones."""
    lengths = [camera.mean_focal_length() / longer for camera in model.cameras.values()]
    return 0.5 * sum((math.log(length / _USUAL) / _SPREAD) ** 2 for length in lengths)
