"""The plan of a closed sequence: conditions are there before, every frame is generated once, and it closes."""

from __future__ import annotations

import random

import pytest

from reconx_pl.errors import ConfigurationError
from reconx_pl.reconstruction.windows import Window, plan_windows


def random_plans(count: int) -> list[tuple[int, list[int], int, int]]:
    draw = random.Random(0)
    plans = []
    for _ in range(count):
        frames = draw.randint(3, 12)
        places = [0, draw.randint(1, frames - 1)]
        for _ in range(draw.randint(0, 3)):
            places.append(places[-1] + draw.randint(1, 4 * frames))
        plans.append((places[-1] + draw.randint(1, 5 * frames), places, frames, draw.randint(1, frames - 2)))
    return plans


def test_every_plan_generates_every_frame_once_from_what_is_there() -> None:
    for total, places, frames, end_condition_frame in random_plans(3000):
        plan, there = plan_windows(total, places, frames, end_condition_frame), set(places)
        for window in plan:
            assert window.start in there and (window.start + window.end_condition_frame) % total in there, (
                plan,
                window,
            )
            assert 0 < window.end_condition_frame < frames and window.start + window.end_condition_frame <= total
            for frame in window.generates:
                assert frame not in there and window.start < frame < min(window.start + frames, total)
                there.add(frame)
        assert there == set(range(total))


def test_every_gap_that_needs_extrapolation_ends_with_a_whole_interpolation() -> None:
    seen = 0
    for total, places, frames, end_condition_frame in random_plans(1000):
        plan = plan_windows(total, places, frames, end_condition_frame)
        for start, stop in zip(places[1:], [*places[2:], total], strict=True):
            if stop - start > frames - 1:
                closing = Window(stop - frames + 1, frames - 1, tuple(range(stop - frames + 2, stop)))
                assert closing in plan
                seen += 1
            within = [w for w in plan if w.start >= start and w.start + frames <= stop]
            assert all(
                w.end_condition_frame == end_condition_frame
                for w in within
                if w.start > end_condition_frame and w.generates[-1] < stop - frames + 1
            )
    assert seen > 300


def test_two_photographs_at_a_clips_two_conditions() -> None:
    assert plan_windows(30, [0, 4], frames=8, end_condition_frame=4) == (
        Window(0, 4, (1, 2, 3, 5, 6, 7)),
        Window(3, 4, (8, 9, 10)),
        Window(6, 4, (11, 12, 13)),
        Window(9, 4, (14, 15, 16)),
        Window(12, 4, (17, 18, 19)),
        Window(15, 4, (20, 21, 22)),
        Window(18, 4, (23,)),  # cut, so that the last clip has its full length
        Window(23, 7, (24, 25, 26, 27, 28, 29)),
    )


def test_a_loop_of_photographs_is_interpolated_throughout() -> None:
    plan = plan_windows(12, [0, 4, 8], frames=5, end_condition_frame=2)
    assert plan == (Window(0, 4, (1, 2, 3)), Window(4, 4, (5, 6, 7)), Window(8, 4, (9, 10, 11)))


@pytest.mark.parametrize(
    ("total", "places", "frames", "end_condition_frame", "says"),
    [
        (20, [0], 8, 4, "two photographs"),
        (20, [1, 3], 8, 4, "ascending places from 0"),
        (20, [0, 5, 5], 8, 4, "ascending"),
        (6, [0, 6], 8, 4, "less than 6"),
        (20, [0, 8], 8, 4, "at most 7 frames"),
        (20, [0, 4], 8, 7, "in 1 to 6"),
        (20, [0, 4], 8, 0, "in 1 to 6"),
    ],
)
def test_impossible_plans_say_why(
    total: int, places: list[int], frames: int, end_condition_frame: int, says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        plan_windows(total, places, frames, end_condition_frame)
