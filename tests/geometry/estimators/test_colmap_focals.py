"""When photographs refute a focal length: figures of real ones, and what never does."""

from __future__ import annotations

import pytest

from reconx_pl.geometry.estimators.colmap_focals import refuted

# Features and mean squared error with the length kept and free; drift of the free one; whether EXIF was wrong by more.
REAL = {
    "4 of RealEstate10K side by side, EXIF right": ((1808, 0.3576), (1829, 0.3440), 0.231, False),
    "8 of RealEstate10K, EXIF right": ((1516, 0.2664), (1546, 0.2676), -0.083, False),
    "8 from the air, EXIF right": ((2583, 0.0581), (2581, 0.0575), -0.193, False),
    "4 of a fern far apart, EXIF right": ((1233, 0.2589), (939, 0.2383), -0.155, False),
    "8 around a fox, EXIF 3 % long": ((5489, 0.1599), (5485, 0.1501), -0.029, True),
    "4 around a fox, EXIF 3 % long": ((2337, 0.1353), (2339, 0.1292), -0.031, True),
}


@pytest.mark.parametrize(("kept", "free", "drift", "wrong"), REAL.values(), ids=REAL)
def test_real_photographs(kept: tuple[int, float], free: tuple[int, float], drift: float, wrong: bool) -> None:
    assert refuted(kept, free, [drift]) == wrong


def test_the_farther_a_length_is_the_more_has_to_speak_for_it() -> None:
    kept, free = (2000, 0.30), (2000, 0.25)  # a gain of 100
    assert refuted(kept, free, [0.2]) and not refuted(kept, free, [0.4])
    assert not refuted(kept, free, [0.25, 0.25]), "two lenses would both be wrong"
    assert not refuted(free, kept, [0.001]), "the known one fits better"


def test_a_model_that_lost_its_points_is_not_better_for_their_small_errors() -> None:
    assert refuted((1000, 0.1), (2000, 0.5), [0.3]) and not refuted((2000, 0.5), (1000, 0.1), [0.01])
