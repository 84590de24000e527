"""The chain of stages: what it leaves, and what it does not do twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rooms import CONFIG, Fader, Room, Surveyor, folder_of, go, made

from reconx_pl.data.formats.colmap import read_colmap
from reconx_pl.data.formats.readers import only_scene
from reconx_pl.data.formats.transforms import read_transforms
from reconx_pl.errors import ConfigurationError
from reconx_pl.reconstruction import files, fitting, run
from reconx_pl.reconstruction.frames import read_fit_input
from reconx_pl.reconstruction.generation import read_sequence
from reconx_pl.reconstruction.scene_builder import input_places
from reconx_pl.reconstruction.settings import STAGES
from reconx_pl.reconstruction.views import input_views
from reconx_pl.splatting.io.ply import load_ply
from reconx_pl.types import Clip

# --- what it leaves


def test_photographs_become_a_scene_that_every_program_opens(three: Room, tmp_path: Path) -> None:
    out = tmp_path / "scene"
    result = go(three, out, Fader())
    assert made(result) == list(STAGES)
    assert len(load_ply(out / "scene.ply")) == len(load_ply(folder_of(result, "fit") / "scene.ply")) > 500
    for name in ("flythrough.mp4", "generated.mp4", "report.html"):
        assert (out / name).stat().st_size > 500, name
    # one cameras.json, three conventions, one truth
    ours, theirs, colmap = only_scene(out), read_transforms(out / "cameras.json"), read_colmap(out)
    for scene in (ours, theirs, colmap):
        assert len(scene) == 3 and Path(scene.frames[0].name).parent == out / "images"
        for view, frame in enumerate(scene.frames):
            np.testing.assert_allclose(frame.world_to_camera, three.cameras.world_to_camera[view], atol=1e-5)
            np.testing.assert_allclose(frame.intrinsics, three.cameras.intrinsics[view], atol=1e-3)
    assert ours.cloud is not None and len(ours.cloud) == 800
    assert [Path(frame.name).name for frame in ours.frames] == [f"0{view}_photo_{view}.png" for view in range(3)]


def test_the_summary_has_time_and_memory_of_every_stage(three: Room, tmp_path: Path) -> None:
    go(three, tmp_path / "scene", Fader())
    summary = json.loads((tmp_path / "scene" / "reconstruction.json").read_text())
    assert summary["complete"] and summary["view_generator"] == "a fader" and summary["estimator"] == "a surveyor"
    assert [stage["name"] for stage in summary["stages"]] == list(STAGES)
    for stage in summary["stages"]:
        assert stage["seconds"] >= 0 and stage["peak_memory"] > 50e6, "bytes, not kilobytes"


def test_the_fit_sees_photographs_to_the_bit_and_generated_frames_between(three: Room, tmp_path: Path) -> None:
    view_generator = Fader()
    result = go(three, tmp_path / "scene", view_generator)
    given = read_fit_input(folder_of(result, "frames"))
    assert given.images.shape == (7, 3, 32, 48) and given.input_places == [0, 3, 6]
    assert result.views is not None
    cut = input_views(result.views, 32, 48)
    assert torch.equal(given.images[given.input_places], cut.images)
    fade = cut.images[0] * (2 / 3) + cut.images[1] / 3
    assert (given.images[1] - fade).abs().max() <= 0.5 / 255 + 1e-6, "generated frames are kept as 8 bits"
    assert torch.equal(given.cameras.world_to_camera[given.input_places], cut.cameras.world_to_camera)
    assert given.confidence is not None and given.confidence.shape == (7, 32, 48)
    assert [clip.key for clip in view_generator.clips] == ["scene+0", "scene+1"]
    assert all(not clip.frames[1:-1].any() for clip in view_generator.clips), (
        "view generators never see what is between"
    )


def test_without_a_view_generator_the_photographs_are_all_there_is(three: Room, tmp_path: Path) -> None:
    result = go(three, tmp_path / "scene")
    assert [stage.name for stage in result.stages] == ["photographs", "geometry", "frames", "fit", "flythrough"]
    given = read_fit_input(folder_of(result, "frames"))
    assert given.images.shape == (3, 3, 32, 48) and given.input_places == [0, 1, 2]
    assert not (tmp_path / "scene" / "generated.mp4").exists()


def test_a_closed_path_is_generated_back_to_the_first_photograph(
    three: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reconx_pl.geometry.view_order import ViewOrder
    from reconx_pl.reconstruction import geometry

    monkeypatch.setattr(geometry, "view_order", lambda cameras, cloud: ViewOrder((2, 0, 1), True))
    view_generator = Fader()
    loop = replace(CONFIG, generation=replace(CONFIG.generation, loop="auto"))
    result = go(three, tmp_path / "scene", view_generator, loop)
    given = read_fit_input(folder_of(result, "frames"))
    assert len(view_generator.clips) == 3 and given.images.shape[0] == 9, "3 photographs and 2 frames after each"
    assert given.input_places == input_places(3, 4) == [0, 3, 6]
    assert torch.equal(view_generator.clips[2].frames[-1], view_generator.clips[0].frames[0])
    assert result.views is not None and result.views.names == ("photo_2.png", "photo_0.png", "photo_1.png")
    step = (given.cameras.centers[8] - given.cameras.centers[0]).norm()
    assert step < (given.cameras.centers[6] - given.cameras.centers[0]).norm(), "the last frames lead back"
    left_open = go(three, tmp_path / "open", Fader())
    assert read_fit_input(folder_of(left_open, "frames")).images.shape[0] == 7


@pytest.mark.parametrize("closed", [False, True])
def test_frames_are_aligned_from_each_photograph_to_the_next(
    three: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    from reconx_pl.geometry.view_order import ViewOrder
    from reconx_pl.reconstruction import geometry

    monkeypatch.setattr(geometry, "view_order", lambda cameras, cloud: ViewOrder((0, 1, 2), closed))
    asked: list[tuple[torch.Tensor, list[bool]]] = []

    class Aligner(Surveyor):
        def estimate(self, images: torch.Tensor, cameras: Any = None, fixed: Any = None) -> Any:
            found = super().estimate(images, cameras, fixed)
            if fixed is None:
                return found
            asked.append((images, fixed.tolist()))
            moved = replace(cameras, world_to_camera=cameras.world_to_camera.clone())
            moved.world_to_camera[:, 2, 3] += 0.01 * len(asked)
            return replace(found, cameras=moved)

    orbit_frames = replace(CONFIG, generation=replace(CONFIG.generation, loop="auto"))
    result = go(three, tmp_path / "scene", Fader(), orbit_frames, surveyor=Aligner(three), stages=["frames"])
    given = read_fit_input(folder_of(result, "frames"))
    frames = given.images
    clips = [[0, 1, 2, 3], [3, 4, 5, 6], *([[6, 7, 8, 0]] if closed else [])]
    assert len(asked) == len(clips), "pairs grow with the square of the frames, and so does their memory"
    generated = read_sequence(folder_of(result, "generation")).cameras
    for number, ((images, fixed), clip) in enumerate(zip(asked, clips, strict=True), start=1):
        assert torch.equal(images, frames[clip]) and fixed == [True, False, False, True]
        moved = given.cameras.world_to_camera[clip] - generated.world_to_camera[clip]
        torch.testing.assert_close(moved[:, 2, 3], torch.tensor([0, 0.01, 0.01, 0]) * number, atol=1e-5, rtol=0)


def test_frames_are_aligned_all_at_once_on_request(three: Room, tmp_path: Path) -> None:
    asked: list[list[bool]] = []

    class Aligner(Surveyor):
        def estimate(self, images: torch.Tensor, cameras: Any = None, fixed: Any = None) -> Any:
            if fixed is not None:
                asked.append(fixed.tolist())
            return super().estimate(images, cameras, fixed)

    together = replace(CONFIG, generation=replace(CONFIG.generation, alignment="all"))
    go(three, tmp_path / "scene", Fader(), together, surveyor=Aligner(three), stages=["frames"])
    assert asked == [[True, False, False, True, False, False, True]]


class Turner(Fader):
    """As a fader, between the first frame and frame ``end_condition_frame``; what comes after stays as the latter."""

    def generate(self, clip: Clip, generator: torch.Generator, *, end_condition_frame: int) -> torch.Tensor:  # type: ignore[override]
        if len(self.clips) == self.stop_after:
            raise KeyboardInterrupt
        self.clips.append(clip)
        share = (torch.arange(len(clip.cameras)) / end_condition_frame).clamp(max=1)[:, None, None, None]
        return clip.images[0] * (1 - share) + clip.images[end_condition_frame] * share


def test_all_around_the_scene_from_two_photographs(three: Room, tmp_path: Path) -> None:
    pair = replace(three, files=three.files[:2], cameras=three.cameras[:2], depth=three.depth[:2])
    orbit_frames = replace(
        CONFIG, generation=replace(CONFIG.generation, frames=6, orbit_frames=40, end_condition_frame=3)
    )
    view_generator = Turner()
    result = go(pair, tmp_path / "scene", view_generator, orbit_frames)
    given = read_fit_input(folder_of(result, "frames"))
    assert len(given.images) == 40 and given.input_places[0] == 0 and len(given.input_places) == 2
    assert result.views is not None
    cut = input_views(result.views, 32, 48)
    assert torch.equal(given.images[given.input_places], cut.images)
    last = view_generator.clips[-1]
    assert torch.equal(last.images[-1], cut.images[0]), "the last clip ends on the first photograph"
    steps = (given.cameras.centers - given.cameras.centers.roll(1, dims=0)).norm(dim=1)
    assert steps.max() < 4 * steps.median(), "and so does the path"
    with pytest.raises(ConfigurationError, match="Fader cannot extrapolate"):
        go(pair, tmp_path / "other", Fader(), orbit_frames)
    stopped, others = Turner(stop_after=2), Turner()
    with pytest.raises(KeyboardInterrupt):
        go(pair, tmp_path / "stopped", stopped, orbit_frames)
    again = go(pair, tmp_path / "stopped", others, orbit_frames)
    assert [clip.key for clip in stopped.clips + others.clips] == [clip.key for clip in view_generator.clips]
    whole = read_fit_input(folder_of(again, "frames"))
    assert torch.equal(whole.images, given.images), "a stop leaves no trace in the result"


# --- what it does not do twice


def test_the_same_command_again_does_nothing_again(three: Room, tmp_path: Path) -> None:
    surveyor = Surveyor(three)
    go(three, tmp_path / "scene", Fader(), surveyor=surveyor)
    again = Fader()
    result = go(three, tmp_path / "scene", again, surveyor=surveyor)
    assert made(result) == [] and surveyor.calls == 1 + 2 and again.clips == []  # the others aligned two clips


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"fit": replace(CONFIG.fit, steps=13)}, ["fit", "flythrough"]),
        ({"flythrough_frames": 5}, ["flythrough"]),
        ({"generation": replace(CONFIG.generation, poses="interpolated")}, ["frames", "fit", "flythrough"]),
        ({"generation": replace(CONFIG.generation, frames=5)}, ["generation", "frames", "fit", "flythrough"]),
        ({"max_side": 80}, list(STAGES)),
    ],
)
def test_another_setting_redoes_what_it_changes_alone(
    three: Room, tmp_path: Path, change: dict[str, Any], redone: list[str]
) -> None:
    go(three, tmp_path / "scene", Fader())
    assert made(go(three, tmp_path / "scene", Fader(), replace(CONFIG, **change))) == redone
    assert made(go(three, tmp_path / "scene", Fader())) == [], "and back again costs nothing"


STOPPED_IN = {
    "photographs": (run, "load_photographs"),
    "geometry": (run, "find_geometry"),
    "frames": (run, "prepare_frames"),
    "fit": (fitting, "build_scene"),
    "flythrough": (fitting, "render_flythrough"),
}


@pytest.mark.parametrize("stage", STOPPED_IN)
def test_stopped_in_any_stage_it_goes_on_there(
    three: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    module, name = STOPPED_IN[stage]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, name, stop)
        go(three, tmp_path / "scene", Fader())
    assert not (tmp_path / "scene" / "report.html").exists()
    result = go(three, tmp_path / "scene", Fader())
    assert made(result) == list(STAGES[STAGES.index(stage) :])


def test_stopped_between_two_clips_it_generates_the_other_one_alone(three: Room, tmp_path: Path) -> None:
    stopped, other = Fader(stop_after=1), Fader()
    with pytest.raises(KeyboardInterrupt):
        go(three, tmp_path / "scene", stopped)
    assert made(go(three, tmp_path / "scene", other)) == ["generation", "frames", "fit", "flythrough"]
    assert [clip.key for clip in stopped.clips + other.clips] == ["scene+0", "scene+1"]
    whole = go(three, tmp_path / "whole" / "scene", Fader())
    first, second = (tmp_path / "scene" / "scene.ply").read_bytes(), (whole.out / "scene.ply").read_bytes()
    assert first == second, "a stop leaves no trace in the result"


def test_killed_while_results_are_put_in_their_places(
    three: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, put = tmp_path / "scene", files.put

    def killed(source: Path, target: Path) -> None:
        if target.name == "points.ply":
            raise KeyboardInterrupt
        put(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "put", killed)
        patch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None)  # kill -9 cleans nothing up
        go(three, out, stages=["geometry"])
    go(three, out, stages=["geometry"])
    assert len(only_scene(out)) == 3 and len(list((out / "images").iterdir())) == 3


def test_only_the_stages_that_were_asked_for(three: Room, tmp_path: Path) -> None:
    result = go(three, tmp_path / "scene", stages=["geometry"])
    assert [stage.name for stage in result.stages] == ["photographs", "geometry"] and result.scene is None
    assert len(only_scene(tmp_path / "scene")) == 3 and not (tmp_path / "scene" / "scene.ply").exists()
    assert (tmp_path / "scene" / "report.html").exists()
    assert made(go(three, tmp_path / "scene", stages=["fit"])) == ["frames", "fit"]


def test_the_name_of_the_folder_changes_nothing(three: Room, tmp_path: Path) -> None:
    view_generators = Fader(), Fader()
    results = [
        go(three, tmp_path / name, view_generator) for name, view_generator in zip("ab", view_generators, strict=True)
    ]
    assert [clip.key for clip in view_generators[0].clips] == [clip.key for clip in view_generators[1].clips], (
        "keys seed the noise"
    )
    assert [stage.key for stage in results[0].stages] == [stage.key for stage in results[1].stages]
    assert (tmp_path / "a" / "scene.ply").read_bytes() == (tmp_path / "b" / "scene.ply").read_bytes()
    (tmp_path / "a").rename(tmp_path / "holidays")
    assert made(go(three, tmp_path / "holidays", Fader())) == []


def test_photographs_of_one_name_follow_their_folders(three: Room, tmp_path: Path) -> None:
    def photographs(*folders: str) -> Room:
        paths = [tmp_path / folder / "photo.png" for folder in folders]
        for path, file in zip(paths, three.files, strict=True):
            path.parent.mkdir(exist_ok=True)
            shutil.copy(file, path)
        return replace(three, files=paths)

    go(photographs("one", "two", "three"), tmp_path / "scene", stages=["geometry"])
    result = go(photographs("uno", "due", "tre"), tmp_path / "scene", stages=["geometry"])
    assert result.views is not None and result.views.names == ("uno_photo.png", "due_photo.png", "tre_photo.png")


def test_options_of_an_estimator_without_identity_are_part_of_what_geometry_is_kept_under(
    three: Room, tmp_path: Path
) -> None:
    class Own:
        def __init__(self, far: float) -> None:
            self.far = far

        def estimate(self, images: torch.Tensor, cameras: Any = None) -> Any:
            return Surveyor(three).estimate(images)

    assert "geometry" in made(go(three, tmp_path / "scene", surveyor=Own(1.0), stages=["geometry"]))
    assert made(go(three, tmp_path / "scene", surveyor=Own(1.0), stages=["geometry"])) == []
    assert made(go(three, tmp_path / "scene", surveyor=Own(2.0), stages=["geometry"])) == ["geometry"]


def test_results_of_an_earlier_run_are_told_from_those_of_this_one(three: Room, tmp_path: Path) -> None:
    assert go(three, tmp_path / "scene", Fader()).outdated == []
    again = go(three, tmp_path / "scene", stages=["geometry"])
    assert again.outdated == ["generated.mp4", "scene.ply", "scene.html", "flythrough.mp4", "flythrough_depth.mp4"]
    assert (tmp_path / "scene" / "scene.ply").exists()
