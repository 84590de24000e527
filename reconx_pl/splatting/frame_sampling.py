"""Which frames a step of the fit sees."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import torch

from reconx_pl.errors import ConfigurationError


def sample_frames(frequencies: Sequence[float], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Endless batches of frame indices, shuffled, in which frame i comes with a frequency proportional to the i-th.

    The n-th turn of a frame of frequency f is at the time (n + u) / f with u uniform in [0, 1) and drawn anew each
    time, and frames come in the order of their turns. Within a time T it comes floor(f T) times or once more, so the
    shares are exact in the long run and even along it. Equal frequencies give a new permutation of all frames in every
    round.

    Args:
        frequencies: one a frame, >= 0; 0 = never.
        size: frames a batch.
        generator: a CPU generator.

    Raises:
        ConfigurationError: no frame has a frequency above 0.
    """
    if not any(frequency > 0 for frequency in frequencies):
        raise ConfigurationError(
            "no frame would ever be drawn: all are input views and input_view_weight is 0; raise it"
        )
    return _batches(frequencies, size, generator)


def _batches(frequencies: Sequence[float], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    def turn(frame: int, number: int) -> tuple[float, int, int]:
        jitter = float(torch.rand((), generator=generator, dtype=torch.float64))
        return (number + jitter) / frequencies[frame], frame, number

    waiting = [turn(frame, 0) for frame, frequency in enumerate(frequencies) if frequency > 0]
    heapq.heapify(waiting)
    while True:
        batch = []
        for _ in range(min(size, len(frequencies))):
            _, frame, number = waiting[0]
            heapq.heapreplace(waiting, turn(frame, number + 1))
            batch.append(frame)
        yield batch
