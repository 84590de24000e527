"""Processor time of alternatives, in turn, so that a change of the machine's speed hits all of them; peak memory."""

from __future__ import annotations

import ctypes
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def processor_seconds(alternatives: dict[str, Callable[[], object]], rounds: int = 9) -> dict[str, list[float]]:
    """Processor-seconds of each in ``rounds`` rounds of all of them, after one of warm-up; one thread."""
    return seconds_of(alternatives, rounds, "cpu")


def seconds_of(
    alternatives: dict[str, Callable[[], object]],
    rounds: int,
    device: str,
    clock: Callable[[], float] | None = None,
) -> dict[str, list[float]]:
    """As ``processor_seconds``; on "cuda" the time until the device has finished, or that of another clock."""
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    clock = clock or (time.process_time if device == "cpu" else time.perf_counter)
    for turn in range(rounds + 1):
        for name, function in alternatives.items():
            start = clock()
            function()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def table(seconds: dict[str, list[float]], against: str) -> None:
    """Print for each the ratio to one of them, taken round by round (median, least and greatest), and its time."""
    print(f"ratio (least to greatest)     time   against: {against}")
    for name, values in seconds.items():
        ratios = [value / other for value, other in zip(values, seconds[against], strict=True)]
        spread = f"({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"{statistics.median(ratios):6.3f} {spread:16s} {statistics.median(values) * 1000:8.1f} ms   {name}")


def added_bytes(call: Callable[[], object], device: str) -> int:
    """The most memory that ``call`` adds to what this process, or on "cuda" the device for it, held before. Linux."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or the call would use what others freed
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    before = _held("VmRSS")
    call()
    return _held("VmHWM") - before


def peak_bytes(device: str) -> int:
    """The most memory that this process, or on "cuda" the device for it, has held. Linux.

    Not ``ru_maxrss``: a process that another starts inherits that one's peak there.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return _held("VmHWM")


def _held(entry: str) -> int:
    """An entry of Linux's account of this process, bytes."""
    found = re.search(rf"{entry}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) * 1024
