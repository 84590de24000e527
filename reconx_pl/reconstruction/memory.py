"""The most memory that a piece of work takes."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass
class Peak:
    """Bytes at most: ``host`` of the process, ``device`` of the GPU; None without one. Filled when the work is over."""

    host: int = 0
    device: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure the block. Where the system cannot start anew (not Linux) ``host`` is since the process began."""
    peak = Peak()
    with suppress(OSError):
        _RESET.write_text("5")  # resets VmHWM (proc(5))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        yield peak
    finally:
        peak.host = _most()
        if device.type == "cuda":
            peak.device = torch.cuda.max_memory_allocated(device)


def _most() -> int:
    try:
        lines = _STATUS.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
