"""The noise schedule against the reference's buffers and step tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden_kits import Held, KitTensors, golden_kits, not_held, read_kit

from reconx_pl.diffusion.sampling.ddim import ddim_timesteps
from reconx_pl.diffusion.sampling.schedule import NoiseSchedule, ScheduleConfig
from reconx_pl.diffusion.weights.released import SCHEDULE_BUFFERS
from reconx_pl.diffusion.weights.schedule_buffers import official_buffers

KITS = golden_kits("schedule*.json")
pytestmark = pytest.mark.skipif(not KITS, reason="needs the golden kit schedule.json")
COMPARED = ("betas", "alphas_cumprod", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
STEPS = r"ddim_timesteps\.(.+)"


@pytest.fixture(params=KITS, ids=lambda path: path.stem)
def kit(request: pytest.FixtureRequest) -> KitTensors:
    path: Path = request.param
    return read_kit(path, exact=True)[1]


@pytest.fixture
def config(kit: KitTensors) -> ScheduleConfig:
    """The schedule whose tables the kit holds: their lengths and ends say which."""
    own = ScheduleConfig()
    if (betas := kit.get("f64.betas_before")) is not None:
        own = replace(own, steps=len(betas), linear_start=float(betas[0]), linear_end=float(betas[-1]))
    if (scale := kit.get("buffer.scale_arr")) is not None:
        own = replace(own, rescale_end=round(float(scale[-1]), 6), rescale_steps=len(scale) - own.steps)
    return own


def test_float64_tables(kit: KitTensors, config: ScheduleConfig) -> None:
    tables = NoiseSchedule(config).tables
    assert tables["alphas_cumprod"][-1] == 0
    with Held(kit) as held:
        for name, tolerance in (("betas", 2e-14), ("alphas_cumprod", 1e-15)):
            for _, expected in held.of([f"f64.{name}"]):
                torch.testing.assert_close(tables[name], expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", COMPARED)
def test_float32_buffers_are_equal_to_one_rounding(kit: KitTensors, config: ScheduleConfig, name: str) -> None:
    torch.testing.assert_close(getattr(NoiseSchedule(config), name), kit[f"buffer.{name}"], atol=6e-8, rtol=1.2e-7)


def test_dynamic_rescale(kit: KitTensors, config: ScheduleConfig) -> None:
    expected = kit["buffer.scale_arr"][: config.steps]
    torch.testing.assert_close(NoiseSchedule(config).scale, expected, atol=6e-8, rtol=0)


def test_checkpoint_buffers_are_recomputed(kit: KitTensors, config: ScheduleConfig) -> None:
    state = kit.under("buffer.")
    ours = official_buffers(config)
    assert state.keys() <= ours.keys() == SCHEDULE_BUFFERS
    with Held(kit) as held:
        for name, expected in ours.items():
            for _, found in held.of([f"buffer.{name}"]):
                torch.testing.assert_close(
                    found[: config.steps].double(), expected[: config.steps], atol=6e-8, rtol=1e-6, msg=name
                )


def test_step_tables(kit: KitTensors, config: ScheduleConfig) -> None:
    cases = kit.cases(STEPS)
    if not cases:
        not_held("tables of steps", kit.kit)
    for case in cases:
        spacing, steps = case.rsplit(".", 1)
        ours = ddim_timesteps(int(steps), "trailing" if spacing == "uniform_trailing" else "uniform", config.steps)
        # the reference's step -1 at S = 61 is a bug that we do not reproduce
        expected = kit[f"ddim_timesteps.{case}"]
        assert torch.equal(ours, expected[expected >= 0]), case
