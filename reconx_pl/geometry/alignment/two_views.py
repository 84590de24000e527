"""Two views without an optimiser: the point maps of the more confident order, and the camera that saw them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError
from reconx_pl.geometry.alignment.align import assembled
from reconx_pl.geometry.alignment.checks import checked_sizes, confident
from reconx_pl.geometry.alignment.focal import weiszfeld_focal
from reconx_pl.geometry.alignment.initialisation import own_edge
from reconx_pl.geometry.alignment.observations import weights_of
from reconx_pl.geometry.alignment.options import FixedViews
from reconx_pl.geometry.alignment.pixels import centred_pixels
from reconx_pl.geometry.alignment.resection import resect
from reconx_pl.geometry.alignment.result import Alignment
from reconx_pl.geometry.alignment.spanning_tree import edge_scores
from reconx_pl.geometry.estimators.pair_predictions import PairPredictions
from reconx_pl.geometry.procrustes import fit_similarity


def align_two(
    predictions: PairPredictions, lenses: Tensor | None = None, names: Sequence[str] | None = None
) -> Alignment:
    """The closed form for one pair of images (DUSt3R, section 3.3, "recovering intrinsics" and "absolute pose").

    Focals by Weiszfeld, each from the edge that its view is the first of; the other camera's pose by resection of its
    pixels, weighted by log C. Both views keep the depths of the order with the larger product of mean confidences; the
    world is the first view's camera, the unit that order's.

    Args:
        predictions: edges (0, 1), (1, 0) or both. With one alone the second view's focal is resected with its pose.
        lenses: [2, 3, 3] known intrinsics, pixels, this package's convention.
        names: of the views, for errors.

    Raises:
        BadSceneError: not two views, or no confidence; see ``align``.
    """
    sizes = checked_sizes(predictions, names)
    if len(sizes) != 2:
        raise BadSceneError(f"the closed form is for two views, there are {len(sizes)}; use align")
    predictions = confident(predictions, names)
    fixed = FixedViews.none(2)
    if lenses is not None:
        fixed = FixedViews(fixed.world_to_camera, lenses, fixed.poses, ~fixed.poses)
    pixels = [centred_pixels(*size, None if lenses is None else lenses[view]) for view, size in enumerate(sizes)]
    scores = edge_scores(predictions)
    row = int(scores.argmax())
    anchor, other = predictions.edges[row].tolist()
    own = own_edge(predictions.edges, scores, other)
    focal = torch.zeros(2, dtype=torch.float64)
    focal[anchor] = weiszfeld_focal(predictions.points[row][0].flatten(0, 1), pixels[anchor])
    points = [one.flatten(0, 1).double() for one in predictions.points[row]]  # both in the anchor's frame
    guess = torch.eye(4, dtype=torch.float64)
    focal[other] = focal[anchor] * float(pixels[other].abs().max() / pixels[anchor].abs().max())
    if own is not None:
        alone, weights = predictions.points[own][0].flatten(0, 1), predictions.confidence[own][0].flatten()
        focal[other] = weiszfeld_focal(alone, pixels[other])
        seen = fit_similarity(points[1], alone, weights)
        guess[:3, :3], guess[:3, 3] = seen.rotation, seen.translation / seen.scale
    if lenses is not None:
        focal = lenses[:, 0, 0].double()
    weights = weights_of(predictions.confidence[row][1].flatten().double(), "log")
    pose, lens = resect(
        points[1], pixels[other], weights, guess, float(focal[other]), free_focal=own is None and lenses is None
    )
    focal[other] = lens
    depth = [torch.empty(0)] * 2
    depth[anchor], depth[other] = points[0][:, 2], (points[1] @ pose[:3, :3].T + pose[:3, 3])[:, 2]
    poses = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    if anchor == 0:
        poses[1] = torch.linalg.inv(pose)
    else:
        poses[1] = pose  # the anchor seen from the other view, which is the world
    return assembled(predictions, sizes, pixels, fixed, (poses, focal, depth), torch.zeros(0), torch.zeros(0))
