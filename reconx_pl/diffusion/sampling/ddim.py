"""DDIM sampling (Song et al. 2021, equation 12) with the dynamic rescale of the base model.

One step from t to the next smaller t', with a = alphas_cumprod[t], a' = alphas_cumprod[t'], s the dynamic rescale::

    x0, eps = from the model's (guided) output at t
    x0  <- x0 s' / s
    sigma = eta sqrt((1 - a') / (1 - a) (1 - a / a'))
    x'  = sqrt(a') x0 + sqrt(1 - a' - sigma^2) eps + sigma noise

With zero terminal SNR and eta = 1 the radicand of the first step is exactly 0; float32 makes it -6e-8 for many step
counts and the reference returns NaN. Here the tables are float64 and the radicand is clamped at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from reconx_pl.diffusion.sampling.noise import standard_normal
from reconx_pl.diffusion.sampling.schedule import NoiseSchedule
from reconx_pl.errors import ConfigurationError

Spacing = Literal["trailing", "quadratic", "uniform"]
LastStep = Literal["official", "corrected"]
Denoise = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SamplerStep:
    """What the callback sees after each step."""

    index: int  # 0 for the first executed step
    total: int  # number of steps
    timestep: int  # diffusion step that was left, largest first
    latents: Tensor  # [B, ...] after the step
    x0: Tensor  # [B, ...] predicted clean latents after dynamic rescale


class Sampler(Protocol):
    """Turns noise into latents with a denoiser that already contains its guidance."""

    timesteps: Tensor  # [S] int64 ascending: the diffusion steps at which the denoiser is evaluated, once each

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
        """Run all steps; arguments, result and errors as for ``DDIMSampler.sample``."""
        ...


def ddim_timesteps(steps: int, spacing: Spacing = "trailing", train_steps: int = 1000) -> Tensor:
    """The diffusion steps that a sampler visits, ascending int64.

    "trailing" (Lin et al. 2023) starts from pure noise: round(train_steps - k c) - 1 with c = train_steps / steps.
    Where rounding errors give one entry too many (steps = 61), the reference visits step -1, which indexes the table's
    end; here it is dropped. "quadratic" (Song et al. 2021, appendix D.2) starts there too, and its steps shrink towards
    the clean end: round(train_steps (k / steps)^2) - 1. "uniform" is the older
    ``range(0, train_steps, train_steps // steps)`` plus 1: it never visits the last step, and has more entries than
    ``steps`` where that does not divide ``train_steps``.

    Raises:
        ConfigurationError: a step count that the spacing cannot serve, or an unknown spacing.
    """
    if not 1 <= steps <= train_steps:
        raise ConfigurationError(f"the sampler takes 1 to {train_steps} steps, got {steps}")
    if spacing == "trailing":
        visited = np.round(np.arange(train_steps, 0, -train_steps / steps)).astype(np.int64)[::-1] - 1
        visited = visited[visited >= 0]
    elif spacing == "quadratic":
        count = np.arange(1, steps + 1)
        # at least count - 1: many steps would share the first diffusion steps
        visited = np.maximum(np.round(train_steps * (count / steps) ** 2).astype(np.int64), count) - 1
    elif spacing == "uniform":
        visited = np.arange(0, train_steps, train_steps // steps, dtype=np.int64) + 1
        if visited[-1] >= train_steps:
            raise ConfigurationError(
                f"uniform spacing with {steps} steps would visit step {visited[-1]}, the last is "
                f"{train_steps - 1}; use spacing='trailing' or fewer steps"
            )
    else:
        raise ConfigurationError(f"spacing is 'trailing', 'quadratic' or 'uniform', got {spacing!r}")
    return torch.from_numpy(visited.copy())


class DDIMSampler:
    """Turns noise into latents with a denoiser that already contains its guidance.

    Args:
        schedule: the forward process the model was trained with; also says what the model's output means.
        steps: number of denoising steps (base model: 50).
        eta: 0 is deterministic DDIM, 1 adds as much noise as ancestral sampling (base model: 1).
        spacing: which steps are visited, see ``ddim_timesteps``.
        last_step: the dynamic rescale that the last step returns to. "official" repeats its own, so that the result
            keeps it: too small by 1.4 % at 50 steps and 15 % at 5; released checkpoints are sampled so. "corrected"
            returns to 1, as ViewCrafter does.

    Raises:
        ConfigurationError: a value out of range.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        steps: int = 50,
        eta: float = 1.0,
        spacing: Spacing = "trailing",
        last_step: LastStep = "official",
    ) -> None:
        if not 0 <= eta <= 1:
            raise ConfigurationError(f"eta lies between 0 and 1, got {eta}")
        if last_step not in ("official", "corrected"):
            raise ConfigurationError(f"last_step is 'official' or 'corrected', got {last_step!r}")
        self.schedule = schedule
        self.eta = eta
        self.timesteps = ddim_timesteps(steps, spacing, schedule.config.steps)  # [S] ascending
        cumulative, scale = schedule.tables["alphas_cumprod"], schedule.tables["scale"]
        a = cumulative[self.timesteps]
        # the last step goes to alphas_cumprod[0], not to 1, as in the reference
        a_next = torch.cat([cumulative[:1], a[:-1]])
        self.alphas, self.alphas_next = a, a_next  # [S] float64
        self.sigmas = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)).clamp_min(0).sqrt()  # [S]
        self.direction = (1 - a_next - self.sigmas**2).clamp_min(0).sqrt()  # [S] factor of eps
        self.scales = scale[self.timesteps]  # [S]
        first = torch.ones(1, dtype=torch.float64) if last_step == "corrected" else self.scales[:1]
        self.scales_next = torch.cat([first, self.scales[:-1]])  # [S]

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

        Noise is drawn in the reference's order: the start, then once per step, also where sigma is 0 and at the
        last step.

        Args:
            denoise: (x [B, ...] float32, t [B] int64) -> model output [B, ...], guidance applied.
            shape: of the latents, (B, C, T, h, w).
            generator: source of the start and of the steps' noise; may be None if ``start`` and ``noise`` are given.
            device: of the latents; the schedule's by default.
            start: [B, ...] recorded start instead of a drawn one.
            noise: recorded noise, one tensor a step in execution order, instead of a drawn one.
            callback: called after each step, for progress bars and intermediate pictures.

        Returns:
            Latents of ``shape``, float32.

        Raises:
            ConfigurationError: no source of randomness, or recorded noise that ends early.
        """
        device = torch.device(device) if device is not None else self.schedule.alphas_cumprod.device
        x = starting_latents(shape, generator, start, device, draws_more=noise is None and self.eta > 0)
        recorded = iter(noise) if noise is not None else None
        total = len(self.timesteps)
        for executed, i in enumerate(reversed(range(total))):
            t = torch.full((shape[0],), int(self.timesteps[i]), dtype=torch.int64, device=device)
            output = denoise(x, t).float()
            x, x0 = self.step(x, output, i, step_noise(recorded, generator, shape, device, executed))
            if callback is not None:
                callback(SamplerStep(executed, total, int(self.timesteps[i]), x, x0))
        return x

    def step(self, x: Tensor, output: Tensor, index: int, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step, from ``timesteps[index]`` to the next smaller one.

        Args:
            x: [B, ...] latents.
            output: [B, ...] of the model for them, guidance applied.
            index: in ``timesteps``.
            noise: [B, ...] standard normal; None adds none.

        Returns:
            [B, ...] latents after it, and [B, ...] predicted clean latents after the dynamic rescale.
        """
        t = torch.full((x.shape[0],), int(self.timesteps[index]), dtype=torch.int64, device=x.device)
        x0, eps = self.schedule.to_x0_eps(output, x, t)
        x0 = x0 * float(self.scales_next[index] / self.scales[index])
        x = float(self.alphas_next[index].sqrt()) * x0 + float(self.direction[index]) * eps
        if noise is not None and self.sigmas[index] > 0:
            x = x + float(self.sigmas[index]) * noise
        return x, x0


def starting_latents(
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    start: Tensor | None,
    device: torch.device,
    draws_more: bool,
) -> Tensor:
    """The recorded or drawn start of a sampler, float32 of ``shape`` on ``device``.

    Args:
        shape: of the latents.
        generator: draws the start where none is given.
        start: a recorded start.
        device: of the result.
        draws_more: whether the steps will need the generator as well.

    Raises:
        ConfigurationError: no source of randomness, or a start of another shape.
    """
    if generator is None and (start is None or draws_more):
        raise ConfigurationError("sampling needs a torch.Generator, or a recorded start and recorded noise")
    if start is not None and tuple(start.shape) != tuple(shape):
        raise ConfigurationError(f"the start has shape {tuple(start.shape)}, asked for {tuple(shape)}")
    if start is not None:
        return start.to(device=device, dtype=torch.float32)
    assert generator is not None
    return standard_normal(shape, generator, device)


def step_noise(
    recorded: Iterator[Tensor] | None,
    generator: torch.Generator | None,
    shape: tuple[int, ...],
    device: torch.device,
    executed: int,
) -> Tensor | None:
    """The noise of one step, recorded or drawn; None where there is neither.

    Raises:
        ConfigurationError: the recorded noise has ended.
    """
    if recorded is not None:
        drawn = next(recorded, None)
        if drawn is None:
            raise ConfigurationError(f"the recorded noise ends before step {executed}; give one tensor a step")
        return drawn.to(device=device, dtype=torch.float32)
    return standard_normal(shape, generator, device) if generator is not None else None
