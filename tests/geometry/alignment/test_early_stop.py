"""How much of the cameras an early stop costs, on made-up scenes: ``pytest --log-cli-level=INFO`` prints the table."""

from __future__ import annotations

import logging

import pytest
import torch
from pair_scenes import PairScene, pair_scene, predictions_of, scene_errors

from reconx_pl.geometry.alignment.align import align
from reconx_pl.geometry.alignment.drift import Drift
from reconx_pl.geometry.alignment.observations import first_views, grouped
from reconx_pl.geometry.alignment.options import AlignmentOptions
from reconx_pl.geometry.alignment.pixels import centred_pixels
from reconx_pl.geometry.alignment.state import AlignmentState, Gauge
from reconx_pl.geometry.estimators.pair_predictions import PairPredictions
from reconx_pl.geometry.estimators.pairs import PairGraph

logger = logging.getLogger(__name__)

WORSE = 1.05
EARLY = AlignmentOptions(tolerance=1e-3)
# views, rows and columns, noise of single points, errors that neighbours share (as those of a network), seed
PROBLEMS = {
    "2 views": (2, (48, 64), 0.08, 0.015, 240),
    "3 views": (3, (48, 64), 0.08, 0.02, 220),
    "4 views": (4, (48, 64), 0.08, 0.02, 21),
    "4 views again": (4, (48, 64), 0.08, 0.02, 23),
    "4 portraits": (4, (64, 48), 0.08, 0.03, 80),
    "6 views": (6, (48, 64), 0.05, 0.02, 202),
    "4 views, single points": (4, (48, 64), 0.15, 0.0, 0),
}


def problem(
    views: int, size: tuple[int, int], noise: float, smooth: float, seed: int
) -> tuple[PairScene, PairPredictions]:
    """Focal lengths vary as in the kits."""
    ratios = 0.85 + 0.2 * torch.rand(views, generator=torch.Generator().manual_seed(1000 + seed))
    scene = pair_scene((size,) * views, (max(size) * ratios).tolist(), seed)
    return scene, predictions_of(scene, noise=noise, smooth=smooth, seed=seed + 7)


@pytest.mark.parametrize("name", PROBLEMS)
def test_cameras_are_as_good_as_after_all_steps(name: str) -> None:
    scene, predictions = problem(*PROBLEMS[name])
    whole, early = align(predictions), align(predictions, EARLY)
    before, after = scene_errors(whole, scene), scene_errors(early, scene)
    for error in ("rel_rot_deg_mean", "focal_pct_mean"):
        logger.info(f"{name}: {error} {before[error]:.3f}, {after[error]:.3f} after {len(early.losses) - 1} steps")
        assert after[error] <= WORSE * before[error], (error, before[error], after[error])
    assert len(early.losses) < len(whole.losses) and early.losses[-1] <= 1.001 * whole.losses[-1]


def test_a_steady_drift_is_seen_through_trembling() -> None:
    """One view turns by 1e-3 a step, another's focal length grows by 1 in 1,000; each step trembles more than that."""
    generator = torch.Generator().manual_seed(0)
    groups = grouped(predictions_of(pair_scene()), [centred_pixels(24, 32)] * 4)
    level = torch.tensor([0.0, 0.0, 0.0, 1.0])
    state = AlignmentState(
        level.repeat(12, 1), torch.zeros(12, 3), torch.zeros(12), level.repeat(4, 1), torch.zeros(4, 3),
        20 * torch.full((4,), 30.0).log(), [torch.zeros(4, 24 * 32)],
    )  # fmt: skip
    drift = Drift(state, Gauge.free(4, 0.5, groups[0].points), groups, window=10)
    for step in range(40):
        assert not drift.known
        turn, zoom = 0.001 * step + 0.01 * (torch.rand(2, generator=generator) - 0.5)
        with torch.no_grad():
            state.view_quaternion[1, 0] = turn / 2
            state.view_focal[2] = 20 * (torch.tensor(30.0).log() + zoom)
        drift.add()
    assert drift.known and drift.of_cameras(0) == 0
    assert drift.of_cameras(50) == pytest.approx(0.05, rel=0.2)
    before = state.view_focal[2].item()
    drift.move(50)
    assert (state.view_focal[2].item() - before) / 20 == pytest.approx(0.05, rel=0.2)
    with torch.no_grad():  # every pair says that its first view is turned by 0.1 more than it is
        state.pair_quaternion[:, 1] = 0.05
    other = Drift(state, drift.gauge, groups, window=1)
    for _ in range(4):
        other.add()
    assert other.disagreement() == pytest.approx(0.1, rel=0.05)


def test_first_views_of_the_edges() -> None:
    edges, sizes = PairGraph().edges(3), ((24, 32), (32, 24), (16, 16))
    predictions = predictions_of(pair_scene(sizes, (30.0, 30.0, 30.0)), edges)
    groups = grouped(predictions, [centred_pixels(*size) for size in sizes])
    assert first_views(groups).tolist() == edges[:, 0].tolist()
