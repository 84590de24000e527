"""Rough poses of views, polished: matches near their epipolar lines, bundle adjustment, and the same once more."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.estimators.colmap_focals import ALIKE, KEPT_FOCALS, refuted
from reconx_pl.geometry.estimators.colmap_mapping import noise_of
from reconx_pl.geometry.estimators.colmap_matches import MIN_MATCHES, groups
from reconx_pl.geometry.procrustes import Similarity, fit_similarity
from reconx_pl.geometry.refinement.bundle import Bundle, adjust
from reconx_pl.geometry.refinement.depth_factors import depth_factors
from reconx_pl.geometry.refinement.matching import Features, Matches, close_matches, rough_matches
from reconx_pl.geometry.refinement.tracks import Tracks, points_of_depth, tracks_of, triangulated
from reconx_pl.geometry.similarity import alignment_quality
from reconx_pl.types import Cameras, Progress

log = logging.getLogger(__name__)

_ROUGH, _CLOSE = (8.0, 2.0, 0.5), (1.0, 0.5)  # scales of the loss in max_error: of the first round, of the second
_FARTHEST = 25.0  # (ours) percent of the extent of the cameras that a centre moves at most
# (ours) Factor by which the depth of a view is off that of the other views, or that of all views off the distances of
# the centres, at most: what contradicts the given depth more follows from too few points, or a wrong focal length.
_DEPTHS = 1.15


@dataclass(frozen=True)
class RefinementOptions:
    """How poses are polished.

    Args:
        tolerance: degrees by which given poses may be off: half the width of the band around their epipolar lines in
            which features are matched first, and the farthest that a view is turned.
        max_error: pixels between a point and its features, at most; also between a match and its epipolar line in the
            second round.
        features: most SIFT features of an image.
        neighbours: views that each view is matched with, those that it shares most with.
        min_points: fewer points of views that hang together refine nothing.
        min_angle: degrees between the rays of a point, at least, for it to tell the scale of a depth map.
        seed: of COLMAP's random choices.

    Raises:
        ConfigurationError: options out of range.
    """

    tolerance: float = 8.0
    max_error: float = 2.0
    features: int = 4096
    neighbours: int = 9
    min_points: int = 50
    min_angle: float = 1.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.tolerance < 45 and 0 < self.min_angle < 90 and self.max_error > 0):
            raise ConfigurationError(
                f"tolerance {self.tolerance} or min_angle {self.min_angle} degrees, or max_error {self.max_error} "
                "pixels, is out of range: below 45, below 90, and all positive"
            )
        if min(self.features, self.neighbours, self.min_points) < 1 or self.seed < 0:
            raise ConfigurationError("features, neighbours and min_points are positive, and seed is not negative")


@dataclass(frozen=True)
class RoughViews:
    """What is known of V views whose poses are to be polished.

    Args:
        given: their cameras.
        start: the same with the intrinsics to start from, equal for views of one lens.
        depth: [V, H, W] in the world of the cameras; 0 = none.
        features: SIFT features.
        pairs: of views to match.
        lenses: [V] views of one number share their intrinsics.
        names: for the log.
    """

    given: Cameras
    start: Cameras
    depth: Tensor
    features: Features
    pairs: Sequence[tuple[int, int]]
    lenses: Sequence[int]
    names: Sequence[str]


def polish(rough: RoughViews, options: RefinementOptions, progress: Progress | None = None) -> list[Bundle]:
    """What explains the features of views that hang together better than the given cameras do.

    Each bundle is in the world of the given cameras: moved there by the similarity of its poses to theirs. Views that
    are in none of them keep what was given; the log says why. See docs/geometry.md for the rules.
    """
    matches = rough_matches(rough.features, rough.start, rough.pairs, options.tolerance, options.seed, progress)
    together = groups(len(rough.given), matches)
    alone = [rough.names[views[0]] for views in together if len(views) == 1]
    if alone:
        log.info("poses kept as given, for want of matches with other photographs: %s", ", ".join(alone))
    found = (_group(rough, matches, views, options) for views in together if len(views) > 1)
    return [bundle for bundle in found if bundle is not None]


def _group(rough: RoughViews, matches: Matches, views: list[int], options: RefinementOptions) -> Bundle | None:
    """The bundle of views that hang together, less those that it would carry off; None where it is no better."""
    while len(views) > 1:
        matches = {pair: found for pair, found in matches.items() if set(pair) <= set(views)}
        bundle, tracks = _two_rounds(rough, matches, views, options)
        try:
            bundle, strayed = _aligned(rough, bundle, views, options)
        except BadSceneError as error:  # all in one place
            log.info("poses kept as given: %s", error)
            return None
        if strayed is None:
            called = ", ".join(rough.names[view] for view in views)
            doubt = _doubt(rough.given, bundle, tracks, views, options)
            if doubt is None:
                log.info("poses refined by %d points: %s", len(bundle.tracks), called)
                return bundle
            log.info("poses kept as given: %s (%s)", called, doubt)
            return None
        log.info("pose kept as given, as its matches do not determine another: %s", rough.names[strayed])
        views = groups(len(rough.given), {pair: found for pair, found in matches.items() if strayed not in pair})[0]
    return None


def _two_rounds(
    rough: RoughViews, matches: Matches, views: Sequence[int], options: RefinementOptions
) -> tuple[Bundle, Tracks]:
    """Bundle adjustment from the given cameras and depth, then with matches near the lines of the cameras found."""
    lenses, bound = rough.lenses, options.max_error
    tracks = tracks_of(matches, rough.features)
    points = points_of_depth(tracks, rough.start, rough.depth)
    bundle = adjust(rough.start, tracks, points, [bound * scale for scale in _ROUGH], bound, lenses)
    pairs = [pair for pair in rough.pairs if set(pair) <= set(views)]
    close = close_matches(rough.features, bundle.cameras, pairs, bound)
    if not close:
        return bundle, tracks
    tracks = tracks_of(close, rough.features)
    scales = [bound * scale for scale in _CLOSE]
    points = triangulated(tracks, bundle.cameras)
    kept = adjust(bundle.cameras, tracks, points, scales, bound, lenses)
    if len(views) <= KEPT_FOCALS:
        return kept, tracks
    free = adjust(bundle.cameras, tracks, points, scales, bound, lenses, free_focals=True)
    first = {lenses[view]: view for view in views}.values()  # one view of each lens
    drifts = [float(free.cameras.intrinsics[v, 0, 0] / kept.cameras.intrinsics[v, 0, 0]) - 1 for v in first]
    if not len(free.tracks):
        return kept, tracks
    noise = noise_of(free.errors)
    is_refuted = refuted(kept.agreement(bound, noise), free.agreement(bound, noise), drifts)
    return (free if is_refuted else kept), tracks


def _aligned(
    rough: RoughViews, bundle: Bundle, views: list[int], options: RefinementOptions
) -> tuple[Bundle, int | None]:
    """The bundle in the world of the given cameras, and the view that it carries off farthest beyond what may be.

    The rotation is the mean of those between the orientations, as centres of rough poses near each other tell less. The
    scale is that of the depth maps, or of the distances of the centres where too few points have depth.
    """
    given = rough.given[views].to(dtype=torch.float64)
    axes, found = given.world_to_camera[:, :3, :3], bundle.cameras.world_to_camera[views, :3, :3]
    source, target = (torch.cat([rows, -rows]).flatten(0, 1) for rows in (found, axes))
    turn = fit_similarity(source, target, with_scale=False)
    x, y = bundle.cameras.centers[views], given.centers
    mean_x, mean_y = x.mean(0), y.mean(0)
    factors = depth_factors(bundle, rough.depth, options.min_angle)
    known = factors[torch.isfinite(factors)]
    scale = (
        1 / known.log().mean().exp() if len(known) else torch.tensor(_spread(given) / _spread(bundle.cameras[views]))
    )
    similarity = Similarity(scale, turn.rotation, mean_y - scale * (turn.rotation @ mean_x))
    cameras = similarity.transform_cameras(bundle.cameras)
    points = similarity.apply(torch.from_numpy(bundle.points)).numpy()
    quality = alignment_quality(cameras[views], given)
    turns, ways = np.array(quality.rotation_degrees), np.array(quality.translation_percent)
    apart = (factors[views].log() - known.log().median()).abs().nan_to_num(0.0).numpy() if len(known) else 0.0
    excess = np.maximum(np.maximum(turns / options.tolerance, ways / _FARTHEST), apart / math.log(_DEPTHS))
    seen = np.bincount(bundle.tracks.views, minlength=len(rough.given))[views]
    excess[seen < MIN_MATCHES] = np.inf
    worst = int(excess.argmax())
    return replace(bundle, cameras=cameras, points=points), views[worst] if excess[worst] > 1 else None


def _spread(cameras: Cameras) -> float:
    """How far the centres are from their mean, world units."""
    centers = cameras.centers.double()
    return float((centers - centers.mean(0)).norm())


def _doubt(given: Cameras, bundle: Bundle, tracks: Tracks, views: list[int], options: RefinementOptions) -> str | None:
    """Why the given cameras are kept, if they are.

    The last reason is that the features do not refute them: what the likelihood gains, points fitted to the given
    cameras too, is no more than the number of things that changed (Akaike's criterion).
    """
    if len(bundle.tracks) < options.min_points:
        return f"{len(bundle.tracks)} points, fewer than {options.min_points}"
    stretch = _spread(bundle.cameras[views]) / _spread(given[views])
    if not 1 / _DEPTHS < stretch < _DEPTHS:
        return f"the cameras would be {stretch:.2f} times as far apart, against the depth given"
    bound, noise = options.max_error, noise_of(bundle.errors)
    scales, own = [bound * scale for scale in _CLOSE], list(range(len(given)))
    before = adjust(given, tracks, triangulated(tracks, given), scales, bound, own, fixed_poses=True)
    gain = (bundle.agreement(bound, noise) - before.agreement(bound, noise)) / ALIKE
    # a pose is six numbers, a similarity seven
    return None if gain > 6 * len(views) - 7 else "their features agree with the given ones as well"
