"""Settings of a reconstruction: what is left to the model, and how it is resolved."""

from __future__ import annotations

import pytest

from reconx_pl.diffusion.weights.generation import ClipDefaults
from reconx_pl.errors import ConfigurationError
from reconx_pl.files.identity import plain_settings
from reconx_pl.reconstruction.settings import GenerationConfig, ReconstructionConfig

VIEWCRAFTER = ClipDefaults(25, 576, 1024, 10.0)


def test_what_is_open_is_the_models_own_or_else_the_papers() -> None:
    assert tuple(GenerationConfig().resolved(VIEWCRAFTER).clip) == (25, 576, 1024, 10.0)
    assert tuple(GenerationConfig().resolved().clip) == (32, 512, 512, 8.0)
    assert tuple(GenerationConfig().resolved(ClipDefaults(frames=24, height=320)).clip) == (24, 320, 512, 8.0)
    given = GenerationConfig(frames=9, fps=5.0, caption="a room").resolved(VIEWCRAFTER)
    assert given == GenerationConfig(9, 576, 1024, 5.0, "a room") and given.resolved() == given


def test_what_is_hashed_is_what_it_was_when_the_numbers_were_defaults() -> None:
    resolved = plain_settings(ReconstructionConfig().resolved())["generation"]
    assert {"frames": 32, "height": 512, "width": 512, "fps": 8.0}.items() <= resolved.items()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"frames": 1}, "at least 2 frames.*got 1 frames of 512 x 512 at 8.0"),
        ({"height": 4}, "of 4 x 512"),
        ({"fps": 0.0}, "at 0.0 a second"),
        ({"orbit_frames": -1}, "orbit_frames is 0 or more"),
    ],
)
def test_numbers_that_are_refused_at_once(given: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        GenerationConfig(**given)  # type: ignore[arg-type]


def test_an_orbit_waits_for_the_number_of_frames() -> None:
    orbit = GenerationConfig(orbit_frames=40, end_condition_frame=28)
    assert orbit.resolved().frames == 32
    with pytest.raises(ConfigurationError, match=r"clips of 25.*end_condition_frame in 1 to 23; got 40 and 28"):
        orbit.resolved(VIEWCRAFTER)
