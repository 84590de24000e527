"""Photographs of different exposures: everything after geometry sees them evened, and nothing changes without need."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rooms import CONFIG, Fader, Room, Surveyor, folder_of, go, made

from reconx_pl.errors import ConfigurationError
from reconx_pl.reconstruction.frames import read_fit_input

GAINS = (1.2, 0.8, 1.0)


@pytest.fixture(scope="module")
def exposed(three: Room, tmp_path_factory: pytest.TempPathFactory) -> Room:
    """The photographs of ``three``, the first brighter and the second darker."""
    folder = tmp_path_factory.mktemp("exposed")
    files = [folder / file.name for file in three.files]
    for source, file, gain in zip(three.files, files, GAINS, strict=True):
        Image.fromarray(np.rint(np.array(Image.open(source)) * gain).clip(0, 255).astype(np.uint8)).save(file)
    return replace(three, files=files)


def test_all_that_follows_sees_the_photographs_evened(three: Room, exposed: Room, tmp_path: Path) -> None:
    view_generator = Fader()
    plain = go(three, tmp_path / "plain")
    result = go(exposed, tmp_path / "scene", view_generator)
    true = read_fit_input(folder_of(plain, "frames")).images
    raw = torch.stack([(image * gain).clamp(0, 1) for image, gain in zip(true, GAINS, strict=True)])
    given = read_fit_input(folder_of(result, "frames"))
    seen = given.images[given.input_places]
    assert (seen - true).abs().mean() < 0.1 * (raw - true).abs().mean()
    assert torch.equal(view_generator.clips[0].images[0], seen[0]), "frames are generated from what the fit sees"
    written = np.array(Image.open(tmp_path / "scene" / "images" / "00_photo_0.png")).astype(float)
    assert abs(written.mean() / np.array(Image.open(three.files[0])).mean() - 1) < 0.03
    summary = json.loads((tmp_path / "scene" / "reconstruction.json").read_text())
    np.testing.assert_allclose(np.array(summary["exposure_gains"]) * np.array(GAINS)[:, None], 1, atol=0.03)
    told = [stage["name"] for stage in summary["stages"] if "exposures differ by up to 5" in "; ".join(stage["notes"])]
    assert told == ["generation"], "once, at the first stage that sees them"
    assert "exposures differ by up to" in (tmp_path / "scene" / "report.html").read_text()


def test_points_start_with_the_colours_of_the_evened_photographs(three: Room, exposed: Room, tmp_path: Path) -> None:
    colors = {}
    for name, photographs in (("plain", three), ("scene", exposed)):
        result = go(photographs, tmp_path / name)
        assert result.views is not None
        colors[name] = result.views.cloud.colors
    assert (colors["scene"] - colors["plain"]).abs().median() < 0.02


def test_one_exposure_is_left_to_the_bit(three: Room, tmp_path: Path) -> None:
    out = tmp_path / "scene"
    never = go(three, out, config=replace(CONFIG, even_exposures="never"))
    auto = go(three, out)
    assert made(auto) == [], "the stages of before are those of now"
    assert [stage.key for stage in auto.stages] == [stage.key for stage in never.stages]
    assert json.loads((out / "reconstruction.json").read_text())["exposure_gains"] is None


def test_another_setting_repeats_the_fit_and_not_the_geometry(exposed: Room, tmp_path: Path) -> None:
    surveyor, out = Surveyor(exposed), tmp_path / "scene"
    go(exposed, out, surveyor=surveyor)
    assert "exposures differ by up to" in (out / "report.html").read_text()
    again = go(exposed, out, config=replace(CONFIG, even_exposures="never"), surveyor=surveyor)
    assert made(again) == ["frames", "fit", "flythrough"] and surveyor.calls == 1
    written = np.array(Image.open(out / "images" / "00_photo_0.png"))
    np.testing.assert_array_equal(written, np.array(Image.open(exposed.files[0])))


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="even_exposures is auto, always, never; got 'on'"):
        replace(CONFIG, even_exposures="on")  # type: ignore[arg-type]
