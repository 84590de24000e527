"""Solvers: against a Gaussian whose probability flow is known, against DDIM, and their edge cases."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reconx_pl.diffusion.pipeline import SamplingConfig
from reconx_pl.diffusion.sampling.ddim import DDIMSampler, SamplerStep
from reconx_pl.diffusion.sampling.schedule import NoiseSchedule, ScheduleConfig
from reconx_pl.diffusion.sampling.solvers import SolverSampler, make_sampler
from reconx_pl.errors import ConfigurationError

MEAN, STD = 0.7, 0.5
SHAPE = (2, 2, 1, 8, 8)
ODE = ("dpm++", "unipc")
SOLVERS = (*ODE, "sde-dpm++")
PROCESSES = {
    "v": ScheduleConfig(),
    "v-1024": ScheduleConfig(rescale_end=0.3),
    "v-flat": ScheduleConfig(rescale_end=None),
    "sample": ScheduleConfig(prediction="sample"),
    "v-some-signal": ScheduleConfig(zero_terminal_snr=False),
    "epsilon": ScheduleConfig(prediction="epsilon", zero_terminal_snr=False),
}
processes = pytest.mark.parametrize("schedule", [NoiseSchedule(c) for c in PROCESSES.values()], ids=list(PROCESSES))


def _toy(x: Tensor, t: Tensor) -> Tensor:
    return 0.3 * x + 0.2 * torch.cos(3 * x) + 0.1 * (t.float() / 1000).view(-1, 1, 1, 1, 1)


def _spread(schedule: NoiseSchedule, t: int) -> tuple[float, float]:
    """Mean and standard deviation of x_t for clean latents from N(MEAN, STD^2)."""
    a, s = schedule.tables["alphas_cumprod"][t].item(), schedule.tables["scale"][t].item()
    return a**0.5 * s * MEAN, math.sqrt(a * (s * STD) ** 2 + 1 - a)


def _gaussian(schedule: NoiseSchedule) -> Callable[[Tensor, Tensor], Tensor]:
    """The best possible prediction: from the posterior mean of s x_0 given x_t."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        a, s = schedule.tables["alphas_cumprod"][t[0]].item(), schedule.tables["scale"][t[0]].item()
        mean, std = _spread(schedule, int(t[0]))
        x0 = s * MEAN + (s * STD) ** 2 * a**0.5 / std**2 * (x - mean)
        eps = (x - a**0.5 * x0) / (1 - a) ** 0.5
        return {"epsilon": eps, "sample": x0, "v": a**0.5 * eps - (1 - a) ** 0.5 * x0}[schedule.config.prediction]

    return denoise


def _start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def _exact(schedule: NoiseSchedule, start: Tensor) -> Tensor:
    """Where the probability flow ends: each latent keeps its quantile."""
    mean, std = _spread(schedule, schedule.config.steps - 1)
    return MEAN + STD * (start - mean) / std


def _error(schedule: NoiseSchedule, sampler: SolverSampler | DDIMSampler) -> float:
    """RMS distance of the last clean latent to the exact one."""
    steps: list[SamplerStep] = []
    start = _start()
    sampler.sample(_gaussian(schedule), SHAPE, torch.Generator(), start=start, callback=steps.append)
    return float((steps[-1].x0 - _exact(schedule, start)).square().mean().sqrt())


@processes
@pytest.mark.parametrize("solver", ODE)
@pytest.mark.parametrize("spacing", ["quadratic", "trailing"])
def test_solvers_converge_to_the_exact_flow(schedule: NoiseSchedule, solver: str, spacing: str) -> None:
    # the last jump, from diffusion step 0 to no noise at all, stays at any number of steps
    assert _error(schedule, SolverSampler(schedule, 1000, solver, spacing)) < 1e-3


@processes
@pytest.mark.parametrize("solver", ODE)
def test_solvers_are_of_a_higher_order_than_ddim(schedule: NoiseSchedule, solver: str) -> None:
    def order(sampler: Callable[[int], SolverSampler | DDIMSampler]) -> float:
        few, many = _error(schedule, sampler(3)), _error(schedule, sampler(6))
        return math.log2(few / many)

    ddim = order(lambda steps: DDIMSampler(schedule, steps, 0.0, "quadratic", "corrected"))
    assert 0.7 < ddim < 1.2
    assert order(lambda steps: SolverSampler(schedule, steps, solver)) > 1.8
    ten = _error(schedule, SolverSampler(schedule, 10, solver))
    assert ten < 0.1 * _error(schedule, DDIMSampler(schedule, 10, 0.0, "quadratic", "corrected"))


@processes
@pytest.mark.parametrize("steps", [1, 2, 5, 50])
@pytest.mark.parametrize("spacing", ["quadratic", "trailing"])
def test_dpm_solver_of_order_one_is_ddim(schedule: NoiseSchedule, steps: int, spacing: str) -> None:
    ddim: list[SamplerStep] = []
    solver: list[SamplerStep] = []
    start = _start()
    last = DDIMSampler(schedule, steps, 0.0, spacing, "corrected")
    last.sample(_toy, SHAPE, torch.Generator(), start=start, callback=ddim.append)
    ours = SolverSampler(schedule, steps, "dpm++", spacing, order=1)
    out = ours.sample(_toy, SHAPE, start=start, callback=solver.append)
    # DDIM ends at the noise of diffusion step 0, a solver at none: on DDIM's last clean latent. A terminal SNR of
    # 2^-24 instead of 0 shifts the first step by 2.4e-4 of its clean latent without dynamic rescale.
    tolerance = 3e-3 if schedule.config.zero_terminal_snr else 3e-6
    largest = float(ddim[-1].x0.abs().max())
    torch.testing.assert_close(out, ddim[-1].x0, atol=tolerance * largest, rtol=0)
    for theirs, step in zip(ddim[:-1], solver[:-1], strict=True):  # all steps alike, dynamic rescale and all
        torch.testing.assert_close(step.latents, theirs.latents, atol=tolerance * largest, rtol=0)
        assert (step.timestep, step.index, step.total) == (theirs.timestep, theirs.index, theirs.total)


@processes
def test_stochastic_solver_keeps_the_moments(schedule: NoiseSchedule) -> None:
    generator, shape = torch.Generator().manual_seed(0), (40, 4, 4, 8, 8)
    mean, std = _spread(schedule, 999)
    start = mean + std * torch.randn(shape, generator=generator)
    out = SolverSampler(schedule, 50, "sde-dpm++").sample(_gaussian(schedule), shape, generator, start=start)
    assert out.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert out.std().item() == pytest.approx(STD, abs=0.01)
    # it forgets its start; the probability flow would keep every quantile
    paths = torch.corrcoef(torch.stack([out.flatten(), start.flatten()]))
    assert abs(paths[0, 1].item()) < 0.1


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("spacing", ["quadratic", "trailing"])
def test_no_step_count_gives_nan(solver: str, spacing: str) -> None:
    schedule = NoiseSchedule(PROCESSES["v-1024"])
    for steps in range(1, 65):
        sampler = SolverSampler(schedule, steps, solver, spacing)
        out = sampler.sample(_gaussian(schedule), (1, 1, 1, 2, 2), torch.Generator().manual_seed(0))
        assert torch.isfinite(out).all() and out.abs().max() < 5, steps


@pytest.mark.parametrize("solver", SOLVERS)
def test_result_follows_from_the_generator_alone(solver: str) -> None:
    sampler = SolverSampler(NoiseSchedule(), 5, solver)
    generator = torch.Generator().manual_seed(5)
    first = sampler.sample(_toy, SHAPE, generator)
    assert torch.equal(first, sampler.sample(_toy, SHAPE, torch.Generator().manual_seed(5)))  # nothing left of a run
    assert not torch.equal(first, sampler.sample(_toy, SHAPE, torch.Generator().manual_seed(6)))
    recorded = torch.Generator().manual_seed(5)
    start, *noise = (torch.randn(SHAPE, generator=recorded) for _ in range(6))
    assert torch.equal(first, sampler.sample(_toy, SHAPE, start=start, noise=noise))
    # one batch or one sample after the other: neither sees its neighbours
    halves = [
        sampler.sample(_toy, (1, *SHAPE[1:]), start=start[i : i + 1], noise=[n[i : i + 1] for n in noise])
        for i in range(2)
    ]
    torch.testing.assert_close(first, torch.cat(halves), atol=1e-6, rtol=0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_solver_stays_in_float32_under_autocast(solver: str) -> None:
    sampler, states = SolverSampler(NoiseSchedule(), 6, solver), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            states.append(sampler.sample(_toy, SHAPE, torch.Generator().manual_seed(5)))
    assert states[1].dtype == torch.float32
    assert torch.equal(*states)


def test_every_step_is_one_evaluation() -> None:
    for solver in SOLVERS:
        seen: list[int] = []

        def denoise(x: Tensor, t: Tensor, seen: list[int] = seen) -> Tensor:
            seen.append(int(t[0]))
            return _toy(x, t)

        SolverSampler(NoiseSchedule(), 5, solver).sample(denoise, SHAPE, torch.Generator())
        assert seen == [999, 639, 359, 159, 39]


def test_randomness_has_to_come_from_somewhere() -> None:
    start = torch.zeros(SHAPE)
    SolverSampler(NoiseSchedule(), 4, "dpm++").sample(_toy, SHAPE, start=start)
    with pytest.raises(ConfigurationError, match="Generator"):
        SolverSampler(NoiseSchedule(), 4, "sde-dpm++").sample(_toy, SHAPE, start=start)
    with pytest.raises(ConfigurationError, match="ends before step 2"):
        SolverSampler(NoiseSchedule(), 4, "sde-dpm++").sample(_toy, SHAPE, start=start, noise=[start, start])


@pytest.mark.parametrize("options", [{"solver": "ddim"}, {"order": 3}, {"steps": 0}, {"spacing": "leading"}])
def test_solver_options_are_checked(options: dict) -> None:
    with pytest.raises(ConfigurationError):
        SolverSampler(NoiseSchedule(), **options)


def test_defaults_are_the_samplers_own() -> None:
    ddim = make_sampler(NoiseSchedule())
    assert isinstance(ddim, DDIMSampler)
    assert ddim.eta == 1 and ddim.scales_next[0] == ddim.scales[0] and ddim.timesteps[0] == 19
    solver = make_sampler(NoiseSchedule(), "unipc", 10)
    assert isinstance(solver, SolverSampler)
    assert solver.solver == "unipc" and solver.order == 2 and solver.timesteps[0] == 9
    assert make_sampler(NoiseSchedule(), "unipc", 10, spacing="trailing").timesteps[0] == 99


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "dpm++"},
        {"sampler": "unipc", "eta": 0.0, "last_step": "corrected"},  # says what it does anyway
        {"sampler": "sde-dpm++", "eta": 1.0},
        {"sampler": "ddim", "eta": 0.3, "last_step": "official", "spacing": "quadratic"},
    ],
)
def test_options_that_agree_are_taken(options: dict) -> None:
    SamplingConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "dpm++", "eta": 1.0}, "deterministic"),
        ({"sampler": "unipc", "eta": 0.5}, "deterministic"),
        ({"sampler": "sde-dpm++", "eta": 0.0}, "as noisy as eta=1"),
        ({"sampler": "dpm++", "last_step": "official"}, "base model's DDIM"),
        ({"sampler": "euler"}, "sampler is one of"),
        ({"num_inference_steps": 0}, "at least 1"),
    ],
)
def test_options_that_contradict_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        SamplingConfig(**options)
