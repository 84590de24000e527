"""One photograph: a path around what it shows, a scene, and what is said about all that nobody knows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from da3_networks import tiny_network
from PIL import Image
from PIL.ExifTags import IFD, Base
from rooms import CONFIG, Fader, Room, Surveyor, folder_of, go, made, room

from reconx_pl.cli.main import main
from reconx_pl.data.formats.camera_path_file import write_camera_path
from reconx_pl.data.formats.readers import only_scene
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.camera_paths import orbit_path
from reconx_pl.geometry.da3.pretrained import WEIGHTS
from reconx_pl.geometry.da3.weights import save_weights
from reconx_pl.geometry.rendering.surface import render_surface
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.reconstruction.generation import read_sequence
from reconx_pl.reconstruction.settings import STAGES
from reconx_pl.reconstruction.view_generator import ViewGeneratorSource
from reconx_pl.reconstruction.views import input_views
from reconx_pl.splatting.io.ply import load_ply
from reconx_pl.types import Clip

QUICK = ["--fit.steps", "10", "--fit.loss.lpips", "0", "--short_side", "32", "--flythrough_frames", "3"]
ORBIT = replace(CONFIG, generation=replace(CONFIG.generation, path="orbit"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return room(tmp_path_factory.mktemp("photographs"), views=1)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no weights are


class Renders:
    """Generates what the depth of the photograph shows; remembers how much of a frame that is."""

    def __init__(self) -> None:
        self.covered: list[float] = []

    def generate(
        self, clip: Clip, generator: torch.Generator, *, end_condition_frame: int, views: DepthViews
    ) -> torch.Tensor:
        seen = render_surface(views, clip.cameras)
        self.covered += (seen.coverage > 0.5).float().mean(dim=(1, 2)).tolist()
        return seen.color

    def source(self) -> ViewGeneratorSource:
        return ViewGeneratorSource("renders", lambda: self, follows_cameras=True)  # type: ignore[arg-type]


def notes(result: Any, stage: str) -> str:
    return "; ".join(next(one.notes for one in result.stages if one.name == stage))


def test_an_orbit_around_what_one_photograph_shows(one: Room, tmp_path: Path) -> None:
    generator = Renders()
    result = go(one, tmp_path / "scene", generator, ORBIT)  # type: ignore[arg-type]
    assert made(result) == list(STAGES)
    sequence = read_sequence(folder_of(result, "generation"))
    assert sequence.way == len(sequence.images) == 6 and sequence.input_places == [0] and sequence.posed
    assert result.views is not None
    given = input_views(result.views, 32, 48)
    assert given.depth is not None
    ahead = given.cameras.camera_to_world[0, :3, 2] * given.depth[given.depth > 0].median()
    expected = orbit_path(given.cameras, 6, given.cameras.centers + ahead)
    off = (sequence.cameras.centers - expected.centers).norm(dim=1)
    assert float(off.max()) < 0.005 * float((expected.centers - expected.centers[0]).norm(dim=1).max()), (
        "by the median of all pixels, and not of the cloud"
    )
    assert min(generator.covered) > 0.6, "most of every frame is what the photograph saw"
    assert "6 frames generated along the path orbit, through 1 of 1 photograph" in notes(result, "generation")
    assert "path orbit" in notes(result, "flythrough"), "where an interpolated one has nowhere to go"
    focal = float(one.cameras.intrinsics[0, 0, 0])
    said = notes(result, "geometry")
    assert "1 camera, found by Surveyor" in said
    assert f"focal length ({focal:.0f} pixels; EXIF has none) are as Surveyor gives them" in said and "guesses" in said
    assert len(only_scene(result.out)) == 1 and len(load_ply(result.out / "scene.ply")) > 500
    page = (result.out / "report.html").read_text()
    assert "<b>1 photograph</b>" in page and "along a path of the camera (orbit)" in page
    assert "fitted to this very photograph" in page and "guesses" in page
    assert "neighbouring photographs" not in page and "Triangles are" not in page
    again = go(one, tmp_path / "scene", Renders(), ORBIT)  # type: ignore[arg-type]
    assert made(again) == []


@pytest.mark.parametrize("path", ["spiral", "file"])
def test_other_paths_leave_from_the_photograph_too(one: Room, tmp_path: Path, path: str) -> None:
    if path == "file":
        path = str(tmp_path / "path.json")
        write_camera_path(one.cameras[[0, 0, 0]], 8.0, Path(path))
    config = replace(CONFIG, generation=replace(CONFIG.generation, path=path))
    result = go(one, tmp_path / "scene", Renders(), config, stages=["frames"])  # type: ignore[arg-type]
    sequence = read_sequence(folder_of(result, "generation"))
    assert sequence.way == (6 if path == "spiral" else 3)
    assert sequence.beside == (1 if path == "spiral" else 0), "the photograph itself is fitted, wherever it stands"


def test_without_generation_it_is_a_scene_of_what_the_photograph_shows(one: Room, tmp_path: Path) -> None:
    result = go(one, tmp_path / "scene")
    assert "away from the camera the scene has holes" in notes(result, "frames")
    assert "fitted to 1 frame" in notes(result, "fit") and "path orbit" in notes(result, "flythrough")
    page = (result.out / "report.html").read_text()
    assert "Nothing was generated: what the photograph does not show is missing" in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": "interpolated"}, "--path interpolated leads from one photograph to another.*--path orbit"),
        ({"path": "viewcrafter"}, "--path viewcrafter leads from one photograph to another.*--path orbit"),
        ({"orbit_frames": 8, "end_condition_frame": 2}, "orbit_frames lead from one.*--path orbit"),
    ],
)
def test_a_path_to_another_photograph_is_refused(one: Room, tmp_path: Path, change: dict, words: str) -> None:
    surveyor, config = Surveyor(one), replace(CONFIG, generation=replace(CONFIG.generation, **change))
    with pytest.raises(ConfigurationError, match=words):
        go(one, tmp_path / "scene", Fader(), config, surveyor=surveyor)
    assert surveyor.calls == 0, "before anything long"
    assert made(go(one, tmp_path / "scene", Fader(), config, surveyor=surveyor, stages=["geometry"])), "needs no path"


def test_a_flythrough_to_another_photograph_is_refused(one: Room, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--flythrough interpolated.*take orbit or spiral"):
        go(one, tmp_path / "scene", config=replace(CONFIG, flythrough="interpolated"))


def test_a_model_that_follows_no_path_is_refused(one: Room, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Fader follows no path of cameras.*reconx-mini"):
        go(one, tmp_path / "scene", Fader(), ORBIT)


def test_points_alone_are_no_depth(one: Room, tmp_path: Path) -> None:
    surveyor = Surveyor(one)
    surveyor.dense_maps = False  # type: ignore[attr-defined]
    with pytest.raises(BadSceneError, match="no depth"):
        go(one, tmp_path / "scene", Renders(), ORBIT, surveyor=surveyor)  # type: ignore[arg-type]


# --- by the command


def test_depth_anything_takes_one_photograph_and_keeps_its_own_lens(
    one: Room, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    WEIGHTS["da3-small"].parent.mkdir()
    save_weights(tiny_network(), WEIGHTS["da3-small"])
    exif = Image.Exif()
    exif.get_ifd(IFD.Exif)[Base.FocalLengthIn35mmFilm] = 43
    Image.open(one.files[0]).save("phone.jpg", exif=exif)
    main(["reconstruct", "phone.jpg", "-o", "scene", "--geometry", "da3-small", "--no-diffusion", *QUICK])
    said = " ".join(capsys.readouterr().err.split())
    found = float(only_scene(tmp_path / "scene").cameras.intrinsics[0, 0, 0])
    assert f"({found:.0f} pixels; EXIF says 115) are as PretrainedDa3 gives them" in said
    assert len(load_ply(tmp_path / "scene" / "scene.ply")) > 500


def test_geometry_of_another_program_makes_a_video(one: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    camera = one.cameras
    arrays = {"world_to_camera": camera.world_to_camera.numpy(), "intrinsics": camera.intrinsics.numpy()}
    np.savez("found.npz", depth=one.depth.numpy(), **arrays)
    monkeypatch.setattr("reconx_pl.training.models.model_source", lambda *_: Renders().source())
    size = ["--generation.frames", "4", "--generation.height", "32", "--generation.width", "48"]
    wanted = [str(one.files[0]), "--geometry_from", "found.npz", "--path", "orbit", *size]
    main(["generate", *wanted, "-o", "video.mp4"])
    assert (tmp_path / "video.mp4").is_file()
    assert len(json.loads((tmp_path / "video.cameras.json").read_text())["frames"]) == 6


@pytest.mark.parametrize("geometry", ["auto", "colmap"])
def test_structure_from_motion_names_the_way_out(one: Room, tmp_path: Path, geometry: str) -> None:
    with pytest.raises(SystemExit, match=r"needs two images.*photo_0\.png.*reconx weights fetch da3-base"):
        main(["reconstruct", str(one.files[0]), "-o", "scene", "--no-diffusion", "--geometry", geometry, *QUICK])
