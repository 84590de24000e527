"""The noise schedule against the reference's buffers and step tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_kits import golden_kits
from safetensors.torch import load_file

from reconx_pl.diffusion.sampling.ddim import ddim_timesteps
from reconx_pl.diffusion.sampling.schedule import NoiseSchedule, ScheduleConfig
from reconx_pl.diffusion.weights.released import SCHEDULE_BUFFERS
from reconx_pl.diffusion.weights.schedule_buffers import official_buffers

KITS = golden_kits("schedule*.json")
pytestmark = pytest.mark.skipif(not KITS, reason="needs the golden kit schedule.json")


@pytest.fixture(params=KITS, ids=lambda path: path.stem)
def kit(request: pytest.FixtureRequest) -> dict[str, torch.Tensor]:
    path: Path = request.param
    return load_file(path.with_suffix(".safetensors"))


def test_float64_tables(kit: dict[str, torch.Tensor]) -> None:
    tables = NoiseSchedule().tables
    torch.testing.assert_close(tables["betas"], kit["f64.betas"], atol=2e-14, rtol=0)
    torch.testing.assert_close(tables["alphas_cumprod"], kit["f64.alphas_cumprod"], atol=1e-15, rtol=0)
    assert tables["alphas_cumprod"][-1] == 0


@pytest.mark.parametrize("name", ["betas", "alphas_cumprod", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"])
def test_float32_buffers_are_equal_to_one_rounding(kit: dict[str, torch.Tensor], name: str) -> None:
    torch.testing.assert_close(getattr(NoiseSchedule(), name), kit[f"buffer.{name}"], atol=6e-8, rtol=1.2e-7)


def test_dynamic_rescale(kit: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(NoiseSchedule().scale, kit["buffer.scale_arr"][:1000], atol=6e-8, rtol=0)


def test_checkpoint_buffers_are_recomputed(kit: dict[str, torch.Tensor]) -> None:
    state = {name.removeprefix("buffer."): value for name, value in kit.items() if name.startswith("buffer.")}
    ours = official_buffers(ScheduleConfig())
    assert ours.keys() == state.keys() == SCHEDULE_BUFFERS
    for name, expected in ours.items():
        torch.testing.assert_close(state[name][:1000].double(), expected, atol=6e-8, rtol=1e-6, msg=name)


def test_step_tables(kit: dict[str, torch.Tensor]) -> None:
    checked = 0
    for name, expected in kit.items():
        if not name.startswith("ddim_timesteps."):
            continue
        _, spacing, steps = name.split(".")
        ours = ddim_timesteps(int(steps), "trailing" if spacing == "uniform_trailing" else "uniform")
        # the reference's step -1 at S = 61 is a bug that we do not reproduce
        assert torch.equal(ours, expected[expected >= 0]), name
        checked += 1
    assert checked >= 14
