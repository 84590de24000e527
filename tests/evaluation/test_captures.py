"""Fits of posed photographs: what is held out, where points come from, restarts, failures, processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reconx_pl.cli.main import main
from reconx_pl.data.procedural import procedural_views
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.evaluation import posed_scenes
from reconx_pl.evaluation.posed_scene_runner import fit_photographs
from reconx_pl.evaluation.posed_scenes import PosedSceneConfig, load_posed_scene
from reconx_pl.geometry.cameras import unproject
from reconx_pl.geometry.estimators.base import KnownDepth, PointMapEstimator, Reconstruction
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.io.ply import load_ply
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.splatting.points import PointsConfig
from reconx_pl.types import Cameras

SIZE, VIEWS = 64, 7
CONFIG = PosedSceneConfig(
    fit=FitConfig(steps=60, loss=LossWeights(lpips=0.0)), points=PointsConfig(views="all", budget=3000),
    short_side=48, hold_out=3, metrics=("psnr", "ssim"),
)  # fmt: skip


def write_scene(folder: Path, seed: int = 5, points: bool = True) -> Path:
    """Photographs of a procedural landscape in the package's own layout; points of the first and the last view."""
    frames, depth, cameras = procedural_views(seed, np.linspace(0, 1, VIEWS).tolist(), (SIZE, SIZE), kind="landscape")
    (folder / "images").mkdir(parents=True)
    entries = []
    for view, picture in enumerate(frames.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(picture).save(folder / "images" / f"{view:02d}.png")
        camera = {"K": cameras.intrinsics[view].tolist(), "c2w": cameras.camera_to_world[view].tolist()}
        entries.append({"file": f"images/{view:02d}.png", "w": SIZE, "h": SIZE, **camera})
    (folder / "cameras.json").write_text(json.dumps({"frames": entries}))
    if points:
        valid = depth[[0, -1]] > 0
        xyz = unproject(depth[[0, -1]], cameras[[0, VIEWS - 1]].to(dtype=depth.dtype))[valid]
        rgb = frames[[0, -1]].permute(0, 2, 3, 1)[valid]
        np.savez(folder / "points.npz", xyz=xyz.numpy(), rgb=rgb.numpy())
    return folder


class Watched:
    """An estimator that knows the depth of the scene and remembers how many photographs it was shown."""

    identity = "the truth"

    def __init__(self) -> None:
        self.shown: list[int] = []

    def estimate(self, images: torch.Tensor, cameras: Cameras | None = None) -> Reconstruction:
        self.shown.append(len(images))
        depth = torch.full_like(images[:, 0], 3.0)
        return KnownDepth(depth, points=500).estimate(images, cameras)


def nobody(source: Path, lacking: str) -> PointMapEstimator:
    raise AssertionError(f"{source} lacks {lacking}")


def test_every_third_photograph_is_held_out(tmp_path: Path) -> None:
    capture = load_posed_scene(write_scene(tmp_path / "a"), CONFIG, None, nobody)
    assert capture.held_out == [0, 3, 6] and capture.fitted == [1, 2, 4, 5]
    assert tuple(capture.images.shape) == (VIEWS, 3, 48, 48)
    few = load_posed_scene(tmp_path / "a", replace(CONFIG, views=2), None, nobody)
    assert few.fitted == [1, 5] and few.held_out == [0, 3, 6]
    assert load_posed_scene(tmp_path / "a", replace(CONFIG, hold_out=0), None, nobody).held_out == []


def test_few_photographs_are_not_filled() -> None:
    config = PosedSceneConfig()
    assert config.points_for(8).at_least == 30_000 and config.points_for(7).at_least == 0


def test_too_few_photographs_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadSceneError, match=r"/a: of 7 photographs 4 are held out and 3 are left.*hold_out"):
        load_posed_scene(write_scene(tmp_path / "a"), replace(CONFIG, hold_out=2, views=4), None, nobody)
    for options in ({"hold_out": 1}, {"views": 1}, {"short_side": -1}):
        with pytest.raises(ConfigurationError):
            replace(CONFIG, **options)  # type: ignore[arg-type]


def test_an_estimator_sees_the_photographs_of_the_fit_alone(tmp_path: Path) -> None:
    chosen = Watched()
    capture = load_posed_scene(write_scene(tmp_path / "a"), CONFIG, chosen, nobody)
    assert "the truth" in capture.geometry and "4 photographs of the fit" in capture.geometry
    capture.points()
    assert chosen.shown == [4]
    bare = write_scene(tmp_path / "b", points=False)
    found = Watched()
    load_posed_scene(bare, CONFIG, None, lambda source, lacking: found).points()
    assert found.shown == [4]


def test_scenes_are_fitted_scored_and_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [write_scene(tmp_path / "a"), write_scene(tmp_path / "b", seed=9)]
    calls: list[int] = []
    real = posed_scenes.fit
    monkeypatch.setattr(posed_scenes, "fit", lambda *rest, **named: calls.append(1) or real(*rest, **named))
    said: list[str] = []
    results = fit_photographs(
        scenes, tmp_path / "out", CONFIG, device="cpu", progress=lambda text, _: said.append(text)
    )
    assert results["complete"] and set(results["scenes"]) == {"a", "b"} and len(calls) == 2
    assert results["mean"]["psnr"] == pytest.approx(np.mean([s["psnr"] for s in results["scenes"].values()]))
    assert results["mean"]["psnr"] > 18.0  # a fit of 60 steps; a scene in the wrong place has 10
    assert any(text.startswith("a: fit") for text in said)
    folder = tmp_path / "out" / "scenes" / "a"
    assert len(load_ply(folder / "scene.ply")) == results["scenes"]["a"]["points"]
    assert Image.open(folder / "comparison.png").size[0] > 256
    record = json.loads((folder / "result.json").read_text())
    assert [Path(name).name for name in record["held_out"]] == ["00.png", "03.png", "06.png"]
    assert "from all photographs" in record["geometry"]

    assert fit_photographs(scenes, tmp_path / "out", CONFIG, device="cpu") == results
    assert len(calls) == 2
    Image.new("RGB", (SIZE, SIZE)).save(scenes[1] / "images" / "02.png")
    fit_photographs(scenes, tmp_path / "out", CONFIG, device="cpu")
    assert len(calls) == 3  # b alone has changed
    other = replace(CONFIG, seed=1)
    assert fit_photographs(scenes, tmp_path / "out", other, device="cpu")["config_hash"] != results["config_hash"]
    assert len(calls) == 5


def test_a_bad_scene_is_named_and_the_others_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good, bad = write_scene(tmp_path / "good"), write_scene(tmp_path / "bad")
    (bad / "images" / "04.png").write_bytes(b"not a picture")
    options = ["--posed scene.fit.steps", "10", "--posed scene.fit.loss.lpips", "0", "--posed scene.short_side", "32"]
    options += ["--posed scene.metrics", '["psnr"]', "--device", "cpu"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", str(bad), str(good), "--out", str(tmp_path / "out"), *options])
    assert "1 of 2 scenes" in str(stopped.value) and "04.png" in str(stopped.value)
    assert "good: PSNR" in capfd.readouterr().err
    (tmp_path / "x").mkdir()
    with pytest.raises(ConfigurationError, match="called good"):
        fit_photographs([good, write_scene(tmp_path / "x" / "good")], tmp_path / "out", CONFIG)


def test_two_processes_do_each_its_scenes(tmp_path: Path) -> None:
    scenes = [write_scene(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    config = replace(CONFIG, fit=replace(CONFIG.fit, steps=5))
    alone = fit_photographs(scenes, tmp_path / "alone", config, device="cpu")
    first = fit_photographs(scenes, tmp_path / "out", config, device="cpu", rank=0, world_size=2)
    assert not first["complete"] and first["missing"] == ["b"]
    both = fit_photographs(scenes, tmp_path / "out", config, device="cpu", rank=1, world_size=2)
    assert both["complete"] and both["mean"] == alone["mean"]
