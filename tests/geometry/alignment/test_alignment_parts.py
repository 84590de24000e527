"""The pieces of the alignment: pixels, weights, gradients, focals, tree, resection, schedule, options, checks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pair_scenes import PairScene, pair_scene, predictions_of
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.alignment.align import align
from reconx_pl.geometry.alignment.checks import checked_sizes, confident
from reconx_pl.geometry.alignment.focal import weiszfeld_focal
from reconx_pl.geometry.alignment.initialisation import fixed_frame
from reconx_pl.geometry.alignment.minimise import learning_rate
from reconx_pl.geometry.alignment.objective import objective
from reconx_pl.geometry.alignment.observations import grouped
from reconx_pl.geometry.alignment.options import AlignmentOptions, FixedViews
from reconx_pl.geometry.alignment.pixels import centred_pixels, default_intrinsics
from reconx_pl.geometry.alignment.resection import resect
from reconx_pl.geometry.alignment.spanning_tree import edge_scores, spanning_tree
from reconx_pl.geometry.alignment.state import AlignmentState, Gauge, geometry_of, matrices, quaternions, unsquashed
from reconx_pl.geometry.cameras import pixel_rays
from reconx_pl.geometry.estimators.pair_predictions import PairPredictions
from reconx_pl.geometry.estimators.pairs import connected_parts
from reconx_pl.types import Cameras

MIXED = ((24, 32), (32, 24), (16, 32), (24, 32))


def random_state(groups: list, edges: int, views: int, seed: int = 0) -> AlignmentState:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return AlignmentState(
        draw(edges, 4),
        draw(edges, 3),
        0.3 * draw(edges),
        draw(views, 4),
        draw(views, 3),
        70 + draw(views),
        [1 + 0.1 * draw(*group.pixels[:, 0].shape) for group in groups],
    )


def plain_objective(state: AlignmentState, gauge: Gauge, groups: list, predictions: PairPredictions, pixels: list):
    """Edge by edge, as the formula is written, in world coordinates."""
    geometry = geometry_of(state, gauge)
    world = {}
    for group, log_depth in zip(groups, state.log_depth, strict=True):
        for view, row in zip(group.views.tolist(), log_depth, strict=True):
            rays = torch.cat([pixels[view] / geometry.focal[view], torch.ones_like(row)[None]])
            world[view] = (rays * row.exp()).T @ geometry.rotation[view].T + geometry.translation[view]
    sums, areas = [0.0, 0.0], [0, 0]
    for edge, pair in enumerate(predictions.edges.tolist()):
        for side, view in enumerate(pair):
            points = predictions.points[edge][side].double().reshape(-1, 3)
            moved = points @ geometry.pair_matrix[edge].T + geometry.pair_offset[edge]
            weight = predictions.confidence[edge][side].double().reshape(-1).log()
            if gauge.ruler is not None:
                weight = weight * gauge.ruler / torch.linalg.det(geometry.pair_matrix[edge]) ** (1 / 3)
            sums[side] = sums[side] + (weight * (world[view] - moved).norm(dim=1)).sum()
            areas[side] += len(points)
    return sums[0] / areas[0] + sums[1] / areas[1]


@pytest.mark.parametrize("sizes", [((24, 32),) * 4, MIXED], ids=["one size", "mixed"])
@pytest.mark.parametrize("uneven", [False, True], ids=["complete", "uneven"])
@pytest.mark.parametrize("ruler", [None, 0.7], ids=["world", "pair"])
def test_objective_and_gradient_are_those_of_the_formula(sizes: tuple, uneven: bool, ruler: float | None) -> None:
    edges = torch.tensor([[0, 1], [1, 0], [0, 2], [3, 0], [1, 3]]) if uneven else None
    predictions = predictions_of(pair_scene(sizes), edges, noise=0.1)
    pixels = [centred_pixels(*size) for size in sizes]
    groups = grouped(predictions, pixels, dtype=torch.float64)
    assert (len(groups) == 1) == (sizes is not MIXED and not uneven)
    state = random_state(groups, len(predictions.edges), 4)
    gauge = Gauge.free(4, 0.5, groups[0].points)
    gauge = replace(
        gauge, poses=torch.tensor([False, True, False, False]), lenses=torch.tensor([True, False, False, False])
    )
    gauge.focal[0] = 33.0
    parameters = state.parameters()
    ours = objective(state, gauge, groups)
    found = torch.autograd.grad(ours, parameters)
    plain = plain_objective(state, gauge, groups, predictions, pixels)
    wanted = torch.autograd.grad(plain, parameters)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-10)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-10)
    assert found[3][1].abs().max() == 0 and found[5][0] == 0  # what is held gets no gradient


def test_raw_weights_are_the_confidence() -> None:
    predictions = predictions_of(pair_scene())
    pixels = [centred_pixels(24, 32)] * 4
    log, raw = (grouped(predictions, pixels, mode)[0].weights for mode in ("log", "raw"))
    area = 12 * 24 * 32
    assert torch.allclose((raw.double() * area).log(), log.double() * area, atol=1e-4)


def test_zero_residual_has_a_finite_gradient() -> None:
    predictions = predictions_of(pair_scene(((24, 32),) * 2, (30.0, 30.0)), torch.tensor([[0, 1]]))
    zero = tuple(torch.zeros_like(one) for one in predictions.points[0])
    groups = grouped(replace(predictions, points=[zero]), [torch.zeros(2, 768, dtype=torch.float64)] * 2)
    state = AlignmentState(
        torch.tensor([[0.0, 0, 0, 1]]),
        torch.tensor([[0.0, 0, 1.0]]).log1p(),
        torch.zeros(1),
        torch.tensor([[0.0, 0, 0, 1]] * 2),
        torch.zeros(2, 3),
        torch.zeros(2),
        [torch.full((2, 768), 0.5).log()],
    )
    parameters = state.parameters()
    loss = objective(state, Gauge.free(2, 0.5, groups[0].points), groups)
    assert loss.item() == 0
    assert all(torch.isfinite(one).all() for one in torch.autograd.grad(loss, parameters))


def test_edge_distances_find_the_bad_edge() -> None:
    scene = pair_scene()
    predictions = predictions_of(scene)
    predictions.points[7] = (predictions.points[7][0], predictions.points[7][1] * 1.3)
    distances = align(predictions, AlignmentOptions(steps=0), FixedViews.of(joined(scene))).edge_distances
    assert distances.argmax() == 7 and distances[7] > 10 * distances.median()


def joined(scene: PairScene) -> Cameras:
    first = scene.cameras[0]
    return replace(
        first,
        world_to_camera=torch.cat([one.world_to_camera for one in scene.cameras]),
        intrinsics=torch.cat([one.intrinsics for one in scene.cameras]),
    )


def test_pixels_are_ours_shifted_by_half() -> None:
    """A ray of the alignment is that of the ``Cameras`` it returns, and DUSt3R's pixel (W/2, H/2) looks straight on."""
    matrix = default_intrinsics(torch.tensor(40.0).double(), 24, 32)
    assert matrix[:2, 2].tolist() == [16.5, 12.5]
    rays = pixel_rays(Cameras(torch.eye(4).double()[None], matrix[None], 24, 32))[0]
    assert torch.allclose(centred_pixels(24, 32).T / 40, rays.reshape(-1, 3)[:, :2])
    assert rays[12, 16, :2].abs().max() < 1e-15  # an inverse rounds differently from processor to processor
    matrix[0, 2], matrix[1, 1] = 10, 50
    rays = pixel_rays(Cameras(torch.eye(4).double()[None], matrix[None], 24, 32))[0]
    assert torch.allclose(centred_pixels(24, 32, matrix).T / 40, rays.reshape(-1, 3)[:, :2])


def test_focal_from_points() -> None:
    scene = pair_scene(focals=(30.0, 24.0, 30.0, 30.0))
    inside = (
        scene.points[1] @ scene.cameras[1].world_to_camera[0, :3, :3].T + scene.cameras[1].world_to_camera[0, :3, 3]
    )
    points, pixels = inside.reshape(-1, 3), centred_pixels(24, 32)
    assert weiszfeld_focal(points, pixels) == pytest.approx(24)
    wrong = points.clone()
    wrong[:150] *= torch.tensor([2.0, 2.0, 1.0]).double()
    wrong[150:160, 2] = -1
    assert weiszfeld_focal(wrong, pixels) == pytest.approx(24, rel=0.02)  # a fifth is wrong
    assert weiszfeld_focal(wrong, pixels, reweightings=0) < 20
    weights = torch.ones(768)
    weights[:160] = 0
    assert weiszfeld_focal(wrong, pixels, weights, 0) == pytest.approx(24)


def test_spanning_tree_takes_the_strongest_edges_that_join() -> None:
    edges = torch.tensor([[0, 1], [1, 0], [1, 2], [0, 2], [2, 3], [3, 3]])
    assert spanning_tree(edges, torch.tensor([9.0, 8, 5, 7, 1, 99]), 4) == [0, 3, 4]
    predictions = predictions_of(pair_scene())
    score = edge_scores(predictions)[3]
    assert score == pytest.approx(float(predictions.confidence[3][0].mean() * predictions.confidence[3][1].mean()))


@pytest.mark.parametrize("free_focal", [False, True])
def test_resection_survives_wrong_points(free_focal: bool) -> None:
    scene = pair_scene()
    points, pixels, pose = (
        scene.points[2].reshape(-1, 3).clone(),
        centred_pixels(24, 32),
        scene.cameras[2].world_to_camera[0],
    )
    points[::5] += torch.randn(154, 3, generator=torch.Generator().manual_seed(0)).double()
    guess = scene.cameras[0].world_to_camera[0]
    found, focal = resect(points, pixels, torch.ones(768), guess, 36.0 if free_focal else 30.0, free_focal)
    assert focal == pytest.approx(30, rel=1e-3)
    assert torch.allclose(found, pose, atol=2e-3)
    assert (guess - pose).abs().max() > 0.1


def test_known_frame_takes_orientation_and_scale_from_two_cameras() -> None:
    scene = pair_scene()
    poses = torch.linalg.inv(joined(scene).world_to_camera)[:2]
    moved = poses.clone()
    turn = matrices(torch.tensor([0.1, 0.5, -0.3, 0.8]).double())
    moved[:, :3, :3] = turn @ poses[:, :3, :3]
    moved[:, :3, 3] = 3 * poses[:, :3, 3] @ turn.T + 1
    found = fixed_frame(poses, moved)
    assert found.scale.item() == pytest.approx(3)
    assert torch.allclose(found.rotation, turn)
    assert torch.allclose(found.apply(poses[:, :3, 3]), moved[:, :3, 3])
    assert fixed_frame(poses[:1], moved[:1]).scale == 1


def test_quaternions_and_translations_come_back() -> None:
    turn = matrices(torch.tensor([[0.1, -2.0, 0.3, 0.8], [0, 0, 0, 3.0]]).double())
    assert torch.allclose(matrices(5 * quaternions(turn)), turn)
    assert torch.allclose(turn[1], torch.eye(3).double())
    assert unsquashed(torch.tensor([-1.0, 0.0])).tolist() == pytest.approx([1 - 2.718281828, 0])


def test_learning_rate_warms_up_and_falls() -> None:
    options = AlignmentOptions(steps=100, warmup=10)
    rates = [learning_rate(step, step, options) for step in range(100)]
    assert rates[0] == pytest.approx(0.001) and max(rates) == rates[9]
    assert rates[50] == pytest.approx(0.005, rel=1e-3) and rates[99] < 1e-5
    assert learning_rate(0, 0, AlignmentOptions(warmup=0)) == 0.01


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": -1},
        {"window": 0},
        {"settle": 0},
        {"learning_rate": 0},
        {"final_learning_rate": 0.1},
        {"pair_scale": 0},
        {"tolerance": -1},
        {"still": -0.1},
        {"weighting": "none"},
        {"distances": "image"},
    ],
)
def test_contradictory_options_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigurationError):
        AlignmentOptions(**wrong)


def test_known_views_must_be_whole() -> None:
    with pytest.raises(ConfigurationError, match="shapes"):
        FixedViews(torch.eye(4)[None], torch.eye(3)[None], torch.ones(2).bool(), torch.ones(2).bool())
    with pytest.raises(ConfigurationError, match="bool"):
        FixedViews(torch.eye(4)[None], torch.eye(3)[None], torch.ones(1), torch.ones(1))


def test_connected_parts() -> None:
    assert connected_parts(torch.tensor([[0, 1], [3, 2]]), 5) == [[0, 1], [2, 3], [4]]


def test_edges_without_confidence_are_dropped_and_what_falls_apart_is_named() -> None:
    predictions = predictions_of(pair_scene())
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    floor = torch.ones(24, 32)
    predictions.confidence[0] = (predictions.confidence[0][0], floor)
    assert confident(predictions).edges.equal(predictions.edges[1:])
    for row, pair in enumerate(predictions.edges.tolist()):
        if 3 in pair:
            predictions.confidence[row] = (floor, predictions.confidence[row][1])
    with pytest.raises(BadSceneError, match="a.jpg, b.jpg, c.jpg; d.jpg"):
        confident(predictions, names)
    predictions.confidence[:] = [(floor, floor)] * 12
    with pytest.raises(BadSceneError, match="a.jpg, b.jpg, c.jpg, d.jpg is at its floor"):
        confident(predictions, names)


def test_unusable_predictions_are_named() -> None:
    scene = pair_scene()
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]

    def changed(points: Tensor | None = None, confidence: Tensor | None = None) -> PairPredictions:
        predictions = predictions_of(scene)
        first = predictions.points[2][0] if points is None else points
        sure = predictions.confidence[2][0] if confidence is None else confidence
        predictions.points[2] = (first, predictions.points[2][1])
        predictions.confidence[2] = (sure, predictions.confidence[2][1])
        return predictions

    assert checked_sizes(changed(), names) == [(24, 32)] * 4
    with pytest.raises(BadSceneError, match=r"edge 2 \(c.jpg, b.jpg\).*not finite"):
        checked_sizes(changed(points=torch.full((24, 32, 3), torch.nan)), names)
    with pytest.raises(BadSceneError, match=r"c.jpg.*below 1"):
        checked_sizes(changed(confidence=torch.zeros(24, 32)), names)
    with pytest.raises(ConfigurationError, match="do not go together"):
        checked_sizes(changed(points=torch.zeros(8, 8, 3), confidence=torch.ones(8, 8)), names)
    with pytest.raises(BadSceneError, match="no pair contains d.jpg"):
        checked_sizes(predictions_of(scene, torch.tensor([[0, 1], [2, 0]])), names)
    with pytest.raises(BadSceneError, match="two views"):
        checked_sizes(predictions_of(scene, torch.tensor([[0, 0]])))
    with pytest.raises(ConfigurationError, match="names"):
        confident(changed(), names[:3])
