"""What this processor computes by itself."""

from __future__ import annotations

import torch


def bfloat16_is_native() -> bool:
    """Whether the processor has the vector arithmetic that torch's bfloat16 needs; AVX2 emulates it, many times slower.

    Of x86 processors: torch names the instructions that it found.
    """
    return torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
