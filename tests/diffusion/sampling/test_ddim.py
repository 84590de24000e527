"""DDIM: against diffusers' scheduler, against a Gaussian whose answer is known, and its edge cases."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reconx_pl.diffusion.sampling.ddim import DDIMSampler, SamplerStep, ddim_timesteps
from reconx_pl.diffusion.sampling.schedule import NoiseSchedule, ScheduleConfig
from reconx_pl.errors import ConfigurationError

# step counts for which the reference's float32 radicand is negative at eta = 1
NAN_COUNTS = (7, 11, 14, 15, 20, 25, 33, 34, 35, 37, 38, 39, 62, 63, 64)
FLAT = ScheduleConfig(rescale_end=None)
EPSILON = ScheduleConfig(prediction="epsilon", zero_terminal_snr=False)
SAMPLE = ScheduleConfig(prediction="sample")


def _toy(x: Tensor, t: Tensor) -> Tensor:
    return 0.3 * x + 0.2 * torch.cos(3 * x) + 0.1 * (t.float() / 1000).view(-1, 1, 1, 1, 1)


def _gaussian(schedule: NoiseSchedule, mean: float, std: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The best possible v (epsilon, sample) for latents drawn from N(mean, std^2)."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        a, s = schedule.tables["alphas_cumprod"][t[0]].item(), schedule.tables["scale"][t[0]].item()
        m, v = s * mean, (s * std) ** 2  # the model sees the rescaled latent
        x0 = m + v * a**0.5 / (a * v + 1 - a) * (x - a**0.5 * m)
        eps = (x - a**0.5 * x0) / (1 - a) ** 0.5
        return {"epsilon": eps, "sample": x0, "v": a**0.5 * eps - (1 - a) ** 0.5 * x0}[schedule.config.prediction]

    return denoise


@pytest.mark.parametrize(("steps", "eta"), [(5, 0.0), (10, 0.5), (50, 0.0), (50, 0.9)])
def test_agrees_with_diffusers(steps: int, eta: float) -> None:
    # not at eta = 1: there diffusers 0.42 gives NaN, from the same radicand as the reference
    from diffusers import DDIMScheduler

    reference = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    reference.set_timesteps(steps)
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(1, 4, 2, 4, 4, generator=generator)
    noise = torch.randn(steps, 1, 4, 2, 4, 4, generator=generator)
    x = start
    for i, t in enumerate(reference.timesteps):
        x = reference.step(_toy(x, t[None]), int(t), x, eta=eta, variance_noise=noise[i]).prev_sample
    ours = DDIMSampler(NoiseSchedule(FLAT), steps, eta).sample(_toy, tuple(start.shape), start=start, noise=noise)
    torch.testing.assert_close(ours, x, atol=1e-3 * x.abs().max().item(), rtol=0)


@pytest.mark.parametrize("config", [ScheduleConfig(), FLAT, EPSILON, SAMPLE], ids=["v", "flat", "epsilon", "sample"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_samples_of_a_gaussian_have_its_moments(config: ScheduleConfig, eta: float) -> None:
    schedule, generator = NoiseSchedule(config), torch.Generator().manual_seed(0)
    shape = (40, 4, 4, 8, 8)
    clean, noise = 1.5 + 0.5 * torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    start = schedule.add_noise(clean, noise, torch.full((40,), 999))  # without zero terminal SNR not quite noise
    sampler = DDIMSampler(schedule, steps=200, eta=eta, last_step="corrected")
    out = sampler.sample(_gaussian(schedule, 1.5, 0.5), shape, generator, start=start)
    assert out.mean().item() == pytest.approx(1.5, abs=0.02)
    assert out.std().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("steps", "shrunk"), [(5, 0.85), (50, 0.986)])
def test_official_last_step_keeps_its_rescale(steps: int, shrunk: float) -> None:
    schedule = NoiseSchedule()
    means = {}
    for last_step in ("official", "corrected"):
        sampler = DDIMSampler(schedule, steps, eta=0.0, last_step=last_step)
        means[last_step] = sampler.sample(
            _gaussian(schedule, 1.0, 0.01), (1, 4, 1, 8, 8), torch.Generator().manual_seed(0)
        ).mean()
    assert means["corrected"].item() == pytest.approx(1, abs=0.02)
    assert (means["official"] / means["corrected"]).item() == pytest.approx(shrunk, abs=0.01)


@pytest.mark.parametrize("steps", NAN_COUNTS)
def test_no_step_count_gives_nan(steps: int) -> None:
    out = DDIMSampler(NoiseSchedule(), steps, eta=1.0).sample(_toy, (1, 1, 1, 2, 2), torch.Generator().manual_seed(0))
    assert torch.isfinite(out).all()


def test_timesteps_are_valid_for_every_count() -> None:
    for steps in range(1, 1001):
        visited = ddim_timesteps(steps)
        assert visited[0] >= 0 and visited[-1] == 999 and (visited.diff() > 0).all(), steps
        assert len(visited) == steps
    assert ddim_timesteps(7, "uniform").tolist() == [1, 143, 285, 427, 569, 711, 853, 995]


@pytest.mark.parametrize(("steps", "spacing"), [(0, "trailing"), (1001, "trailing"), (600, "uniform"), (5, "leading")])
def test_impossible_step_counts_are_refused(steps: int, spacing: str) -> None:
    with pytest.raises(ConfigurationError):
        ddim_timesteps(steps, spacing)


def test_noise_is_drawn_in_the_references_order() -> None:
    generator, seen = torch.Generator().manual_seed(5), []
    sampler = DDIMSampler(NoiseSchedule(), steps=4, eta=1.0)
    shape = (1, 4, 1, 4, 4)
    drawn = sampler.sample(_toy, shape, generator, callback=seen.append)
    recorded = torch.Generator().manual_seed(5)
    start, *noise = (torch.randn(shape, generator=recorded) for _ in range(5))
    assert torch.equal(drawn, sampler.sample(_toy, shape, start=start, noise=noise))
    # also with eta = 0, so that a caller's generator ends in the same state
    flat, other = torch.Generator().manual_seed(5), DDIMSampler(NoiseSchedule(), steps=4, eta=0.0)
    other.sample(_toy, shape, flat)
    assert torch.equal(flat.get_state(), generator.get_state())
    assert [step.timestep for step in seen] == [999, 749, 499, 249]
    assert isinstance(seen[-1], SamplerStep) and torch.equal(seen[-1].latents, drawn)


def test_randomness_has_to_come_from_somewhere() -> None:
    sampler = DDIMSampler(NoiseSchedule(), steps=4)
    start = torch.zeros(1, 1, 1, 2, 2)
    with pytest.raises(ConfigurationError, match="Generator"):
        sampler.sample(_toy, (1, 1, 1, 2, 2), start=start)
    with pytest.raises(ConfigurationError, match="ends before step 2"):
        sampler.sample(_toy, (1, 1, 1, 2, 2), start=start, noise=[start, start])
    with pytest.raises(ConfigurationError, match="shape"):
        sampler.sample(_toy, (2, 1, 1, 2, 2), start=start, noise=[start] * 4)


@pytest.mark.parametrize("options", [{"eta": 1.5}, {"last_step": "none"}])
def test_sampler_options_are_checked(options: dict) -> None:
    with pytest.raises(ConfigurationError):
        DDIMSampler(NoiseSchedule(), **options)
