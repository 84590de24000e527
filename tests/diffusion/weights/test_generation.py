"""``generation.json``: what a model generates unless told otherwise, written and read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reconx_pl.diffusion.sampling.config import SamplingConfig
from reconx_pl.diffusion.weights.generation import GENERATION, ClipDefaults, GenerationDefaults, read_generation
from reconx_pl.diffusion.weights.releases import RELEASES, release_defaults
from reconx_pl.errors import BadWeightsError, ConfigurationError


@pytest.mark.parametrize("name", RELEASES)
def test_what_is_written_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / GENERATION).write_text(release_defaults(name).text())
    assert read_generation(tmp_path) == release_defaults(name)


def test_what_releases_say() -> None:
    corrected = SamplingConfig(50, "ddim", 1.0, 7.5, guidance_rescale=0.7, last_step="corrected", spacing="trailing")
    expected = {
        "viewcrafter-25": (ClipDefaults(25, 576, 1024, 10.0), corrected),
        "viewcrafter-25-sparse": (ClipDefaults(25, 576, 1024, 10.0), corrected),
        "viewcrafter-25-512": (ClipDefaults(25, 320, 512, 10.0), corrected),
        "dynamicrafter-512-interp": (ClipDefaults(32, 320, 512, None), SamplingConfig()),
    }
    for name, (clip, sampling) in expected.items():
        assert release_defaults(name) == GenerationDefaults(name, clip, sampling)
    assert release_defaults("dynamicrafter-1024", 16).clip == ClipDefaults(16, 576, 1024, None)
    with pytest.raises(ConfigurationError, match="sees the tokens of all of them.*leave frames out"):
        release_defaults("viewcrafter-25", 32)


def test_a_folder_without_it_says_nothing_and_one_of_a_part_leaves_the_rest(tmp_path: Path) -> None:
    assert read_generation(tmp_path) == GenerationDefaults(None, ClipDefaults(), SamplingConfig())
    (tmp_path / GENERATION).write_text(json.dumps({"clip": {"frames": 9}, "sampling": {"eta": 0.0}}))
    assert read_generation(tmp_path) == GenerationDefaults(None, ClipDefaults(9), SamplingConfig(eta=0.0))


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", '{"clip": {"novel": 1}}', '{"clip": {"frames": "many"}}', '{"sampling": {"num_inference_steps": 0}}'],
)
def test_what_is_not_of_this_form(text: str, tmp_path: Path) -> None:
    (tmp_path / GENERATION).write_text(text)
    with pytest.raises(BadWeightsError, match=r"(?s)generation\.json: does not say how the model generates.*delete it"):
        read_generation(tmp_path)
