"""What this processor computes by itself."""

from __future__ import annotations

from pathlib import Path

import torch


def bfloat16_is_native() -> bool:
    """Whether the processor has the vector arithmetic that torch's bfloat16 needs; AVX2 emulates it, many times slower.

    Of x86 processors: torch names the instructions that it found.
    """
    return torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")


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
