"""The training objective: mean square error on what the schedule asks the model to predict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from reconx_pl.diffusion.sampling.noise import standard_normal, uniform_integers
from reconx_pl.diffusion.sampling.schedule import NoiseSchedule
from reconx_pl.errors import ConfigurationError

Weighting = Literal["none", "min_snr"]


class DiffusionLoss(NamedTuple):
    """The result of ``diffusion_loss``."""

    loss: Tensor  # [] mean over the batch, weighted
    per_sample: Tensor  # [B] mean square error, not weighted, detached
    t: Tensor  # [B] int64 steps that were drawn


def training_steps(
    batch: int, schedule: NoiseSchedule, generator: torch.Generator, device: torch.device | str
) -> Tensor:
    """[B] int64 steps to train at: any alike, but for ``ScheduleConfig.terminal_share`` of them, which are the last."""
    last = schedule.config.steps - 1
    t = uniform_integers(batch, last + 1, generator, device)
    if schedule.config.terminal_share == 0:
        return t  # no number is drawn: the draws after it are those of the base model
    chosen = torch.rand(batch, generator=generator, device=generator.device) < schedule.config.terminal_share
    return torch.where(chosen.to(device), last, t)


def diffusion_loss(
    model_fn: Callable[[Tensor, Tensor], Tensor],
    schedule: NoiseSchedule,
    x0: Tensor,
    generator: torch.Generator | None,
    *,
    t: Tensor | None = None,
    noise: Tensor | None = None,
    weighting: Weighting = "none",
    snr_gamma: float = 5.0,
) -> DiffusionLoss:
    """One draw of the diffusion objective (ReconX, IV-D, eq. 12).

    Steps are drawn first, then the noise. The base model weights all steps alike; "min_snr" is Hang et al. 2023
    (min(SNR, gamma), / (SNR + 1) for v, / SNR for epsilon) and gives no weight to the last step of a
    zero-terminal-SNR schedule.

    Args:
        model_fn: (x_t [B, C, T, h, w], t [B]) -> prediction of the same shape; holds the conditions.
        schedule: the forward process.
        x0: [B, C, T, h, w] clean latents, before dynamic rescale.
        generator: source of steps and noise; may be None if both are given.
        t: [B] int64 recorded steps.
        noise: recorded noise of x0's shape.
        weighting: of the samples by their step.
        snr_gamma: gamma of "min_snr".

    Raises:
        ConfigurationError: an unknown weighting, or neither a generator nor recorded numbers.
    """
    if weighting not in ("none", "min_snr"):
        raise ConfigurationError(f"weighting is 'none' or 'min_snr', got {weighting!r}")
    if t is None or noise is None:
        if generator is None:
            raise ConfigurationError("the objective needs a torch.Generator, or both t and noise")
        t = training_steps(x0.shape[0], schedule, generator, x0.device) if t is None else t
        noise = standard_normal(x0.shape, generator, x0.device, x0.dtype) if noise is None else noise
    prediction = model_fn(schedule.add_noise(x0, noise, t), t)
    error = (prediction.float() - schedule.target(x0, noise, t).float()) ** 2
    per_sample = error.flatten(1).mean(dim=1)  # [B]
    weighted = per_sample
    if weighting == "min_snr":
        snr = schedule.snr(t)
        divisor = {"v": snr + 1, "epsilon": snr, "sample": torch.ones_like(snr)}[schedule.config.prediction]
        weighted = per_sample * snr.clamp_max(snr_gamma) / divisor
    return DiffusionLoss(weighted.mean(), per_sample.detach(), t)
