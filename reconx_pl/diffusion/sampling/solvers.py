"""Second-order samplers: diffusers' solvers on the base model's process.

The dynamic rescale s_t makes the forward process one that does not preserve variance, with signal alpha and noise
sigma (``schedule``)::

    x_t = alpha x_0 + sigma eps,   alpha = sqrt(a_t) s_t,   sigma = sqrt(1 - a_t)

Divided by n = sqrt(alpha^2 + sigma^2) it does, with alpha^2 / n^2 as its cumulative product. Solvers of diffusers take
any such product and a clean latent. So they run on y = x / n; the model sees x, and its clean latent s_t x_0 is divided
by s_t before the solver sees it. Nothing is approximated, and without dynamic rescale n is 1.

A solver is told of the visited steps only, as if the model had been trained on no others: whatever their spacing, it
then takes all of them. It ends at zero noise, on the clean latent itself, where s = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from reconx_pl.diffusion.sampling.ddim import (
    DDIMSampler,
    Denoise,
    LastStep,
    Sampler,
    SamplerStep,
    Spacing,
    ddim_timesteps,
    starting_latents,
    step_noise,
)
from reconx_pl.diffusion.sampling.schedule import NoiseSchedule
from reconx_pl.errors import ConfigurationError

Solver = Literal["dpm++", "sde-dpm++", "unipc"]
SamplerName = Literal["ddim", "dpm++", "sde-dpm++", "unipc"]

# The noise of a solver is fixed: that of the probability flow ODE, or of the reverse SDE.
_ETA: dict[str, float] = {"dpm++": 0.0, "sde-dpm++": 1.0, "unipc": 0.0}

# Stands for zero terminal SNR, as in diffusers' own ``rescale_betas_zero_snr``: solvers take logarithms of the SNR, and
# keep 1 - beta in float32, which a smaller value would make 0.
_TERMINAL = 2.0**-24


class SolverSampler:
    """A multistep solver of diffusers: one evaluation of the model a step, second order from what it saw before.

    Args:
        schedule: the forward process the model was trained with; also says what the model's output means.
        steps: number of denoising steps, each one evaluation.
        solver: "dpm++", DPM-Solver++(2M) (Lu et al. 2022, algorithm 2); "sde-dpm++", its stochastic form (diffusers'
            "sde-dpmsolver++"); "unipc", UniPC with B_2(h) = e^h - 1 (Zhao et al. 2023).
        spacing: which steps are visited, see ``ddim_timesteps``. With "trailing" the last visited step is so noisy that
            the end, where every solver is first order, decides the error.
        order: of the solver; "dpm++" of order 1 is DDIM.

    Raises:
        ConfigurationError: a value out of range.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        steps: int = 50,
        solver: Solver = "dpm++",
        spacing: Spacing = "quadratic",
        order: int = 2,
    ) -> None:
        if solver not in get_args(Solver):
            raise ConfigurationError(f"solver is one of {', '.join(get_args(Solver))}, got {solver!r}")
        if order not in (1, 2):
            raise ConfigurationError(f"the order of a solver is 1 or 2, got {order}")
        self.schedule = schedule
        self.solver = solver
        self.order = order
        self.timesteps = ddim_timesteps(steps, spacing, schedule.config.steps)  # [S] ascending
        a = schedule.tables["alphas_cumprod"][self.timesteps]
        self.scales = schedule.tables["scale"][self.timesteps]  # [S] float64, s
        signal = a * self.scales**2
        self.norms = (signal + 1 - a).sqrt()  # [S] float64, n
        product = signal / (signal + 1 - a)
        if product[-1] == 0:
            product[-1] = min([_TERMINAL, *(product[-2:-1] / 4).tolist()])  # below the step before, whatever that is
        self.betas = 1 - product / torch.cat([torch.ones_like(product[:1]), product[:-1]])  # [S] float64

    @torch.no_grad()
    def sample(
        self,
        denoise: Denoise,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str | None = None,
        start: Tensor | None = None,
        noise: Iterable[Tensor] | None = None,
        callback: Callable[[SamplerStep], None] | None = None,
    ) -> Tensor:
        """Run all steps.

        The start is drawn first, then for "sde-dpm++" one tensor a step, also where it has no weight.

        Args:
            denoise: (x [B, ...] float32, t [B] int64) -> model output [B, ...], guidance applied.
            shape: of the latents, (B, C, T, h, w).
            generator: source of the start and of the steps' noise; may be None where both are recorded, or the solver
                draws none.
            device: of the latents; the schedule's by default.
            start: recorded x at the first visited step instead of a drawn one.
            noise: recorded noise of the steps in execution order; a deterministic solver does not look at it.
            callback: called after each step.

        Returns:
            Latents of ``shape``, float32, without dynamic rescale.

        Raises:
            ConfigurationError: no source of randomness, or recorded noise that ends early.
        """
        device = torch.device(device) if device is not None else self.schedule.alphas_cumprod.device
        stochastic = _ETA[self.solver] > 0
        x = starting_latents(shape, generator, start, device, draws_more=noise is None and stochastic)
        recorded = iter(noise) if noise is not None else None
        scheduler, total = self._scheduler(), len(self.timesteps)
        y = x / float(self.norms[-1])
        for executed, i in enumerate(reversed(range(total))):
            t = torch.full((shape[0],), int(self.timesteps[i]), dtype=torch.int64, device=device)
            x0, _ = self.schedule.to_x0_eps(denoise(x, t).float(), x, t)
            x0 = x0 / float(self.scales[i])
            options = {}
            if stochastic:
                options["variance_noise"] = step_noise(recorded, generator, shape, device, executed)
            y = scheduler.step(x0, scheduler.timesteps[executed], y, **options).prev_sample
            x = y * float(self.norms[i - 1]) if i else y
            if callback is not None:
                callback(SamplerStep(executed, total, int(self.timesteps[i]), x, x0))
        return x

    def _scheduler(self) -> Any:
        """A fresh scheduler: it keeps earlier outputs, so every run has its own."""
        from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

        common: dict[str, Any] = {
            "num_train_timesteps": len(self.betas),
            "trained_betas": self.betas.tolist(),
            "prediction_type": "sample",
            "timestep_spacing": "trailing",
            "final_sigmas_type": "zero",
            "solver_order": self.order,
        }
        kinds: dict[str, tuple[Any, dict[str, str]]] = {
            "dpm++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
            "sde-dpm++": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
            "unipc": (UniPCMultistepScheduler, {"solver_type": "bh2"}),
        }
        kind, options = kinds[self.solver]
        scheduler = kind(**common, **options)
        scheduler.set_timesteps(len(self.betas))
        return scheduler


def check_sampler(sampler: SamplerName, eta: float | None, last_step: LastStep | None) -> None:
    """Refuse options that the sampler does not have; a value that says what it does anyway is welcome.

    Raises:
        ConfigurationError: an unknown sampler, an ``eta`` other than the solver's own noise, or
            ``last_step="official"`` without DDIM.
    """
    if sampler not in get_args(SamplerName):
        raise ConfigurationError(f"sampler is one of {', '.join(get_args(SamplerName))}, got {sampler!r}")
    if sampler == "ddim":
        return
    if eta is not None and eta != _ETA[sampler]:
        kind = "deterministic, which is eta=0" if _ETA[sampler] == 0 else "as noisy as eta=1"
        raise ConfigurationError(
            f"sampler={sampler!r} is {kind}, but eta={eta} was asked for; leave eta out, or choose sampler='ddim', "
            "which has it" + (", or the stochastic 'sde-dpm++'" if _ETA[sampler] == 0 else "")
        )
    if last_step == "official":
        raise ConfigurationError(
            f"last_step='official' repeats a step of the base model's DDIM; sampler={sampler!r} ends on the clean "
            "latent without dynamic rescale. Leave last_step out, or choose sampler='ddim'"
        )


def make_sampler(
    schedule: NoiseSchedule,
    sampler: SamplerName = "ddim",
    steps: int = 50,
    eta: float | None = None,
    last_step: LastStep | None = None,
    spacing: Spacing | None = None,
) -> Sampler:
    """The sampler of these options; None stands for the sampler's own value.

    Args:
        schedule: the forward process the model was trained with.
        sampler: "ddim", or a solver of ``SolverSampler``.
        steps: evaluations of the model.
        eta: DDIM's, 1 where None.
        last_step: DDIM's, "official" where None.
        spacing: None is "trailing" for DDIM and "quadratic" for a solver.

    Raises:
        ConfigurationError: a value out of range or contradictory.
    """
    check_sampler(sampler, eta, last_step)
    if sampler == "ddim":
        return DDIMSampler(schedule, steps, 1.0 if eta is None else eta, spacing or "trailing", last_step or "official")
    return SolverSampler(schedule, steps, sampler, spacing or "quadratic")
