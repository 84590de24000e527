"""Drawing of frames: exact shares, shuffled, repeatable."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch

from reconx_pl.errors import ConfigurationError
from reconx_pl.splatting.frame_sampling import sample_frames


def _drawn(frequencies: list[float], count: int, size: int = 1, seed: int = 0) -> list[int]:
    batches = sample_frames(frequencies, size, torch.Generator().manual_seed(seed))
    return [frame for batch in islice(batches, count) for frame in batch]


def test_equal_frequencies_give_permutations() -> None:
    order = _drawn([1.0] * 5, 50)
    rounds = [tuple(order[at : at + 5]) for at in range(0, 50, 5)]
    assert all(sorted(one) == list(range(5)) for one in rounds)
    assert len(set(rounds)) > 5  # shuffled anew


def test_shares_are_exact() -> None:
    """2.5 known frames to one generated: over 40 units of time 100 turns each to 40, none off by more than one."""
    counts = Counter(_drawn([2.5, 1.0, 1.0, 2.5], 280))
    assert all(abs(counts[frame] - expected) <= 1 for frame, expected in enumerate([100, 40, 40, 100]))


def test_heavy_frames_are_spread() -> None:
    """A frame drawn nine times as often as the one other comes at most 17 + 1 times in a row."""
    order = _drawn([9.0, 1.0], 1000)
    gaps = [at for at, frame in enumerate(order) if frame == 1]
    assert max(b - a for a, b in zip(gaps, gaps[1:], strict=False)) <= 19 and len(gaps) in (99, 100, 101)


def test_zero_is_never_and_seeds_repeat() -> None:
    assert 1 not in _drawn([1.0, 0.0, 0.3], 60)
    assert _drawn([1.0, 2.0, 3.0], 40, 2) == _drawn([1.0, 2.0, 3.0], 40, 2)
    assert _drawn([1.0, 2.0, 3.0], 40) != _drawn([1.0, 2.0, 3.0], 40, seed=1)


def test_batches_have_their_size() -> None:
    batches = list(islice(sample_frames([1.0, 1.0, 1.0], 2, torch.Generator()), 9))
    assert all(len(batch) == 2 for batch in batches)
    assert Counter(frame for batch in batches for frame in batch) == {0: 6, 1: 6, 2: 6}
    assert len(next(sample_frames([1.0, 1.0], 5, torch.Generator()))) == 2


def test_nothing_to_draw() -> None:
    with pytest.raises(ConfigurationError, match="input_view_weight"):
        sample_frames([0.0, 0.0], 1, torch.Generator())
