"""Known poses as the network wants to hear them, and the scale between their world and the network's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError
from reconx_pl.geometry.procrustes import Similarity, fit_similarity

_LEAST_DIVISOR = 0.1  # world units
_MANY = 10  # views, from which on some poses may be wrong
_DRAWS, _SEED = 10, 42
_LEAST_POINTS = 3  # of a similarity
_ONE_PLACE = 1e-6  # of the distance to the origin: centres that spread less are one place


def normalised_poses(world_to_camera: Tensor, two_view_baseline: bool = False) -> Tensor:
    """Poses in the frame of the first camera, with a median distance from it of about 1.

    The divisor is the median over all views, the first one's zero among them and the lower of two in the middle, and
    at least 0.1. Of two views it is therefore 0.1, whatever their baseline: so the original.

    Args:
        world_to_camera: [V, 4, 4].
        two_view_baseline: (ours) two views are divided by their baseline.

    Returns:
        [V, 4, 4] of the type of the poses; computed in float64.
    """
    poses = world_to_camera.double()
    relative = poses @ torch.linalg.inv(poses[:1])
    distances = torch.linalg.inv(relative)[:, :3, 3].norm(dim=-1)
    divisor = distances.median().clamp(min=_LEAST_DIVISOR)
    if two_view_baseline and len(poses) == 2 and distances[1] > 0:
        divisor = distances[1]
    relative[:, :3, 3] /= divisor
    return relative.to(world_to_camera)


def centers_of(world_to_camera: Tensor) -> Tensor:
    """[V, 4, 4] to optical centres [V, 3], float64."""
    poses = world_to_camera.double()
    return -(poses[:, :3, :3].transpose(1, 2) @ poses[:, :3, 3:]).squeeze(-1)


def fitted_centers(given: Tensor, predicted: Tensor) -> Similarity:
    """The similarity of camera centres; from ten views on the best of ten draws of half of them, as the original.

    Args:
        given: [V, 3] centres.
        predicted: [V, 3] centres of the same views.

    Raises:
        BadSceneError: fewer than three, or on a line: see ``fit_similarity``.
    """
    first = fit_similarity(given, predicted)
    views = len(given)
    if views < _MANY:
        return first
    nearest = torch.cdist(first.apply(given), predicted).amin(1)
    tolerance = float(np.median(nearest.cpu().numpy()))
    generator = np.random.default_rng(_SEED)
    best: tuple[int, float] | None = None
    kept = torch.ones(views, dtype=torch.bool, device=given.device)
    for _ in range(_DRAWS):
        drawn = generator.choice(views, max(_LEAST_POINTS, (views + 1) // 2), replace=False)
        try:
            fit = fit_similarity(given[drawn], predicted[drawn])
        except BadSceneError:  # drawn on a line
            continue
        errors = (fit.apply(given) - predicted).norm(dim=-1)
        inliers = errors <= tolerance
        count = int(inliers.sum())
        if count < _LEAST_POINTS:
            continue
        rank = (count, -float(errors[inliers].mean()))
        if best is None or rank > best:
            best, kept = rank, inliers
    try:
        return fit_similarity(given[kept], predicted[kept])
    except BadSceneError:
        return first


def scale_of_prediction(given: Tensor, predicted: Tensor) -> float:
    """Units of the network's world for one of the given cameras' world: depths are divided by it.

    Args:
        given: [V, 4, 4] world to camera.
        predicted: [V, 4, 4] of the network.

    Returns:
        of one view 1, as nothing follows from it. (ours) Of two views, and of centres on a line, where the original
        fails, the ratio of the spreads of the centres: of two the ratio of the baselines.

    Raises:
        BadSceneError: several cameras in one place, given or predicted.
    """
    if len(given) == 1:
        return 1.0
    x, y = centers_of(given), centers_of(predicted)
    spreads = []
    for centers, whose in ((x, "given"), (y, "network's")):
        spread = (centers - centers.mean(0)).norm()
        if not spread > _ONE_PLACE * centers.norm(dim=-1).max():
            raise BadSceneError(
                f"the {whose} cameras are all in one place, so that no scale of the depth follows; use views from "
                "other places, or one view"
            )
        spreads.append(spread)
    if len(given) >= _LEAST_POINTS:
        try:
            return float(fitted_centers(x, y).scale)
        except BadSceneError:  # on a line
            pass
    return float(spreads[1] / spreads[0])
