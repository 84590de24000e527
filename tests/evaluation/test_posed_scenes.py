"""Fits of posed photographs: what is held out, where points come from, restarts, failures, processes."""

from __future__ import annotations

import json
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reconx_pl.cli.main import main
from reconx_pl.data.procedural import procedural_views
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.evaluation.posed_scenes import PosedSceneConfig, fit_posed_scenes, open_posed_scene
from reconx_pl.geometry.cameras import unproject
from reconx_pl.geometry.estimators.base import KnownDepth, PointMapEstimator, Reconstruction
from reconx_pl.reconstruction import scene_builder
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.io.ply import load_ply
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.splatting.points import PointsConfig
from reconx_pl.types import Cameras

SIZE, VIEWS = 64, 7
CONFIG = PosedSceneConfig(
    fit=FitConfig(steps=60, loss=LossWeights(lpips=0.0)), points=PointsConfig(budget=3000),
    short_side=48, hold_out=3, metrics=("psnr", "ssim"), media=False,
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
    task = open_posed_scene(write_scene(tmp_path / "a"), CONFIG, None, nobody).task()
    assert task.target_indices == [0, 3, 6] and task.inputs.indices == (1, 2, 4, 5) and task.clips == ()
    assert tuple(task.inputs.images.shape) == (4, 3, 48, 48) and tuple(task.views.shape) == (3, 3, 48, 48)
    few = open_posed_scene(tmp_path / "a", replace(CONFIG, views=2), None, nobody).task()
    assert few.inputs.indices == (1, 5) and few.target_indices == [0, 3, 6]
    every = open_posed_scene(tmp_path / "a", replace(CONFIG, hold_out=0), None, nobody).task()
    assert every.targets == [] and len(every.views) == VIEWS, "what was fitted is shown, and not scored"


def test_photographs_of_different_exposures_are_evened_and_held_out_ones_follow(tmp_path: Path) -> None:
    true = open_posed_scene(write_scene(tmp_path / "a"), CONFIG, None, nobody).task()
    folder = write_scene(tmp_path / "b")
    for view, gain in enumerate((0.8, 1.2, 1.0, 1.0, 1.0, 0.8, 1.0)):
        file = folder / "images" / f"{view:02d}.png"
        Image.fromarray(np.rint(np.array(Image.open(file)) * gain).clip(0, 255).astype(np.uint8)).save(file)
    uneven = open_posed_scene(folder, replace(CONFIG, even_exposures="never"), None, nobody)
    opened = open_posed_scene(folder, CONFIG, None, nobody)
    task, raw = opened.task(), uneven.task()
    assert opened.digest != uneven.digest and "exposures differ" not in raw.inputs.geometry
    assert "exposures differ by up to 5" in task.inputs.geometry and "exposures" not in true.inputs.geometry
    for part in ("inputs.images", "views"):
        evened, before, right = (attrgetter(part)(one) for one in (task, raw, true))
        assert (evened - right).abs().mean() < 0.2 * (before - right).abs().mean(), part


def test_too_few_photographs_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadSceneError, match=r"/a: of 7 photographs 4 are held out and 3 are left.*hold_out"):
        open_posed_scene(write_scene(tmp_path / "a"), replace(CONFIG, hold_out=2, views=4), None, nobody)
    for options in ({"hold_out": 1}, {"views": 1}, {"short_side": -1}):
        with pytest.raises(ConfigurationError):
            replace(CONFIG, **options)  # type: ignore[arg-type]


def test_an_estimator_sees_the_photographs_of_the_fit_alone(tmp_path: Path) -> None:
    chosen = Watched()
    opened = open_posed_scene(write_scene(tmp_path / "a"), CONFIG, chosen, nobody)
    assert chosen.shown == [], "geometry is made when the scene turns out not to be done"
    geometry = opened.task().inputs.geometry
    assert "the truth" in geometry and "4 photographs of the fit" in geometry and chosen.shown == [4]
    bare = write_scene(tmp_path / "b", points=False)
    found = Watched()
    open_posed_scene(bare, CONFIG, None, lambda source, lacking: found).task()
    assert found.shown == [4]


class Distance:
    """An estimator of the user's own, without ``identity``: a wall at a distance."""

    def __init__(self, distance: float) -> None:
        self.distance = distance

    def estimate(self, images: torch.Tensor, cameras: Cameras | None = None) -> Reconstruction:
        return KnownDepth(torch.full_like(images[:, 0], self.distance), points=500).estimate(images, cameras)


def test_another_option_of_an_estimator_is_another_result(tmp_path: Path) -> None:
    """A fit from points at distance 4 was once reported as that from distance 80."""
    scene, config = write_scene(tmp_path / "a"), replace(CONFIG, fit=replace(CONFIG.fit, steps=5))
    near, far = (fit_posed_scenes([scene], tmp_path / "out", config, Distance(d), device="cpu") for d in (4.0, 80.0))
    alone = fit_posed_scenes([scene], tmp_path / "alone", config, Distance(80.0), device="cpu")
    assert far["mean"] == alone["mean"] != near["mean"]
    assert "distance=80.0" in far["estimator"] and "distance=80.0" in far["scenes"][0]["geometry"]


def test_scenes_are_fitted_scored_and_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [write_scene(tmp_path / "a"), write_scene(tmp_path / "b", seed=9)]
    calls: list[int] = []
    real = scene_builder.fit
    monkeypatch.setattr(scene_builder, "fit", lambda *rest, **named: calls.append(1) or real(*rest, **named))
    said: list[tuple[str, int, int | None]] = []
    results = fit_posed_scenes(scenes, tmp_path / "out", CONFIG, device="cpu", progress=lambda *call: said.append(call))
    records = {record["key"]: record for record in results["scenes"]}
    assert results["complete"] and set(records) == {"a", "b"} and len(calls) == 2
    scores = [record["scores"]["reconx"]["mean"]["psnr"] for record in records.values()]
    assert results["mean"]["reconx"]["psnr"] == pytest.approx(np.mean(scores))
    assert results["mean"]["reconx"]["psnr"] > 18.0  # a fit of 60 steps; a scene in the wrong place has 10
    assert results["mean"]["nearest_input"]["psnr"] < results["mean"]["reconx"]["psnr"], "the floor stands beside it"
    assert {call for call in said if call[0] == "a: fit"} >= {("a: fit", 0, 100), ("a: fit", 100, 100)}
    folder = tmp_path / "out" / "scenes" / "a"
    record = json.loads((folder / "result.json").read_text())
    assert record["targets"] == [0, 3, 6] and record["contexts"] == [1, 2, 4, 5]
    assert "from all photographs" in record["geometry"]

    assert fit_posed_scenes(scenes, tmp_path / "out", CONFIG, device="cpu")["mean"] == results["mean"]
    assert len(calls) == 2
    Image.new("RGB", (SIZE, SIZE)).save(scenes[1] / "images" / "02.png")
    fit_posed_scenes(scenes, tmp_path / "out", CONFIG, device="cpu")
    assert len(calls) == 3  # b alone has changed
    other = replace(CONFIG, seed=1)
    assert fit_posed_scenes(scenes, tmp_path / "out", other, device="cpu")["config_hash"] != results["config_hash"]
    assert len(calls) == 5


def test_a_bad_scene_is_named_and_the_others_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good, bad = write_scene(tmp_path / "good"), write_scene(tmp_path / "bad")
    (bad / "images" / "04.png").write_bytes(b"not a picture")
    options = ["--scene.fit.steps", "10", "--scene.fit.loss.lpips", "0", "--scene.short_side", "32"]
    options += ["--scene.metrics", '["psnr"]', "--device", "cpu"]
    with pytest.raises(SystemExit) as stopped:
        main(["fit", str(bad), str(good), "--out", str(tmp_path / "out"), *options])
    assert "1 of 2 scenes" in str(stopped.value) and "04.png" in str(stopped.value)
    assert "good: PSNR" in capfd.readouterr().err
    folder = tmp_path / "out" / "scenes" / "good"
    record = json.loads((folder / "result.json").read_text())
    assert len(load_ply(folder / "scene.ply")) == record["gaussians"]
    assert Image.open(folder / "contact_sheet.png").size[0] > 256 and (tmp_path / "out" / "index.html").is_file()
    (tmp_path / "x").mkdir()
    with pytest.raises(ConfigurationError, match="called good"):
        fit_posed_scenes([good, write_scene(tmp_path / "x" / "good")], tmp_path / "out", CONFIG)


def test_two_processes_do_each_its_scenes(tmp_path: Path) -> None:
    scenes = [write_scene(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    config = replace(CONFIG, fit=replace(CONFIG.fit, steps=5))
    alone = fit_posed_scenes(scenes, tmp_path / "alone", config, device="cpu")
    first = fit_posed_scenes(scenes, tmp_path / "out", config, device="cpu", rank=0, world_size=2)
    assert not first["complete"] and first["missing"] == ["b"]
    both = fit_posed_scenes(scenes, tmp_path / "out", config, device="cpu", rank=1, world_size=2)
    assert both["complete"] and both["mean"] == alone["mean"]
