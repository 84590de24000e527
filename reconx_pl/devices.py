"""What this machine computes by itself, and how fast."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch.nn import functional

WORTH_IT = 0.8  # of float32's time: below this share bfloat16 is clearly faster, however noisy the machine


def bfloat16_is_native() -> bool:
    """Whether the processor has the vector arithmetic that torch's bfloat16 needs; AVX2 emulates it, many times slower.

    Of x86 processors: torch names the instructions that it found.
    """
    return torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")


def faster_precision(device: torch.device | str) -> Literal["32", "bf16"]:
    """ "bf16" where the device has bfloat16 arithmetic and a short measurement shows that it is faster, else "32".

    Measured once in a process, in some hundredths of a second.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    return "bf16" if kind == "cpu" and bfloat16_is_native() and bfloat16_share() < WORTH_IT else "32"


@cache
def bfloat16_share() -> float:
    """Time of a convolution in bfloat16 autocast as a share of its time in float32, on the processor."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(8, 64, 32, 32, generator=generator)
    weight = torch.rand(64, 64, 3, 3, generator=generator)

    def seconds(autocast: bool) -> float:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            start = time.perf_counter()
            functional.conv2d(frames, weight, padding=1)
            return time.perf_counter() - start

    times = {autocast: [seconds(autocast) for _ in range(8)] for autocast in (False, True)}
    return min(times[True]) / min(times[False])


def chosen_device(device: str = "auto") -> str:
    """The device that a command line asks for: "auto" is CUDA where torch sees a GPU, else the CPU."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def free_memory(device: torch.device | str) -> int | None:
    """Bytes that can be allocated on a device; None where the system does not say."""
    device = torch.device(device)
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    table = Path("/proc/meminfo")
    if device.type != "cpu" or not table.is_file():
        return None
    for line in table.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
