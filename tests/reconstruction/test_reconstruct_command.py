"""``reconx reconstruct`` and ``ReconX``: options, resuming, and one clear sentence for every bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from da3_networks import tiny_network
from PIL import Image
from rooms import CONFIG, Fader, Room, Surveyor, room

import reconx_pl
from reconx_pl import api
from reconx_pl.cli.main import main
from reconx_pl.data.formats.readers import only_scene
from reconx_pl.diffusion.weights.generation import ClipDefaults
from reconx_pl.errors import ConfigurationError, MissingWeightsError
from reconx_pl.geometry.da3.pretrained import WEIGHTS
from reconx_pl.geometry.da3.weights import save_weights
from reconx_pl.reconstruction.settings import GenerationConfig, ReconstructionConfig
from reconx_pl.splatting.io.ply import load_ply
from reconx_pl.visualization.video import write_mp4

QUICK = ["--fit.steps", "10", "--fit.loss.lpips", "0", "--short_side", "32", "--flythrough_frames", "3"]
SPARSE = ["--no-diffusion", "--geometry", "colmap", *QUICK]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return room(tmp_path_factory.mktemp("photographs"), views=2)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no weights are


def refused(*arguments: str | Path) -> str:
    """What the command says before it ends with an exit code that is not 0."""
    with pytest.raises(SystemExit) as stopped:
        main(["reconstruct", *map(str, arguments)])
    assert isinstance(stopped.value.code, str), "a sentence, and so exit code 1"
    assert "Traceback" not in stopped.value.code and stopped.value.code.startswith("error: ")
    return stopped.value.code


def surveyed(monkeypatch: pytest.MonkeyPatch, two: Room) -> Surveyor:
    """Let --geometry colmap be done by one who knows the room."""
    surveyor = Surveyor(two)
    monkeypatch.setattr("reconx_pl.cli.reconstruct.named_estimator", lambda name, device: surveyor)
    monkeypatch.setattr("reconx_pl.api.named_estimator", lambda name, device: surveyor)
    return surveyor


# --- what it does


def test_geometry_of_another_program(two: Room, tmp_path: Path) -> None:
    arrays = {"depth": two.depth.numpy(), "world_to_camera": two.cameras.world_to_camera.numpy()}
    names = np.array([file.name for file in two.files[::-1]])
    arrays = {name: value[::-1] for name, value in arrays.items()} | {"names": names}
    np.savez("found.npz", intrinsics=two.cameras.intrinsics.numpy()[::-1], **arrays)
    folder = str(two.files[0].parent)
    main(["reconstruct", folder, "-o", "out", "--geometry_from", "found.npz", "--no-diffusion", *QUICK])
    found = only_scene(tmp_path / "out").cameras
    assert len(load_ply(tmp_path / "out" / "scene.ply").means) > 500
    moved = found.centers[0] - found.centers[1]
    true = two.cameras.centers[0] - two.cameras.centers[1]
    assert min((moved - true).norm(), (moved + true).norm()) < 1e-3
    assert yaml.safe_load((tmp_path / "out" / "settings.yaml").read_text())["geometry_from"] == str(
        tmp_path / "found.npz"
    )
    nowhere = refused(folder, "-o", "c", "--geometry_from", "nowhere.npz", "--no-diffusion")
    assert "nowhere.npz: no such file" in nowhere
    Image.new("RGB", (64, 64), (90, 20, 20)).save(tmp_path / "square.png")
    unlike = [two.files[0], two.files[1], tmp_path / "square.png", "--no-diffusion"]
    assert "square.png: of another shape" in refused(*unlike, "-o", "d", "--geometry_from", "found.npz")
    other = "reconx_pl.geometry.estimators.colmap.ColmapEstimator"
    message = refused(folder, "-o", "b", "--geometry_from", "found.npz", "--estimator", other, "--no-diffusion")
    assert "--geometry_from found.npz has the geometry that --estimator would find" in message


def test_geometry_is_refined_on_request(
    two: Room, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Photographs so small that nothing matches keep what was given; but it is another stage, and --resume knows."""
    cameras, names = two.cameras, np.array([file.name for file in two.files])
    poses, lenses = cameras.world_to_camera.numpy(), cameras.intrinsics.numpy()
    np.savez("found.npz", depth=two.depth.numpy(), world_to_camera=poses, intrinsics=lenses, names=names)
    caplog.set_level("INFO")
    given = ["--geometry_from", "found.npz", "--no-diffusion", "--stages", "geometry", "-o", "out", *QUICK]
    main(["reconstruct", *map(str, two.files), *given])
    assert "found by GeometryFile" in capsys.readouterr().err
    main(["reconstruct", *map(str, two.files), *given, "--refine_geometry", "true"])
    said = " ".join(capsys.readouterr().err.split())
    assert "found by RefinedEstimator of GeometryFile" in said and "poses kept as given" in caplog.text
    assert len(list((tmp_path / "out" / "stages").glob("geometry-*"))) == 2
    main(["reconstruct", "--resume", "-o", "out", "--stages", "geometry"])
    assert "geometry: kept" in capsys.readouterr().err
    torch.testing.assert_close(only_scene(tmp_path / "out").cameras.centers.float(), cameras.centers, atol=1e-4, rtol=0)


def test_photographs_in_scene_out_and_on_with_resume(
    two: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    surveyor = surveyed(monkeypatch, two)
    out = tmp_path / "scene"
    main(["reconstruct", *map(str, two.files), "-o", str(out), *SPARSE, "--stages", "geometry"])
    assert not (out / "scene.ply").exists() and len(only_scene(out)) == 2
    said = capsys.readouterr().err
    assert "800 points and 2 cameras" in said
    main(["reconstruct", "--resume", "-o", str(out)])
    assert len(load_ply(out / "scene.ply")) > 500 and surveyor.calls == 1
    said = capsys.readouterr().err
    assert "geometry: kept" in said and f"reconxview{out}/scene.ply" in "".join(said.split())
    kept = yaml.safe_load((out / "settings.yaml").read_text())
    assert kept["fit"]["steps"] == 10 and kept["photographs"] == [str(file) for file in two.files]
    # the file is a configuration like any other
    again = ["--config", str(out / "settings.yaml"), "-o", str(tmp_path / "again")]
    main(["reconstruct", *map(str, two.files), *again])
    assert (tmp_path / "again" / "scene.ply").stat().st_size == (out / "scene.ply").stat().st_size


def test_a_model_generates(two: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surveyed(monkeypatch, two)
    asked = []
    monkeypatch.setattr(
        "reconx_pl.training.models.model_source",
        lambda place, sampling, device: asked.append((place, sampling, device)) or Fader().source(),
    )
    out = tmp_path / "scene"
    generation = ["--generation.frames", "4", "--generation.height", "32", "--generation.width", "48"]
    main(["reconstruct", str(two.files[0].parent), "-o", str(out), "--model", "a/model", *QUICK, *generation])
    assert asked == [("a/model", None, "cpu")]
    assert json.loads((out / "reconstruction.json").read_text())["view_generator"] == "a fader"
    assert (out / "generated.mp4").is_file()


def test_a_release_is_fetched_and_its_clips_are_generated(
    two: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames, size and frame rate that nobody named are the release's, in what is kept and in what is hashed."""
    surveyed(monkeypatch, two)
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.setattr(
        "reconx_pl.pretrained.fetch.fetch_release",
        lambda release, folder: (folder.mkdir(), (folder / release.saved_as).write_bytes(b"10.4 GB")),
    )
    name, photographs = "viewcrafter-25-sparse", [*map(str, two.files)]
    wanted = ["--model", name, "--geometry", "colmap", "--generation.fps", "12", *QUICK, "--stages", "geometry"]
    assert f"reconx weights fetch {name}" in refused(*photographs, "-o", "scene", *wanted)
    assert not Path("scene").exists(), "said before anything is done"
    main(["reconstruct", *photographs, "-o", "scene", *wanted, "--yes"])
    own = {"frames": 25, "height": 576, "width": 1024, "fps": 12.0}
    kept = yaml.safe_load(Path("scene/settings.yaml").read_text())
    assert own.items() <= kept["generation"].items() and kept["model"] == name and "yes" not in kept
    assert own.items() <= json.loads(Path("scene/reconstruction.json").read_text())["settings"]["generation"].items()
    main(["reconstruct", "--resume", "-o", "scene", "--stages", "geometry"])


def test_the_clip_of_a_model_is_generated_where_no_other_is_named(
    two: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    surveyed(monkeypatch, two)
    source = Fader().source()
    source.clip = ClipDefaults(frames=5, height=32, width=48, fps=None)
    model = api.ReconX(source, geometry="colmap", config=ReconstructionConfig(fit=CONFIG.fit), device="cpu")
    scene = model.reconstruct(two.files, out=tmp_path / "scene")
    settings = json.loads((scene.folder / "reconstruction.json").read_text())["settings"]["generation"]
    assert [settings[name] for name in ("frames", "height", "width", "fps")] == [5, 32, 48, 8.0]
    named = GenerationConfig(frames=5, height=32, width=48, fps=8.0)
    model.reconstruct(two.files, out=scene.folder, config=ReconstructionConfig(fit=CONFIG.fit, generation=named))
    assert len(list((scene.folder / "stages").glob("generation-*"))) == 1, "named or not, it is the same result"


def test_five_lines_of_python(two: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surveyor = surveyed(monkeypatch, two)
    assert reconx_pl.ReconX is api.ReconX
    model = reconx_pl.ReconX.from_pretrained(None, geometry="colmap", config=CONFIG, device="cpu")
    scene = model.reconstruct([Image.open(file) for file in two.files], out=tmp_path / "scene")
    assert len(scene.gaussians) > 500 and scene.folder == tmp_path / "scene"
    torch.testing.assert_close(scene.cameras.world_to_camera.float(), two.cameras.world_to_camera, atol=1e-5, rtol=0)
    assert len(load_ply(scene.save(tmp_path / "copy.ply"))) == len(scene.gaussians)
    model.reconstruct([Image.open(file) for file in two.files], out=tmp_path / "scene")
    assert surveyor.calls == 1, "the same pictures are the same photographs"
    elsewhere = model.reconstruct(two.files[0].parent)
    assert elsewhere.folder != scene.folder and (elsewhere.folder / "report.html").is_file()
    with pytest.raises(ConfigurationError, match="image 1 is a ndarray: give a path or a PIL image"):
        model.reconstruct([two.files[0], np.zeros((8, 8, 3))])  # type: ignore[list-item]
    with pytest.raises(MissingWeightsError, match="neither the folder of a training run"):
        reconx_pl.ReconX.from_pretrained(tmp_path)


def test_auto_takes_depth_anything_where_its_weights_are(
    two: Room, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tiny random network in the place of the released one: its scene means nothing, that it is made does."""
    WEIGHTS["da3-base"].parent.mkdir()
    save_weights(tiny_network(), WEIGHTS["da3-base"])
    out = tmp_path / "scene"
    main(["reconstruct", *map(str, two.files), "-o", str(out), "--no-diffusion", *QUICK])
    said = " ".join(capsys.readouterr().err.split())
    assert "2 cameras, found by PretrainedDa3" in said
    assert len(load_ply(out / "scene.ply")) > 500
    report = (out / "report.html").read_text()
    assert "Depth-Anything-3" in report and "Not for commercial use" not in report


# --- what is missing, with the commands that mend it


def test_without_a_model_the_one_that_comes_along_is_named(two: Room, tmp_path: Path) -> None:
    said = refused(*two.files, "-o", tmp_path / "scene", "--model", "null")
    assert "--model reconx-mini comes with the package" in said and not (tmp_path / "scene").exists()


def test_without_weights_of_dust3r_nothing_else_is_taken_unasked(two: Room, tmp_path: Path) -> None:
    said = refused(*two.files, "-o", tmp_path / "scene", "--no-diffusion", "--geometry", "dust3r")
    assert "reconx weights fetch dust3r-512-dpt" in said and "--geometry colmap" in said
    assert "not for commercial use" in said and not (tmp_path / "scene").exists()


@pytest.mark.parametrize("name", ["da3-base", "da3-small"])
def test_without_weights_of_depth_anything_nothing_else_is_taken_unasked(two: Room, tmp_path: Path, name: str) -> None:
    said = refused(*two.files, "-o", tmp_path / "scene", "--no-diffusion", "--geometry", name)
    assert f"reconx weights fetch {name}" in said and "Apache-2.0" in said and "--geometry colmap" in said
    assert not (tmp_path / "scene").exists()


# --- bad input


def test_no_photographs(tmp_path: Path) -> None:
    assert "name photographs, a folder of them or a video" in refused("-o", tmp_path / "scene", *SPARSE)


def test_text_that_is_called_jpg(two: Room, tmp_path: Path) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("milk, eggs")
    assert "notes.jpg" in refused(*two.files, text, "-o", tmp_path / "scene", *SPARSE)


def test_a_video_of_two_frames_that_are_one(two: Room, tmp_path: Path) -> None:
    write_mp4(np.full((1, 64, 96, 3), 90, np.uint8), tmp_path / "short.mp4", 24)
    assert "short.mp4" in refused(tmp_path / "short.mp4", "-o", tmp_path / "scene", *SPARSE)


def test_photographs_of_different_places(two: Room, tmp_path: Path) -> None:
    other = room(tmp_path / "elsewhere", views=2, seed=11)
    said = refused(two.files[0], other.files[0], "-o", tmp_path / "scene", *SPARSE)
    assert "photo_0.png" in said and ("matching features" in said or "too few features" in said)
    assert "--geometry da3-base" in said, "the way out for photographs that SIFT cannot match"
    assert (tmp_path / "scene" / "reconstruction.json").exists(), "what was done before is kept"
    main_again = refused(*two.files, "-o", tmp_path / "scene", "--no-diffusion", "--geometry", "dust3r", *QUICK)
    assert "weights of DUSt3R" in main_again, "a failed attempt does not claim the folder"


def test_thirty_megapixels_are_reduced_with_a_note(
    two: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    surveyed(monkeypatch, two)
    large = [tmp_path / f"{file.stem}.jpg" for file in two.files]
    for small, file in zip(two.files, large, strict=True):
        Image.open(small).resize((6720, 4480)).save(file, quality=60)
    main(["reconstruct", *map(str, large), "-o", str(tmp_path / "scene"), "--max_side", "96", *SPARSE])
    assert "30.1 megapixels and was reduced to 96 x 64" in " ".join(capsys.readouterr().err.split())


def test_a_folder_that_cannot_be_made(two: Room, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "no folder, and none can be made" in refused(*two.files, "-o", tmp_path / "file" / "scene", *SPARSE)


def test_resume_of_nothing(two: Room, tmp_path: Path) -> None:
    assert "there is nothing to go on with" in refused("--resume", "-o", tmp_path / "scene")
    assert "leave them out" in refused(two.files[0], "--resume", "-o", tmp_path / "scene")


def test_resume_does_not_ignore_options(two: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surveyed(monkeypatch, two)
    out = tmp_path / "scene"
    main(["reconstruct", *map(str, two.files), "-o", str(out), *SPARSE, "--stages", "geometry"])
    said = refused("--resume", "-o", out, "--fit.steps", "20", "--device", "cpu")
    assert "--fit.steps, --device would change them" in said
    main(["reconstruct", "--resume", "-o", str(out), "--stages", "frames"])


def test_resume_finds_the_model_from_any_folder(two: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    surveyed(monkeypatch, two)
    asked = []
    monkeypatch.setattr(
        "reconx_pl.training.models.model_source", lambda place, *_: asked.append(Path(place)) or Fader().source()
    )
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    wanted = ["--model", "runs/mine", "--stages", "geometry"]
    main(["reconstruct", *map(str, two.files), "-o", "scene", *QUICK, *wanted])
    monkeypatch.chdir(tmp_path / "scene")  # as the report says
    main(["reconstruct", "--resume", "-o", ".", "--stages", "geometry"])
    assert asked[1] == tmp_path / "runs" / "mine"


def test_notes_are_printed_as_they_are(
    two: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    surveyed(monkeypatch, two)
    files = [tmp_path / f"[bold]{view}.png" for view in range(2)]
    for file, image in zip(files, two.files, strict=True):
        Image.open(image).resize((48 + 48 * (file.stem[-1] == "1"), 64)).save(file)
    main(["reconstruct", *map(str, files), "-o", "[/a]scene", *SPARSE, "--stages", "geometry"])
    assert "[bold]0.png" in capsys.readouterr().err


def test_pictures_in_memory_of_any_mode(two: Room, tmp_path: Path) -> None:
    pictures = [Image.open(two.files[0]).convert("CMYK"), Image.open(two.files[1]).convert("YCbCr")]
    kept = [Image.open(file) for file in api._files(pictures, tmp_path)]
    assert [picture.mode for picture in kept] == ["RGB", "RGB"]
    with pytest.raises(ConfigurationError, match="image 0 of mode F cannot be kept as PNG"):
        api._files([Image.new("F", (8, 8))], tmp_path)
    assert len(list((tmp_path / "given").iterdir())) == 2
