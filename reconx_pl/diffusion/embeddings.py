"""Sinusoidal embedding of numbers (diffusion step, frames a second) and the MLP that follows it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoidal_embedding(values: Tensor, channels: int, max_period: float = 10000.0) -> Tensor:
    """Cosines, then sines, of ``values`` at geometrically spaced frequencies (Vaswani et al. 2017, Ho et al. 2020).

    Args:
        values: [B] any real numbers.
        channels: width of the result; an odd width ends in a zero.

    Returns:
        [B, channels] float32.
    """
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values.float()[:, None] * torch.exp(-math.log(max_period) * exponents)[None]  # [B, half]
    embedding = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
    return nn.functional.pad(embedding, (0, channels % 2))


def embedding_mlp(in_channels: int, channels: int, zero_output: bool = False) -> nn.Sequential:
    """Linear, SiLU, Linear; with ``zero_output`` it adds nothing before training."""
    mlp = nn.Sequential(nn.Linear(in_channels, channels), nn.SiLU(), nn.Linear(channels, channels))
    if zero_output:
        zero_(mlp[2])
    return mlp


def zero_(module: nn.Module) -> nn.Module:
    """Set every parameter of ``module`` to zero, so that its branch starts as the identity of the residual sum."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
