"""The forward process: how much signal and how much noise a latent holds at each step.

Symbols: t step, 0 .. steps - 1; a_t cumulative product of 1 - beta ("alphas_cumprod"); s_t dynamic rescale of the clean
latent (NOTES of the base model: 1 at t = 0, falling linearly to 0.7 over 400 steps, then constant)::

    x_t = sqrt(a_t) s_t x_0 + sqrt(1 - a_t) eps
    v_t = sqrt(a_t) eps - sqrt(1 - a_t) s_t x_0          (Salimans and Ho 2022)

Zero terminal SNR is algorithm 1 of Lin et al. 2023, computed by diffusers' ``rescale_zero_terminal_snr`` in
float64. diffusers' ``DDIMScheduler`` itself runs it in float32 and is 4e-7 off the reference's table, so its tables
are not used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reconx_pl.errors import ConfigurationError


@dataclass(frozen=True)
class ScheduleConfig:
    """The noise schedule. The defaults are those of the base model, DynamiCrafter 512.

    Args:
        steps: training steps of the forward process.
        linear_start: first beta.
        linear_end: last beta; the square roots between the two are equally spaced ("scaled linear").
        zero_terminal_snr: shift the schedule so that the last step is pure noise. Needs ``prediction="v"``.
        rescale_end: the dynamic rescale falls from 1 to this value; None switches it off (the 1024 base model uses
            0.3).
        rescale_steps: number of steps over which it falls.
        prediction: what the model's output means: "v" (base model), "epsilon" (the paper's text) or "sample", the clean
            latent. A U-Net that is narrower than its latents cannot pass their noise through and needs "sample" (Li
            and He 2025, "Back to basics: let denoising generative models denoise"); the demo's is.
        terminal_share: of the training samples, drawn at the last step, from which a sampler of few steps begins; the
            others are at any step alike (ours, for small networks; 0 is the base model's).
    """

    steps: int = 1000
    linear_start: float = 0.00085
    linear_end: float = 0.012
    zero_terminal_snr: bool = True
    rescale_end: float | None = 0.7
    rescale_steps: int = 400
    prediction: Literal["v", "epsilon", "sample"] = "v"
    terminal_share: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ConfigurationError(f"a noise schedule needs at least 2 steps, got {self.steps}")
        if not 0 < self.linear_start < self.linear_end < 1:
            raise ConfigurationError(
                f"betas need 0 < linear_start < linear_end < 1, got {self.linear_start} and {self.linear_end}"
            )
        if self.prediction not in ("v", "epsilon", "sample"):
            raise ConfigurationError(f"prediction is 'v', 'epsilon' or 'sample', got {self.prediction!r}")
        if self.prediction == "epsilon" and self.zero_terminal_snr:
            raise ConfigurationError(
                "prediction='epsilon' cannot recover the clean latent from the last step of a schedule with zero "
                "terminal SNR (division by zero); set zero_terminal_snr=False or prediction='v'"
            )
        if self.rescale_end is not None and not 0 < self.rescale_end <= 1:
            raise ConfigurationError(f"rescale_end lies in (0, 1] or is None, got {self.rescale_end}")
        if not 0 <= self.terminal_share <= 1:
            raise ConfigurationError(f"terminal_share lies in [0, 1], got {self.terminal_share}")
        if not 2 <= self.rescale_steps <= self.steps:
            raise ConfigurationError(f"rescale_steps lies between 2 and steps={self.steps}, got {self.rescale_steps}")


class NoiseSchedule(nn.Module):
    """Tables of the forward process as buffers, and the conversions between clean latent, noise and model output.

    The buffers are not part of the state dict: they follow from the configuration. They stay float32 when the module is
    cast to half precision, and are filled again after meta-device initialisation.

    Buffers, each [steps] float32: ``betas``, ``alphas_cumprod``, ``sqrt_alphas_cumprod``,
    ``sqrt_one_minus_alphas_cumprod``, ``scale``. The float64 originals are in ``tables``.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    scale: Tensor

    def __init__(self, config: ScheduleConfig | None = None) -> None:
        super().__init__()
        self.config = config or ScheduleConfig()
        self.tables = _tables(self.config)
        for name, values in self.tables.items():
            self.register_buffer(name, values.float(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NoiseSchedule:
        super()._apply(fn, recurse)
        for name, values in self.tables.items():
            device = getattr(self, name).device
            if device.type != "meta":
                setattr(self, name, values.float().to(device))
        return self

    def scaled(self, x0: Tensor, t: Tensor) -> Tensor:
        """s_t x_0: the clean latent after dynamic rescale. x0 [B, ...], t [B] int64."""
        return (_at(self.scale, t, x0) * x0).to(x0.dtype)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t from the clean latent. Only the clean latent is rescaled; condition latents never are.

        Args:
            x0: [B, ...] clean latents as the autoencoder gives them, before dynamic rescale.
            noise: [B, ...] standard normal.
            t: [B] int64 steps.
        """
        signal = _at(self.sqrt_alphas_cumprod, t, x0) * self.scaled(x0, t)
        return (signal + _at(self.sqrt_one_minus_alphas_cumprod, t, x0) * noise).to(x0.dtype)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model shall predict: v_t, the noise or s_t x_0. Arguments as for ``add_noise``."""
        if self.config.prediction == "epsilon":
            return noise
        if self.config.prediction == "sample":
            return self.scaled(x0, t)
        signal = _at(self.sqrt_one_minus_alphas_cumprod, t, x0) * self.scaled(x0, t)
        return (_at(self.sqrt_alphas_cumprod, t, x0) * noise - signal).to(x0.dtype)

    def to_x0_eps(self, output: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Clean latent and noise from a model output.

        Returns:
            x0 [B, ...], still under the dynamic rescale (s_t x_0: the sampler undoes it), and eps [B, ...].
        """
        signal, sigma = _at(self.sqrt_alphas_cumprod, t, x_t), _at(self.sqrt_one_minus_alphas_cumprod, t, x_t)
        if self.config.prediction == "epsilon":
            return ((x_t - sigma * output) / signal).to(x_t.dtype), output
        if self.config.prediction == "sample":
            return output, ((x_t - signal * output) / sigma).to(x_t.dtype)
        return (signal * x_t - sigma * output).to(x_t.dtype), (signal * output + sigma * x_t).to(x_t.dtype)

    def snr(self, t: Tensor) -> Tensor:
        """a_t / (1 - a_t), [B]. Zero at the last step of a zero-terminal-SNR schedule."""
        a = self.alphas_cumprod[t]
        return a / (1 - a)


def _at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """table[t] as [B, 1, ...] to broadcast over ``like``."""
    return table[t].reshape(-1, *(1,) * (like.ndim - 1))


def _tables(config: ScheduleConfig) -> dict[str, Tensor]:
    """All tables in float64 on the CPU, whatever the default device (meta initialisation must not lose them)."""
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    options: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    betas = torch.linspace(config.linear_start**0.5, config.linear_end**0.5, config.steps, **options) ** 2
    if config.zero_terminal_snr:
        betas = rescale_zero_terminal_snr(betas)
    alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    scale = torch.ones(config.steps, **options)
    if config.rescale_end is not None:
        scale[: config.rescale_steps] = torch.linspace(1.0, config.rescale_end, config.rescale_steps, **options)
        scale[config.rescale_steps :] = config.rescale_end
    return {
        "betas": betas,
        "alphas_cumprod": alphas_cumprod,
        "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alphas_cumprod).sqrt(),
        "scale": scale,
    }
