"""Global alignment against the original: objective, gradients, pieces, and how near to the truth it ends."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_kits import Described, Held, KitTensors, golden_kits, not_held
from golden_kits import read_kit as read
from pair_scenes import errors_of
from torch import Tensor

from reconx_pl.geometry.alignment.align import align
from reconx_pl.geometry.alignment.focal import weiszfeld_focal
from reconx_pl.geometry.alignment.minimise import learning_rate
from reconx_pl.geometry.alignment.objective import objective
from reconx_pl.geometry.alignment.observations import ViewGroup, grouped
from reconx_pl.geometry.alignment.options import AlignmentOptions, FixedViews
from reconx_pl.geometry.alignment.pixels import centred_pixels, default_intrinsics
from reconx_pl.geometry.alignment.result import Alignment, cleaned
from reconx_pl.geometry.alignment.spanning_tree import edge_scores, spanning_tree
from reconx_pl.geometry.alignment.state import AlignmentState, Gauge
from reconx_pl.geometry.alignment.two_views import align_two
from reconx_pl.geometry.estimators.pair_predictions import PairPredictions

logger = logging.getLogger(__name__)  # figures: pytest --log-cli-level=INFO

KITS = [
    kit for kit in golden_kits("align_*.json") if kit.with_suffix(".safetensors").is_file()
]  # align_study holds results alone
WORSE = 1.05  # what the kits allow; better is expected
EARLY, GRADIENT, GRADIENT_AT_END = 10, 1e-3, 5e-2  # steps, and what a gradient may be off by then and later
END_NAMES = (
    "ate_rmse",
    "rel_rot_deg_mean",
    "focal_pct_mean",
    "point_err_mean",
    "point_err_median",
    "centre_err_rmse_pts_aligned",
)
PAIR_NAMES = END_NAMES[1:]
KNOWN_NAMES = END_NAMES[3:]
RAW = ("pw_poses", "im_poses", "im_focals", "im_depthmaps")  # the original's parameters

pytestmark = [
    pytest.mark.skipif(not KITS, reason="needs golden kits align_*: set RECONX_GOLDEN to a folder that has them"),
    pytest.mark.parametrize("kit", KITS, ids=lambda path: path.stem),
]


@cache
def read_kit(kit: Path) -> tuple[Described, KitTensors]:
    return read(kit, exact=True)


def predictions_of(tensors: KitTensors, rows: list[int] | None = None) -> PairPredictions:
    """Of all edges, or of some, whose views are then counted anew in ascending order."""
    rows = list(range(len(tensors["edges"]))) if rows is None else rows
    points, confidence = (
        [(tensors[f"in.{name}_i.{row:02}"].float(), tensors[f"in.{name}_j.{row:02}"].float()) for row in rows]
        for name in ("pts", "conf")
    )
    _, edges = tensors["edges"][rows].unique(return_inverse=True)
    return PairPredictions(edges, points, confidence)


def pair_rows(tensors: KitTensors) -> list[int]:
    """The two edges of the kit's results of two views."""
    if "pair.edge_ids" in tensors:
        return tensors["pair.edge_ids"].tolist()
    return [row for row, edge in enumerate(tensors["edges"].tolist()) if sorted(edge) == [0, 1]]


def options_of(info: Described, **other: Any) -> AlignmentOptions:
    """As the kit was made, but for the warm-up."""
    settings = info["settings"]
    made: dict[str, Any] = {"steps": settings["niter"]}
    names = {
        "lr": "learning_rate", "lr_min": "final_learning_rate", "conf": "weighting", "base_scale": "pair_scale"
    }  # fmt: skip
    made |= {ours: settings[name] for name, ours in names.items() if name in settings}
    return AlignmentOptions(**made | other)


def sizes_of(kit: Path) -> list[tuple[int, int]]:
    return [(height, width) for height, width in read_kit(kit)[0]["scene"]["shapes_HW"]]


def pixels_of(kit: Path) -> list[Tensor]:
    return [centred_pixels(*size) for size in sizes_of(kit)]


def state_of(tensors: dict[str, Tensor], prefix: str, groups: list[ViewGroup]) -> AlignmentState:
    pairs, views, focals, depths = (tensors[f"{prefix}.{name}"].double() for name in RAW)
    return AlignmentState(
        pairs[:, :4],
        pairs[:, 4:7],
        pairs[:, 7],
        views[:, :4],
        views[:, 4:],
        focals[:, 0],
        [depths[group.views, : group.pixels.shape[2]] for group in groups],
    )


def errors(found: Alignment, tensors: KitTensors, views: list[int] | None = None) -> dict[str, float]:
    views = list(range(len(found.points))) if views is None else views
    return errors_of(
        found.world_to_camera,
        found.intrinsics[:, 0, 0],
        found.points,
        tensors["gt.poses"][views],
        tensors["gt.focals"][views],
        [tensors[f"gt.pts.{view}"] for view in views],
    )


def assert_not_worse(found: dict[str, float], wanted: Described, names: tuple[str, ...]) -> None:
    """Of the errors that the kit measured: two views have no ``ate_rmse``."""
    with Held(wanted) as held:
        measured = dict(held.of(name for name in names if name in found))
        logger.info("; ".join(f"{name} {found[name]:.4f}, original {one:.4f}" for name, one in measured.items()))
        for name, one in measured.items():
            assert found[name] <= WORSE * one, (name, found[name], one)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_objective_at_the_originals_states(kit: Path, dtype: torch.dtype) -> None:
    info, tensors = read_kit(kit)
    groups = grouped(predictions_of(tensors), pixels_of(kit), options_of(info).weighting, dtype=dtype)
    results = info["results"]
    states = {"init.raw": results["init_loss"]} if "init_loss" in results else {}
    states |= {f"snap.{int(step):03}": loss for step, loss in results.get("loss_at", {}).items()}
    for name, loss in results.items():  # of the end, and of others between
        if step := re.fullmatch(r"loss_at_snap_(\d+)", name):
            states[f"snap.{int(step[1]):03}"] = loss
    states = {prefix: loss for prefix, loss in states.items() if all(f"{prefix}.{name}" in tensors for name in RAW)}
    if not states:
        not_held("losses at recorded parameters", kit.stem)
    for prefix, loss in states.items():
        state = state_of(tensors, prefix, groups)
        state.log_depth = [one.to(dtype) for one in state.log_depth]
        for name in ("pair_quaternion", "pair_translation", "pair_log_scale"):
            setattr(state, name, getattr(state, name).to(dtype))
        for name in ("view_quaternion", "view_translation", "view_focal"):
            setattr(state, name, getattr(state, name).to(dtype))
        gauge = Gauge.free(len(tensors["gt.focals"]), options_of(info).pair_scale, groups[0].points)
        with torch.no_grad():
            assert objective(state, gauge, groups).item() == pytest.approx(loss, rel=1e-5), prefix


def gradients_of(kit: Path) -> list[str]:
    """Steps at which the kit has gradients. Those of the start are rounding noise, as it says itself."""
    steps = read_kit(kit)[1].cases(r"grad(\d+)\.\w+")
    return sorted((step for step in steps if int(step) > 0), key=int)


def test_gradients_in_the_originals_parameters(kit: Path) -> None:
    steps = gradients_of(kit)
    if not steps:
        not_held("gradients", kit.stem)
    with Held(read_kit(kit)[1]) as held:
        for step in steps:
            check_gradient(kit, step, held)


def check_gradient(kit: Path, step: str, held: Held) -> None:
    info, tensors = read_kit(kit)
    if not held.has(*(f"snap.{int(step):03}.{name}" for name in RAW)):
        return
    groups = grouped(predictions_of(tensors), pixels_of(kit), options_of(info).weighting, dtype=torch.float64)
    state = state_of(tensors, f"snap.{int(step):03}", groups)
    gauge = Gauge.free(len(tensors["gt.focals"]), options_of(info).pair_scale, groups[0].points)
    parameters = state.parameters()
    gradient = torch.autograd.grad(objective(state, gauge, groups), parameters)
    name, tolerance = f"grad{step}", GRADIENT if int(step) <= EARLY else GRADIENT_AT_END
    width = max(one.shape[1] for one in gradient[6:])
    depths = torch.zeros(len(tensors["gt.focals"]), width, dtype=torch.float64)
    for group, one in zip(groups, gradient[6:], strict=True):
        depths[group.views, : one.shape[1]] = one
    found = {
        "pw_poses": torch.cat([gradient[0], gradient[1], gradient[2][:, None]], 1),
        "im_poses": torch.cat([gradient[3], gradient[4]], 1),
        "im_focals": gradient[5][:, None],
        "im_depthmaps": depths,
    }
    for part, value in found.items():
        for full_name, wanted in held.of([f"{name}.{part}"]):
            off = ((value - wanted).abs().max() / wanted.abs().max()).item()
            logger.info(f"{full_name}: deviation {off:.1e} of the largest")
            assert off < tolerance, (full_name, off)


def test_pieces_of_the_start(kit: Path) -> None:
    _, tensors = read_kit(kit)
    predictions, pixels = predictions_of(tensors), pixels_of(kit)
    scores = edge_scores(predictions)
    with Held(tensors) as held:
        for _, focals in held.of(["prim.focal_weiszfeld"]):
            for row, (first, _) in enumerate(predictions.edges.tolist()):
                focal = weiszfeld_focal(predictions.points[row][0].flatten(0, 1), pixels[first])
                assert focal == pytest.approx(focals[row].item(), rel=1e-5)
        for _, wanted in held.of(["prim.edge_score"]):
            assert torch.allclose(scores, wanted.to(scores), rtol=1e-5)
        for _, wanted in held.of(["init.msp_edges"]):
            tree = predictions.edges[spanning_tree(predictions.edges, scores, len(pixels))].tolist()
            # the original lists the edges as it walks along them; it starts with the strongest too
            assert sorted(tree) == sorted(wanted.tolist())
            assert tree[0] == wanted[0].tolist()


def test_schedule(kit: Path) -> None:
    info, tensors = read_kit(kit)
    if (kind := info["settings"].get("schedule", "cosine")) != "cosine":
        not_held(f"the cosine schedule, but a {kind} one", kit.stem)
    options = options_of(info, warmup=0)
    ours = torch.tensor([learning_rate(step, step, options) for step in range(options.steps)], dtype=torch.float64)
    assert torch.allclose(ours, tensors["hist.lr"].double(), rtol=1e-6)


def test_start_is_not_worse(kit: Path) -> None:
    info, tensors = read_kit(kit)
    found = align(predictions_of(tensors), options_of(info, steps=0))
    with Held(info["results"]) as held:
        for _, wanted in held.of(["init_loss"]):
            logger.info(f"loss at the start {found.losses[0]:.5f}, original {wanted:.5f}")
            assert found.losses[0] <= WORSE * wanted
        for _, wanted in held.of(["errors_init"]):
            assert_not_worse(errors(found, tensors), wanted, ("point_err_mean", "focal_pct_mean"))


# the early stop ends at 1.001 of the loss, which the kit's own tolerance of 3e-3 allows
@pytest.mark.parametrize("tolerance", [None, 1e-3], ids=["all steps", "early stop"])
def test_end_is_not_worse(kit: Path, tolerance: float | None) -> None:
    info, tensors = read_kit(kit)
    options = options_of(info, tolerance=tolerance)
    found = align(predictions_of(tensors), options)
    assert (tolerance is None) == (len(found.losses) == options.steps + 1)
    with Held(info["results"]) as held:
        for _, wanted in held.of(["final_loss_after_last_step"]):
            logger.info(f"loss {found.losses[-1]:.6f} after {len(found.losses) - 1} steps, original {wanted:.6f}")
            assert found.losses[-1] <= (1 + 3e-3) * wanted
        for _, wanted in held.of(["errors_final"]):
            assert_not_worse(errors(found, tensors), wanted, END_NAMES)


def test_early_stop_is_not_worse_than_all_steps(kit: Path) -> None:
    """Also with only some of the kit's views: problems that nothing here was chosen for."""
    info, tensors = read_kit(kit)
    edges, views = tensors["edges"].tolist(), len(tensors["gt.focals"])
    for without in [None, *range(views)] if views > 2 else [None]:
        rows = [row for row, edge in enumerate(edges) if without not in edge]
        left = sorted({view for row in rows for view in edges[row]})
        if len(left) < views - (without is not None):
            continue  # without it, others are alone
        whole, early = (
            errors(align(predictions_of(tensors, rows), options_of(info, tolerance=tolerance)), tensors, left)
            for tolerance in (None, 1e-3)
        )
        for name in ("rel_rot_deg_mean", "focal_pct_mean"):
            logger.info(f"without {without}: {name} {early[name]:.4f}, after all steps {whole[name]:.4f}")
            assert early[name] <= WORSE * whole[name], (without, name, early[name], whole[name])


def truth(kit: Path) -> FixedViews:
    tensors = read_kit(kit)[1]
    fixed = torch.ones(len(tensors["gt.focals"]), dtype=torch.bool)
    intrinsics = [
        default_intrinsics(focal, *size) for focal, size in zip(tensors["gt.focals"], sizes_of(kit), strict=True)
    ]
    return FixedViews(torch.linalg.inv(tensors["gt.poses"]), torch.stack(intrinsics), fixed, fixed)


def test_known_cameras(kit: Path) -> None:
    info, tensors = read_kit(kit)
    options = options_of(info, distances="world")
    found = align(predictions_of(tensors), options, truth(kit))
    assert found.world_to_camera.equal(truth(kit).world_to_camera.float())
    with Held(info["results"]) as held:
        for _, wanted in held.of(["variant_known_poses_and_focals"]):
            assert_same_end(found, tensors, wanted, KNOWN_NAMES)


def test_known_world_is_nearer_to_the_truth(kit: Path) -> None:
    info, tensors = read_kit(kit)
    # ours, which does not draw the points towards the cameras, is nearer to the truth in the known world itself
    theirs = torch.cat([back_projected(kit, tensors, view) for view in range(len(tensors["gt.focals"]))])
    ours = align(predictions_of(tensors), options_of(info), truth(kit)).points
    true = torch.cat([tensors[f"gt.pts.{view}"].reshape(-1, 3) for view in range(len(ours))])
    off = [(points - true).norm(dim=1).mean() for points in (torch.cat([one.reshape(-1, 3) for one in ours]), theirs)]
    logger.info(f"known world: points off by {off[0]:.4f}, original {off[1]:.4f}")
    assert off[0] < 0.8 * off[1]


def back_projected(kit: Path, tensors: dict[str, Tensor], view: int) -> Tensor:
    """Points of the original's depth in the known camera: [N, 3]."""
    depth = tensors[f"known.depth.{view}"].flatten().double()
    rays = torch.cat([pixels_of(kit)[view] / tensors["gt.focals"][view], torch.ones_like(depth)[None]])
    pose = tensors["gt.poses"][view]
    return (rays * depth).T @ pose[:3, :3].T + pose[:3, 3]


def two_views(kit: Path) -> tuple[PairPredictions, list[int]]:
    """The pair that the kit has results of, and its views."""
    _, tensors = read_kit(kit)
    rows = pair_rows(tensors)
    if not rows:
        not_held("a pair of the views 0 and 1", kit.stem)
    return predictions_of(tensors, rows), tensors["edges"][rows].unique().tolist()


def assert_same_end(
    found: Alignment, tensors: KitTensors, wanted: Described, names: tuple[str, ...], views: list[int] | None = None
) -> None:
    """Loss and errors that a variant of the original ended with."""
    with Held(wanted) as held:
        for _, loss in held.of(["loss"]):
            assert found.losses[-1] <= (1 + 3e-3) * loss
        for _, measured in held.of(["errors"]):
            assert_not_worse(errors(found, tensors, views), measured, names)


def test_two_views_closed_form(kit: Path) -> None:
    info, tensors = read_kit(kit)
    predictions, views = two_views(kit)
    found = align_two(predictions)
    with Held(tensors) as held:
        for _, focals in held.of(["pair.focals"]):
            assert torch.allclose(found.intrinsics[:, 0, 0], focals.float(), rtol=1e-4)
        for place, confidence in enumerate(found.confidence):
            for _, wanted in held.of([f"pair.conf.{place}"]):
                assert confidence.equal(wanted.float())
        if "pair" in info["results"]:
            assert_not_worse(errors(found, tensors, views), info["results"]["pair"]["errors"], PAIR_NAMES)
        else:
            held.missing.append("results.pair")


def test_two_views_optimised(kit: Path) -> None:
    info, tensors = read_kit(kit)
    predictions, views = two_views(kit)
    wanted = info["results"]["two_view_full_optimiser"]
    assert_same_end(align(predictions, options_of(info)), tensors, wanted, PAIR_NAMES, views)


def test_confidence_and_mask(kit: Path) -> None:
    info, tensors = read_kit(kit)
    found = align(predictions_of(tensors), options_of(info, steps=0))
    threshold = info["settings"].get("min_conf_thr", 3)
    with Held(tensors) as held:
        for view in range(len(found.confidence)):
            for _, wanted in held.of([f"final.conf.{view}"]):
                assert found.confidence[view].equal(wanted.float())
            for _, wanted in held.of([f"final.mask_conf_gt_{threshold:g}.{view}"]):
                assert (found.confidence[view] > threshold).equal(wanted.bool())
                if len(set(sizes_of(kit))) == 1:  # a point map is of images of one size
                    assert found.point_map(threshold).valid[view].equal(wanted.bool())


def test_cleaning(kit: Path) -> None:
    info, tensors = read_kit(kit)
    found = align(predictions_of(tensors), options_of(info, steps=0))
    views = range(len(found.confidence))
    original = replace(
        found,
        world_to_camera=torch.linalg.inv(tensors["final.poses"]),
        intrinsics=torch.stack(
            [default_intrinsics(tensors["final.focals"][view], *sizes_of(kit)[view]) for view in views]
        ),
        points=[tensors[f"final.pts3d.{view}"] for view in views],
    )
    doubted = [confidence == 1 for confidence in cleaned(original).confidence]
    with Held(tensors) as held:
        for view in views:
            for _, wanted in held.of([f"final.clean_conf.{view}"]):
                assert doubted[view].equal(wanted == 0)
