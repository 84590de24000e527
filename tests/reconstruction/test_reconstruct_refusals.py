"""The chain of stages: what it refuses, and what it says then."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rooms import CONFIG, Fader, Room, Surveyor, go, made, room

from reconx_pl.data.formats.readers import only_scene
from reconx_pl.errors import (
    BadDataError,
    BadSceneError,
    ConfigurationError,
    MissingWeightsError,
    StorageError,
    UnplacedViewsError,
)
from reconx_pl.reconstruction import fitting
from reconx_pl.reconstruction.settings import STAGES, GenerationConfig
from reconx_pl.splatting.losses import LossWeights


def test_it_does_not_write_over_what_is_not_its_own(three: Room, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigurationError, match=r"holds files and no reconstruction of ours \(thesis.tex\)"):
        go(three, tmp_path)
    other = room(tmp_path / "other_photographs", views=2, seed=6)
    out = tmp_path / "scene"
    go(three, out)
    with pytest.raises(ConfigurationError, match="reconstruction of other photographs.*--overwrite"):
        go(other, out)
    assert made(go(three, out)) == [], "nothing was lost"
    assert len(only_scene(go(other, out, overwrite=True).out)) == 2


def test_two_runs_do_not_work_in_one_folder(three: Room, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "scene"
    go(three, out, stages=["geometry"])
    with (out / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError, match="another run works in"):
            go(three, out, stages=["geometry"])
    assert made(go(three, out, stages=["geometry"])) == []


def test_photographs_that_stand_where_results_go_are_not_lost(three: Room, tmp_path: Path) -> None:
    project = tmp_path / "project"  # as COLMAP and nerfstudio have it
    own = room(project / "images", views=3)
    with pytest.raises(ConfigurationError, match=r"images/photo_0.png stands where results"):
        go(own, project, overwrite=True)
    assert all(file.is_file() for file in own.files)


def test_photographs_without_a_place_are_named_or_left_out(three: Room, tmp_path: Path) -> None:
    lost = Surveyor(three, lost=(1,))
    with pytest.raises(UnplacedViewsError, match="--skip_unplaced true"):
        go(three, tmp_path / "scene", surveyor=lost)
    result = go(three, tmp_path / "scene", config=replace(CONFIG, skip_unplaced=True), surveyor=lost)
    assert result.views is not None and result.views.names == ("photo_0.png", "photo_2.png")
    assert any("photo_1.png" in note for stage in result.stages for note in stage.notes)
    with pytest.raises(BadSceneError, match="Fewer than two photographs are left"):
        few = Surveyor(three, lost=(1, 2))
        go(three, tmp_path / "few", config=replace(CONFIG, skip_unplaced=True), surveyor=few)


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("writer", [(fitting, "save_ply"), (fitting, "write_mp4")])
def test_a_full_disk_is_one_sentence_and_costs_no_finished_stage(
    three: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: tuple[Any, str]
) -> None:
    with monkeypatch.context() as patch, pytest.raises(StorageError, match="the disk is full.*make room"):
        patch.setattr(*writer, full_disk)
        go(three, tmp_path / "scene", Fader())
    assert (tmp_path / "scene" / "cameras.json").exists() and (tmp_path / "scene" / "generated.mp4").exists()
    assert "photographs" not in made(go(three, tmp_path / "scene", Fader()))


def test_a_file_in_the_place_of_the_folder(three: Room, tmp_path: Path) -> None:
    (tmp_path / "scene").write_text("a file")
    with pytest.raises(StorageError, match="no folder, and none can be made"):
        go(three, tmp_path / "scene")


def test_no_permission(three: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.raises(StorageError, match="no permission to write"):
        go(three, tmp_path / "scene")


def test_a_photograph_that_may_not_be_read(three: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unreadable = three.files[1]
    opened = Path.open

    def forbidden(self: Path, *how: Any, **more: Any) -> Any:
        if self == unreadable:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *how, **more)

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(BadDataError, match=r"photo_1.png: cannot be read \(Permission denied\)"):
        go(three, tmp_path / "scene")


def test_unknown_stages_and_alignment_that_cannot_be(three: Room, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no stage is called cook"):
        go(three, tmp_path, stages=["cook"])

    class Sparse(Surveyor):
        def estimate(self, images: torch.Tensor, cameras: Any = None) -> Any:  # type: ignore[override]
            return super().estimate(images)

    aligned = replace(CONFIG, generation=replace(CONFIG.generation, poses="aligned"))
    with pytest.raises(ConfigurationError, match="Sparse cannot do that"):
        go(three, tmp_path / "scene", Fader(), aligned, surveyor=Sparse(three))


def test_points_of_generated_frames_without_an_alignment_are_refused(three: Room, tmp_path: Path) -> None:
    everywhere = replace(CONFIG, points=replace(CONFIG.points, views="all"))
    interpolated = replace(everywhere, generation=replace(CONFIG.generation, poses="interpolated"))
    with pytest.raises(ConfigurationError, match="points.views 'all' needs point maps"):
        go(three, tmp_path / "scene", Fader(), interpolated)
    assert len(go(three, tmp_path / "scene", Fader(), everywhere, stages=["frames"]).stages) == 4


def test_what_the_fit_lacks_is_said_before_frames_are_generated(
    three: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECONX_LPIPS_WEIGHTS", str(tmp_path))  # where none are
    view_generator, lpips = Fader(), replace(CONFIG, fit=replace(CONFIG.fit, loss=LossWeights(lpips=0.05)))
    with pytest.raises(MissingWeightsError, match=r"--fit\.loss\.lpips 0"):
        go(three, tmp_path / "scene", view_generator, lpips)
    assert view_generator.clips == []
    assert made(go(three, tmp_path / "scene", view_generator, lpips, stages=["frames"]))[-1] == "frames"


def test_clips_that_cannot_extrapolate_are_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"generation.end_condition_frame in 1 to 6; got 40 and 16"):
        GenerationConfig(frames=8, orbit_frames=40)
    assert GenerationConfig(frames=8).end_condition_frame == 16, "which nothing reads without orbit_frames"


def test_progress_names_every_stage(three: Room, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    keep: Callable[..., None] = lambda *what: seen.append(what)  # noqa: E731
    go(three, tmp_path / "scene", Fader(), progress=keep)
    finished = [what for what, *numbers in seen if numbers == [1, 1]]
    assert finished == [f"{number}/{len(STAGES)} {name}" for number, name in enumerate(STAGES, start=1)]
    assert ("1/6 reading photographs", 3, 3) in seen
    assert any(what.startswith("5/6 fit, loss ") and numbers == [12, 12] for what, *numbers in seen)
