"""The forward process: identities between its conversions, precision, meta-device initialisation, refused options."""

from __future__ import annotations

import pytest
import torch

from reconx_pl.diffusion.sampling.schedule import NoiseSchedule, ScheduleConfig
from reconx_pl.errors import ConfigurationError

EPSILON = ScheduleConfig(prediction="epsilon", zero_terminal_snr=False)


@pytest.mark.parametrize(
    "config",
    [ScheduleConfig(), EPSILON, ScheduleConfig(prediction="sample"), ScheduleConfig(rescale_end=None)],
    ids=["v", "eps", "sample", "flat"],
)
def test_perfect_output_recovers_latent_and_noise(config: ScheduleConfig) -> None:
    schedule, generator = NoiseSchedule(config), torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 5, 4, 3, 8, 8, generator=generator)
    t = torch.tensor([0, 1, 399, 400, 900])
    x_t, target = schedule.add_noise(x0, noise, t), schedule.target(x0, noise, t)
    recovered, eps = schedule.to_x0_eps(target, x_t, t)
    torch.testing.assert_close(recovered, schedule.scaled(x0, t), atol=2e-4, rtol=0)
    torch.testing.assert_close(eps, noise, atol=2e-4, rtol=0)


def test_last_step_is_pure_noise_and_its_target_the_scaled_latent() -> None:
    schedule, generator = NoiseSchedule(), torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 2, 4, 1, 4, 4, generator=generator)
    t = torch.tensor([999, 999])
    assert torch.equal(schedule.add_noise(x0, noise, t), noise)
    torch.testing.assert_close(schedule.target(x0, noise, t), -0.7 * x0)
    assert schedule.snr(t).tolist() == [0, 0]


def test_dynamic_rescale_falls_over_400_steps() -> None:
    schedule = NoiseSchedule()
    assert schedule.scale[0] == 1
    assert schedule.scale[399].item() == pytest.approx(0.7) and schedule.scale[999].item() == pytest.approx(0.7)
    assert schedule.scale[200].item() == pytest.approx(1 - 0.3 * 200 / 399)
    assert torch.equal(NoiseSchedule(ScheduleConfig(rescale_end=None)).scale, torch.ones(1000))


def test_tables_stay_float32_and_out_of_the_checkpoint() -> None:
    schedule = NoiseSchedule()
    expected = schedule.alphas_cumprod.clone()
    schedule.to(torch.bfloat16)
    assert torch.equal(schedule.alphas_cumprod, expected)
    assert not schedule.state_dict()
    x0 = torch.zeros(1, 4, 1, 4, 4, dtype=torch.bfloat16)
    assert schedule.add_noise(x0, x0, torch.tensor([5])).dtype == torch.bfloat16


def test_meta_device_initialisation_does_not_lose_the_tables() -> None:
    with torch.device("meta"):
        schedule = NoiseSchedule()
    schedule.to_empty(device="cpu")
    assert torch.equal(schedule.alphas_cumprod, NoiseSchedule().alphas_cumprod)


@pytest.mark.parametrize(
    "options",
    [
        {"prediction": "epsilon"},
        {"prediction": "x0"},
        {"linear_start": 0.1, "linear_end": 0.01},
        {"rescale_end": 0.0},
        {"rescale_steps": 2000},
        {"steps": 1},
    ],
)
def test_contradictory_options_are_refused(options: dict) -> None:
    with pytest.raises(ConfigurationError):
        ScheduleConfig(**options)
