"""Global alignment, from the point maps of pairs to one world (ReconX, IV-C, eq. 9; DUSt3R, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.alignment.checks import checked_sizes, confident
from reconx_pl.geometry.alignment.initialisation import Start, initialise
from reconx_pl.geometry.alignment.minimise import minimise
from reconx_pl.geometry.alignment.objective import edge_distances
from reconx_pl.geometry.alignment.observations import ViewGroup, grouped
from reconx_pl.geometry.alignment.options import AlignmentOptions, FixedViews
from reconx_pl.geometry.alignment.pixels import centred_pixels, default_intrinsics
from reconx_pl.geometry.alignment.result import Alignment
from reconx_pl.geometry.alignment.state import FOCAL_SCALE, AlignmentState, Gauge, geometry_of, quaternions, squashed
from reconx_pl.geometry.estimators.pair_predictions import PairPredictions
from reconx_pl.types import Progress


# whatever the caller computes in: gradients are wanted here, and full precision
@torch.inference_mode(False)
@torch.enable_grad()
@torch.autocast("cpu", enabled=False)
@torch.autocast("cuda", enabled=False)
def align(
    predictions: PairPredictions,
    options: AlignmentOptions = AlignmentOptions(),  # noqa: B008 (frozen)
    fixed: FixedViews | None = None,
    names: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Alignment:
    """One world for all views: start along the strongest edges, then minimise.

    Nothing in it is random: the same input gives the same result on one machine.

    Args:
        predictions: of a graph over views 0 to V - 1; sizes may differ. Edges without confidence are left out.
        options: weights and steps.
        fixed: cameras to hold; where two or more known centres differ, they set the unit of the world too.
        names: of the views, for errors.
        device: that the minimisation computes on; the start is computed on the CPU.
        progress: see ``minimise``.

    Returns:
        float32 on the CPU.

    Raises:
        BadSceneError: values that are not finite, confidence at its floor everywhere, views that no confident edge
            joins; the message names them.
        ConfigurationError: shapes that do not go together.
    """
    sizes = checked_sizes(predictions, names)
    predictions = confident(predictions, names)
    fixed = fixed.cpu() if fixed else FixedViews.none(len(sizes))
    if len(fixed.poses) != len(sizes):
        raise ConfigurationError(f"{len(fixed.poses)} known views do not go with {len(sizes)} views of the edges")
    pixels = [
        centred_pixels(*size, fixed.intrinsics[view] if fixed.lenses[view] else None) for view, size in enumerate(sizes)
    ]
    start = initialise(predictions, pixels, fixed, options.weighting)
    # The optimiser's steps suit a world of DUSt3R's scale around the origin, whatever the known cameras' is.
    unit = float(start.pairs.scale.log().mean().exp()) / options.pair_scale
    first = int(fixed.poses.int().argmax())
    origin = start.camera_to_world[first, :3, 3].clone()
    groups = grouped(predictions, pixels, options.weighting, device)
    state, gauge = opened(start, groups, fixed, origin, unit, options)
    losses = minimise(state, gauge, groups, options, progress)
    distances = edge_distances(state, gauge, groups)
    if gauge.pair_scale is not None:
        unit = 1.0
    poses, focal, depth = _closed(state, gauge, groups, len(sizes))
    poses[:, :3, 3] *= unit
    if fixed.poses.any():
        poses[:, :3, 3] += origin
    else:
        poses = torch.linalg.inv(poses[0]) @ poses
        poses[0] = torch.eye(4)
    return assembled(
        predictions,
        sizes,
        pixels,
        fixed,
        (poses, focal, [z * unit for z in depth]),
        distances.cpu().float() * unit,
        losses * unit,
    )


def assembled(
    predictions: PairPredictions,
    sizes: Sequence[tuple[int, int]],
    pixels: Sequence[Tensor],
    fixed: FixedViews,
    found: tuple[Tensor, Tensor, list[Tensor]],
    distances: Tensor,
    losses: Tensor,
) -> Alignment:
    """An ``Alignment`` from camera-to-world poses [V, 4, 4], focals [V] and depths V of [N]."""
    poses, focal, depth = found
    world_to_camera = torch.linalg.inv(poses.double()).float()
    world_to_camera[fixed.poses] = fixed.world_to_camera[fixed.poses].float()
    intrinsics = torch.stack([default_intrinsics(focal[view].float(), *size) for view, size in enumerate(sizes)])
    intrinsics[fixed.lenses] = fixed.intrinsics[fixed.lenses].float()
    points = []
    for view, (height, width) in enumerate(sizes):
        z = depth[view].double().cpu()
        rays = torch.cat([pixels[view] / focal[view], torch.ones_like(z)[None]])
        world = (rays * z).T @ poses[view, :3, :3].T + poses[view, :3, 3]
        points.append(world.view(height, width, 3).float())
    return Alignment(
        world_to_camera,
        intrinsics,
        points,
        view_confidence(predictions, sizes),
        predictions.edges,
        distances,
        losses,
    )


def view_confidence(predictions: PairPredictions, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Per view the largest raw confidence that any edge gives a pixel: V of [H, W]."""
    found = [torch.ones(size) for size in sizes]
    for pair, both in zip(predictions.edges.tolist(), predictions.confidence, strict=True):
        for view, one in zip(pair, both, strict=True):
            found[view] = torch.maximum(found[view], one.float())
    return found


def opened(
    start: Start, groups: list[ViewGroup], fixed: FixedViews, origin: Tensor, unit: float, options: AlignmentOptions
) -> tuple[AlignmentState, Gauge]:
    """Raw parameters and what is held, in the optimiser's world: ``origin`` is its origin, ``unit`` its unit."""
    like = groups[0].points
    rotation, center = start.camera_to_world[:, :3, :3], (start.camera_to_world[:, :3, 3] - origin) / unit
    scale = start.pairs.scale / unit
    # a similarity is scale (R x + t) here
    shift = (start.pairs.translation - origin) / unit / scale[:, None]
    centers = torch.linalg.inv(fixed.world_to_camera[fixed.poses].double())[:, :3, 3]
    held = len(centers) > 1 and float((centers - centers[0]).abs().max()) > 0
    in_pairs = options.distances == "pair" or (options.distances == "auto" and held)
    state = AlignmentState(
        quaternions(start.pairs.rotation).to(like),
        squashed(shift).to(like),
        scale.log().to(like),
        quaternions(rotation).to(like),
        squashed(center).to(like),
        (FOCAL_SCALE * start.focal.log()).to(like),
        [torch.stack([(start.depth[view] / unit).log() for view in group.views.tolist()]).to(like) for group in groups],
    )
    device = like.device
    return state, Gauge(
        None if held else options.pair_scale,
        fixed.poses.to(device),
        rotation.to(like),
        center.to(like),
        fixed.lenses.to(device),
        start.focal.to(like),
        options.pair_scale if in_pairs else None,
    )


@torch.no_grad()
def _closed(
    state: AlignmentState, gauge: Gauge, groups: list[ViewGroup], views: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Camera to world, focals and depths of the optimiser's world, float64 on the CPU."""
    geometry = geometry_of(state, gauge)
    poses = torch.eye(4, dtype=torch.float64).repeat(views, 1, 1)
    poses[:, :3, :3], poses[:, :3, 3] = geometry.rotation.double().cpu(), geometry.translation.double().cpu()
    depth: list[Tensor] = [torch.empty(0)] * views
    for group, log_depth in zip(groups, state.log_depth, strict=True):
        for view, row in zip(group.views.tolist(), log_depth.double().cpu().exp(), strict=True):
            depth[view] = row
    return poses, geometry.focal.double().cpu(), depth
