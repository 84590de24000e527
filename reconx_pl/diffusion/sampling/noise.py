"""Draws noise from a generator that may live on another device than the result."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def standard_normal(
    shape: Sequence[int], generator: torch.Generator, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Standard normal numbers, drawn on the generator's device in float32 and then moved.

    A CPU generator therefore gives the same numbers whatever device the model is on; a CUDA generator saves the copy.

    Args:
        shape: of the result.
        generator: the only source of randomness.
        device: where the result lives.
        dtype: of the result.
    """
    drawn = torch.randn(tuple(shape), generator=generator, device=generator.device, dtype=torch.float32)
    return drawn.to(device=device, dtype=dtype)


def uniform_integers(count: int, below: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
    """[count] int64 uniform in 0 .. below - 1, drawn like ``standard_normal``."""
    return torch.randint(0, below, (count,), generator=generator, device=generator.device).to(device)
