"""Global alignment of scenes whose truth is known."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from pair_scenes import PairScene, pair_scene, predictions_of, scene_errors

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.alignment.align import align
from reconx_pl.geometry.alignment.initialisation import initialise
from reconx_pl.geometry.alignment.options import AlignmentOptions, FixedViews
from reconx_pl.geometry.alignment.pixels import centred_pixels
from reconx_pl.geometry.alignment.result import Alignment, cleaned
from reconx_pl.geometry.alignment.two_views import align_two
from reconx_pl.geometry.cameras import project, unproject
from reconx_pl.geometry.estimators.pairs import PairGraph

MIXED = ((24, 32), (32, 24), (16, 32), (24, 32))
VARIED = (34.0, 28.0, 31.0, 26.0)
FEW = AlignmentOptions(steps=60)


def fixed_of(scene: PairScene, poses: tuple[int, ...], lenses: tuple[int, ...] = ()) -> FixedViews:
    views = torch.arange(len(scene.cameras))
    return FixedViews(
        torch.cat([one.world_to_camera for one in scene.cameras]).float(),
        torch.cat([one.intrinsics for one in scene.cameras]).float(),
        torch.isin(views, torch.tensor(poses, dtype=torch.int64)),
        torch.isin(views, torch.tensor(lenses, dtype=torch.int64)),
    )


def assert_close(errors: dict[str, float], points: float, turns: float, focals: float) -> None:
    assert errors["point_err_mean"] < points, errors
    assert errors["rel_rot_deg_mean"] < turns, errors
    assert errors["focal_pct_max"] < focals, errors
    assert errors.get("ate_rmse", 0) < points, errors


@pytest.mark.parametrize(
    ("sizes", "edges"),
    [
        (((24, 32),) * 4, None),
        (MIXED, None),
        (((24, 32),) * 4, torch.tensor([[0, 1], [0, 2], [0, 3]])),  # only one view is ever a first one
        (MIXED, torch.tensor([[1, 0], [0, 2], [3, 0]])),
    ],
    ids=["complete", "mixed sizes", "star without reverse", "mixed star"],
)
def test_exact_pairs_start_at_the_truth_and_stay_there(sizes: tuple, edges: torch.Tensor | None) -> None:
    scene = pair_scene(sizes, VARIED)
    predictions = predictions_of(scene, edges)
    assert_close(scene_errors(align(predictions, AlignmentOptions(steps=0)), scene), 1e-4, 1e-3, 1e-2)
    found = align(predictions, FEW)
    assert_close(scene_errors(found, scene), 2e-3, 0.1, 0.5)
    assert found.edges.equal(predictions.edges) and found.edge_distances.max() < 1e-3


def test_noisy_pairs_end_nearer_to_the_truth_than_they_start() -> None:
    scene = pair_scene(((48, 64),) * 4, tuple(2 * focal for focal in VARIED))
    predictions = predictions_of(scene, noise=0.05)
    start, end = (scene_errors(align(predictions, AlignmentOptions(steps=steps)), scene) for steps in (0, 300))
    assert end["point_err_mean"] < 0.25 * start["point_err_mean"], (start, end)
    assert end["ate_rmse"] < 0.5 * start["ate_rmse"]
    assert_close(end, 0.02, 0.05, 0.5)


def test_loss_never_rises_above_its_start_thanks_to_the_warm_up() -> None:
    predictions = predictions_of(pair_scene(), noise=0.05)
    assert align(predictions, FEW).losses.argmax() == 0
    assert align(predictions, replace(FEW, warmup=0)).losses.argmax() > 0


def test_every_view_takes_the_focal_of_its_own_best_edge() -> None:
    """The original reads the edge before: with differing focals its start is wrong (DUSt3R issue 164)."""
    scene = pair_scene(focals=VARIED)
    start = initialise(predictions_of(scene, noise=0.01), [centred_pixels(24, 32)] * 4, FixedViews.none(4))
    assert torch.allclose(start.focal, scene.focals, rtol=5e-3)


@pytest.mark.parametrize("lenses", [(), (0, 1, 2, 3)], ids=["poses", "poses and lenses"])
@pytest.mark.parametrize("poses", [(1, 3), (0, 1, 2, 3), (2,)])
@pytest.mark.parametrize("unit", [1.0, 300.0])
def test_known_cameras_are_held_exactly_and_the_world_is_theirs(poses: tuple, lenses: tuple, unit: float) -> None:
    scene = pair_scene(focals=VARIED)
    fixed = fixed_of(scene, poses, lenses)
    fixed.world_to_camera[:, :3, 3] *= unit
    found = align(predictions_of(scene, noise=0.02), AlignmentOptions(steps=150), fixed)
    held = list(poses)
    assert found.world_to_camera[held].equal(fixed.world_to_camera[held])
    assert found.intrinsics[list(lenses)].equal(fixed.intrinsics[list(lenses)])
    assert_close(scene_errors(found, scene), 0.03, 0.1, 1.0)
    if len(poses) > 1:  # in the known world itself, no similarity between
        off = torch.stack(found.points) / unit - torch.stack(scene.points)
        assert off.norm(dim=-1).median() < (0.03 if len(poses) == 4 else 0.1)  # one baseline is a weak ruler
    for view in range(4):  # points lie on the rays of the cameras
        camera = found.camera(view)
        _, depth = project(found.points[view].reshape(-1, 3), camera)
        assert torch.allclose(unproject(depth.view(1, 24, 32), camera)[0], found.points[view], atol=2e-4 * unit)


def test_known_cameras_do_not_draw_noisy_points_towards_them() -> None:
    scene = pair_scene()
    predictions, fixed = predictions_of(scene, noise=0.05), fixed_of(scene, (0, 1, 2, 3), (0, 1, 2, 3))

    def off(distances: str) -> float:
        found = align(predictions, AlignmentOptions(steps=150, distances=distances), fixed)
        return (torch.stack(found.points) - torch.stack(scene.points)).norm(dim=-1).median().item()

    assert off("auto") == off("pair") < 0.25 * off("world")


def test_known_cameras_need_not_be_those_of_every_view() -> None:
    with pytest.raises(ConfigurationError, match="4 views"):
        align(predictions_of(pair_scene()), FEW, FixedViews.none(3))


def test_one_place_of_all_known_cameras_leaves_the_unit_free() -> None:
    scene = pair_scene()
    fixed = fixed_of(scene, (0, 1, 2, 3))
    fixed.world_to_camera[:, :3, 3] = 0
    found = align(predictions_of(scene), FEW, fixed)
    assert found.world_to_camera.equal(fixed.world_to_camera)
    depth = torch.stack([project(p.reshape(-1, 3), found.camera(v))[1] for v, p in enumerate(found.points)])
    assert depth.median() > 0.5  # it does not shrink to a point


def test_world_is_the_first_camera_and_nothing_is_random() -> None:
    predictions = predictions_of(pair_scene(), noise=0.02)
    one, two = align(predictions, FEW), align(predictions, FEW)
    assert one.world_to_camera[0].equal(torch.eye(4))
    assert one.world_to_camera.equal(two.world_to_camera) and one.losses.equal(two.losses)
    assert all(a.equal(b) for a, b in zip(one.points, two.points, strict=True))
    assert len(one.losses) == 61


@pytest.mark.parametrize(
    "context",
    [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_what_the_caller_computes_in_does_not_matter(context) -> None:
    predictions = predictions_of(pair_scene(), noise=0.02)
    alone = align(predictions, FEW)
    with context():
        inside = align(predictions_of(pair_scene(), noise=0.02), FEW)
    assert inside.losses.equal(alone.losses) and inside.points[2].equal(alone.points[2])


def test_early_stop_takes_fewer_steps_for_nearly_the_same_loss(caplog: pytest.LogCaptureFixture) -> None:
    predictions = predictions_of(pair_scene(), noise=0.03, smooth=0.03)
    whole = align(predictions, AlignmentOptions(steps=300))
    calls: list[tuple[str, int, int | None]] = []
    with caplog.at_level(logging.INFO, "reconx_pl"):
        short = align(
            predictions,
            AlignmentOptions(steps=300, tolerance=3e-3, still=1.0),
            progress=lambda *call: calls.append(call),
        )
    assert len(short.losses) < 200
    assert short.losses[-1] < 1.005 * whole.losses[-1]
    assert calls[0][1:] == (10, 300) and calls[-1][1] == calls[-1][2] == len(short.losses) - 1
    assert calls[-1][0] == f"alignment, loss {short.losses[-2].item():.4g}"
    assert f"after {len(short.losses) - 1} steps" in caplog.text


def test_raw_weights_can_be_chosen() -> None:
    scene = pair_scene()
    predictions = predictions_of(scene, noise=0.05)
    log, raw = (align(predictions, replace(FEW, weighting=mode)) for mode in ("log", "raw"))
    assert raw.losses[-1] > 2 * log.losses[-1]
    assert_close(scene_errors(raw, scene), 0.2, 1.0, 2.0)


def test_point_map_takes_the_largest_confidence_and_a_raw_threshold() -> None:
    predictions = predictions_of(pair_scene())
    found = align(predictions, AlignmentOptions(steps=0))
    seen = [
        predictions.confidence[row][pair.index(2)] for row, pair in enumerate(predictions.edges.tolist()) if 2 in pair
    ]
    assert found.confidence[2].equal(torch.stack(seen).amax(0))
    point_map = found.point_map(6.0)
    assert point_map.valid.equal(point_map.confidence > 6)
    assert 0 < point_map.valid.float().mean() < 1
    assert point_map.points[~point_map.valid].abs().max() == 0
    assert point_map.points[point_map.valid].equal(torch.stack(found.points)[point_map.valid])
    assert len(found.cameras) == 4 and found.cameras.check("alignment")
    with pytest.raises(BadSceneError, match="min_confidence"):
        found.point_map(1e9)


def test_views_of_different_sizes_are_taken_one_by_one() -> None:
    found = align(predictions_of(pair_scene(MIXED)), AlignmentOptions(steps=0))
    assert (found.camera(1).height, found.camera(1).width) == (32, 24)
    for call in (lambda: found.cameras, found.point_map):
        with pytest.raises(ConfigurationError, match="different sizes"):
            call()


def test_cleaning_doubts_what_floats_before_a_confident_view() -> None:
    scene = pair_scene()
    found = align(predictions_of(scene), AlignmentOptions(steps=0))
    found = replace(found, confidence=[torch.full((24, 32), 5.0) for _ in range(4)])
    floating = found.points[1].clone()
    center = found.camera(1).centers[0]
    floating[8:12, 12:18] = center + 0.6 * (floating[8:12, 12:18] - center)
    found.points[1] = floating
    found.confidence[1][8:12, 12:18] = 2.0
    result = cleaned(found)
    assert (result.confidence[1][8:12, 12:18] == 1).float().mean() > 0.9
    untouched = found.confidence[1] == 5
    assert result.confidence[1][untouched].equal(found.confidence[1][untouched])  # as confident as any: not doubted
    assert found.confidence[1].min() == 2  # a new object
    sure = replace(found, confidence=[torch.full((24, 32), 5.0) for _ in range(4)])
    assert all(one.min() == 5 for one in cleaned(sure).confidence)


def test_cleaning_leaves_points_that_agree() -> None:
    found = align(predictions_of(pair_scene()), AlignmentOptions(steps=0))
    twice = replace(
        found,
        world_to_camera=found.world_to_camera[[1, 1]],
        intrinsics=found.intrinsics[[1, 1]],
        points=[found.points[1]] * 2,
        confidence=[torch.full((24, 32), 5.0), torch.full((24, 32), 2.0)],
    )
    assert cleaned(twice).confidence[1].equal(twice.confidence[1])
    nearer = replace(twice, points=[found.points[1], found.camera(1).centers[0] * 0.01 + found.points[1] * 0.99])
    assert (cleaned(nearer).confidence[1] == 1).all()


@pytest.mark.parametrize("edges", [[[0, 1], [1, 0]], [[0, 1]], [[1, 0]]], ids=["both", "one", "the other"])
@pytest.mark.parametrize("lenses", [False, True])
def test_closed_form_of_two_views(edges: list, lenses: bool) -> None:
    scene = pair_scene(((24, 32), (32, 24)), (34.0, 28.0))
    given = fixed_of(scene, (), (0, 1)).intrinsics if lenses else None
    found = align_two(predictions_of(scene, torch.tensor(edges)), given)
    assert_close(scene_errors(found, scene), 1e-4, 1e-2, 1e-2)
    assert found.world_to_camera[0].equal(torch.eye(4)) and len(found.losses) == 0
    noisy = align_two(predictions_of(scene, torch.tensor(edges), noise=0.02), given)
    assert_close(scene_errors(noisy, scene), 0.05, 0.5, 3.0)


def test_closed_form_keeps_the_more_confident_order() -> None:
    scene = pair_scene(((24, 32),) * 2, (30.0, 30.0))
    predictions = predictions_of(scene, torch.tensor([[0, 1], [1, 0]]), noise=0.02)

    def depth(found: Alignment, view: int) -> torch.Tensor:
        return project(found.points[view].reshape(-1, 3), found.camera(view))[1][0]

    for row, anchor in ((0, 0), (1, 1)):
        sure = [tuple(c * (3 if edge == row else 1) for c in both) for edge, both in enumerate(predictions.confidence)]
        found = align_two(replace(predictions, confidence=sure))
        assert torch.allclose(depth(found, anchor), predictions.points[row][0][..., 2].flatten(), rtol=1e-4)
    with pytest.raises(BadSceneError, match="two views"):
        align_two(predictions_of(pair_scene()))


def test_anchored_graph_of_uneven_degrees() -> None:
    scene = pair_scene(((24, 32),) * 6, (30.0,) * 6)
    edges = PairGraph(kind="anchors", window=1, anchors=(0, 5)).edges(6)
    found = align(predictions_of(scene, edges), FEW, fixed_of(scene, (0, 5)))
    assert_close(scene_errors(found, scene), 5e-3, 0.1, 0.5)
