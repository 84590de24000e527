"""Processor time of alternatives, in turn, so that a change of the machine's speed hits all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def processor_seconds(alternatives: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Median processor-seconds of each over ``rounds`` rounds of all of them, after one of warm-up; one thread."""
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for turn in range(rounds + 1):
        for name, function in alternatives.items():
            start = time.process_time()
            function()
            if turn:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(seconds: dict[str, float], against: str) -> None:
    """Print seconds and the ratio to one of them."""
    for name, value in seconds.items():
        print(f"{name:44s} {value * 1000:10.1f} ms   {value / seconds[against]:6.2f} x {against}")
