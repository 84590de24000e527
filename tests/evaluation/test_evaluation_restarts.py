"""The runner on real, tiny scenes: files, restarts, failures, ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numba
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_scenes import CONFIG, MODEL, QUICK, CrossFade, tiny_clip

from reconx_pl.errors import BadDataError, BadSceneError, ConfigurationError, MissingWeightsError
from reconx_pl.evaluation.records import scene_folder
from reconx_pl.evaluation.runner import EvaluationConfig, evaluate_scene, evaluate_scenes
from reconx_pl.evaluation.task import LazyScene
from reconx_pl.metrics.image import MetricSuite
from reconx_pl.metrics.scene_means import SceneMetrics
from reconx_pl.reconstruction.view_generator import RecordedFrames
from reconx_pl.splatting.io.ply import load_ply
from reconx_pl.types import Clip


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [tiny_clip(1), tiny_clip(2)]


def test_files_of_a_scene(clips: list[Clip], tmp_path: Path) -> None:
    summary = evaluate_scenes(clips[:1], CrossFade(), replace(CONFIG, media=True), tmp_path, model=MODEL)
    folder = scene_folder(tmp_path, clips[0].key)
    assert {path.name for path in folder.iterdir()} == {
        "contact_sheet.png",
        "generated.mp4",
        "confidence.mp4",
        "rendered.mp4",
        "depth.mp4",
        "scene.ply",
        "scene.html",
        "result.json",
    }
    assert len(load_ply(folder / "scene.ply")) == summary["scenes"][0]["gaussians"]
    assert json.loads((tmp_path / "results.json").read_text()) == summary
    record = json.loads((folder / "result.json").read_text())
    assert record["pose_policy"] == "dataset" and record["config_hash"] == replace(CONFIG, media=True).hash
    assert summary["complete"] is True and summary["mean"]["reconx"].keys() == {"psnr", "ssim"}
    assert {"generate", "fit", "render", "score", "media"} <= set(summary["seconds"])


def test_a_restart_does_only_what_is_not_done(clips: list[Clip], tmp_path: Path) -> None:
    config = replace(CONFIG, two_views=False)
    view_generator = CrossFade()
    first = evaluate_scenes(clips, view_generator, config, tmp_path, model=MODEL)
    assert len(view_generator.seen) == 2
    again = evaluate_scenes(clips, view_generator, config, tmp_path, model=MODEL)
    assert len(view_generator.seen) == 2 and again["mean"] == first["mean"] and again["complete"]
    (scene_folder(tmp_path, clips[1].key) / "result.json").write_text("{ half a fi")
    evaluate_scenes(clips, view_generator, config, tmp_path, model=MODEL)
    assert [clip.key for clip in view_generator.seen[2:]] == [clips[1].key]
    evaluate_scenes(clips[:1], view_generator, replace(config, seed=1), tmp_path, model=MODEL)  # other settings
    assert len(view_generator.seen) == 4
    evaluate_scenes(
        clips[:1], view_generator, replace(config, seed=1), tmp_path, model="test view generator 2"
    )  # another model
    assert len(view_generator.seen) == 5
    darker = replace(clips[0], frames=clips[0].frames // 2)  # other data under the same name
    evaluate_scenes([darker], view_generator, replace(config, seed=1), tmp_path, model="test view generator 2")
    assert len(view_generator.seen) == 6


def test_an_interruption_leaves_finished_scenes(clips: list[Clip], tmp_path: Path) -> None:
    config = replace(CONFIG, two_views=False)

    class Interrupted(CrossFade):
        def generate(self, clip: Clip, generator: torch.Generator) -> torch.Tensor:
            if clip.key == clips[1].key:
                raise KeyboardInterrupt
            return super().generate(clip, generator)

    with pytest.raises(KeyboardInterrupt):
        evaluate_scenes(clips, Interrupted(), config, tmp_path, model=MODEL)
    left = json.loads((tmp_path / "results.json").read_text())
    assert left["complete"] is False and left["finished"] == 1
    view_generator = CrossFade()
    assert evaluate_scenes(clips, view_generator, config, tmp_path, model=MODEL)["complete"]
    assert [clip.key for clip in view_generator.seen] == [clips[1].key]


def test_failures_are_named_and_the_summary_is_not_complete(clips: list[Clip], tmp_path: Path) -> None:
    config = replace(CONFIG, two_views=False)
    no_cloud = replace(clips[1], key="no-cloud", cloud=None)
    broken = clips[1].cameras.world_to_camera.clone()
    broken[2, 0, 3] = float("nan")
    bad_camera = replace(clips[1], key="bad-camera", cameras=replace(clips[1].cameras, world_to_camera=broken))

    def truncated() -> Clip:
        raise BadDataError("shard-000000.tar is truncated")

    scenes = [no_cloud, clips[0], bad_camera, LazyScene("truncated", truncated)]
    summary = evaluate_scenes(scenes, CrossFade(), config, tmp_path, model=MODEL)
    assert summary["complete"] is False and summary["finished"] == 1 and summary["expected"] == 4
    assert set(summary["failed"]) == {"no-cloud", "bad-camera", "truncated"}
    assert "no point cloud" in summary["failed"]["no-cloud"]
    assert "camera 2" in summary["failed"]["bad-camera"]
    assert "shard-000000.tar" in summary["failed"]["truncated"]
    assert summary["mean"]["reconx"]["psnr"] == summary["scenes"][0]["scores"]["reconx"]["mean"]["psnr"]
    mended = evaluate_scenes([clips[0]], CrossFade(), config, tmp_path, model=MODEL)
    assert mended["complete"] is True


def test_clips_that_break_off_are_a_failure_not_a_loss(clips: list[Clip], tmp_path: Path) -> None:
    def source():
        yield clips[0]
        raise BadDataError("shard-000001.tar is truncated")

    summary = evaluate_scenes(source(), CrossFade(), replace(CONFIG, two_views=False), tmp_path, model=MODEL)
    assert summary["complete"] is False and summary["finished"] == 1
    ((where, error),) = summary["failed"].items()
    assert clips[0].key in where and "shard-000001.tar" in error


def test_clips_that_break_off_are_a_failure_in_a_shared_folder_too(clips: list[Clip], tmp_path: Path) -> None:
    def source():
        yield clips[0]
        raise BadDataError("shard-000001.tar is truncated")

    config = replace(CONFIG, fit=replace(QUICK, steps=2), two_views=False)
    for rank in range(2):
        summary = evaluate_scenes(source(), CrossFade(), config, tmp_path, rank=rank, world=2, model=MODEL)
    assert summary["complete"] is False and summary["finished"] == 1
    assert "shard-000001.tar" in str(summary["failed"])


def test_no_scene_is_not_a_complete_evaluation(tmp_path: Path) -> None:
    assert evaluate_scenes([], CrossFade(), CONFIG, tmp_path, model=MODEL)["complete"] is False


def test_view_generators_that_return_rubbish_are_refused(clips: list[Clip]) -> None:
    clip = clips[0]
    for frames, message in (
        (clip.images[:3], "the view generator returned"),
        (clip.images * float("nan"), "NaN"),
    ):
        with pytest.raises(BadSceneError, match=message):
            evaluate_scene(clip, RecordedFrames({clip.key: frames}), CONFIG)
    with pytest.raises(BadSceneError, match="no generated frames"):
        evaluate_scene(clip, RecordedFrames({}), CONFIG)


def test_settings_that_cannot_work_are_refused(clips: list[Clip], tmp_path: Path) -> None:
    for wrong in ({"pose_policy": "guess"}, {"metrics": ("fid",)}, {"metrics": ()}, {"target_stride": 0}):
        with pytest.raises(ConfigurationError):
            EvaluationConfig(**wrong)
    with pytest.raises(ConfigurationError, match=r"\[0, 4\]"):
        replace(CONFIG, targets=(0, 2, 4)).target_frames(5)
    with pytest.raises(ConfigurationError, match="unique"):
        evaluate_scenes([clips[0], clips[0]], CrossFade(), replace(CONFIG, two_views=False), tmp_path, model=MODEL)
    with pytest.raises(BadSceneError, match="no target"):
        evaluate_scene(tiny_clip(1, frames=2), CrossFade(), CONFIG)


def test_the_hash_is_stable_and_sees_every_setting() -> None:
    assert EvaluationConfig().hash == EvaluationConfig().hash
    others = [replace(CONFIG, seed=1), replace(CONFIG, fit=replace(QUICK, steps=21)), replace(CONFIG, ceiling=True)]
    assert len({CONFIG.hash, *(other.hash for other in others)}) == 4


def test_keys_become_folders_that_do_not_collide(tmp_path: Path) -> None:
    folders = {scene_folder(tmp_path, key) for key in ("a/b", "a_b", "a b", "../a", "..")}
    assert len(folders) == 5
    assert all(folder.parent == tmp_path / "scenes" for folder in folders)


def test_two_processes_without_a_group_meet_in_the_folder(clips: list[Clip], tmp_path: Path) -> None:
    config = replace(CONFIG, two_views=False)
    half = evaluate_scenes(clips, CrossFade(), config, tmp_path, rank=0, world=2, model=MODEL)
    assert half["complete"] is False and half["missing"] == [clips[1].key]
    whole = evaluate_scenes(clips, CrossFade(), config, tmp_path, rank=1, world=2, model=MODEL)
    assert whole["complete"] is True and whole["finished"] == 2
    assert json.loads((tmp_path / "results.json").read_text()) == whole


def test_absent_lpips_is_in_every_result(clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reconx_pl.metrics import lpips as perceptual

    def missing(*_args: object, **_kwargs: object) -> None:
        raise MissingWeightsError("no backbone")

    monkeypatch.setattr(perceptual, "LpipsDistance", missing)
    config = replace(CONFIG, two_views=False, metrics=("psnr", "lpips"))
    suite = MetricSuite(config.metrics)
    summary = evaluate_scenes(clips[:1], CrossFade(), config, tmp_path, model=MODEL, suite=suite)
    assert summary["complete"] and "reconx weights fetch lpips" in summary["absent"]["lpips"]
    assert summary["mean"]["reconx"].keys() == {"psnr"}
    assert "lpips" in json.loads((scene_folder(tmp_path, clips[0].key) / "result.json").read_text())["absent"]


TARGET_SCORES = {0: [[10.0, 20.0], [33.0]], 1: [[5.0, 6.0, 7.0]]}  # by rank: three scenes over two processes


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    metric = SceneMetrics(("psnr",))
    for scores in TARGET_SCORES[rank]:
        metric.update({"psnr": scores})
    Path(folder, f"metric{rank}.txt").write_text(repr(metric.compute()["psnr"].item()))
    clips = [tiny_clip(seed, frames=3) for seed in (1, 2, 3)]
    config = replace(CONFIG, two_views=False, fit=replace(QUICK, steps=3))
    out = Path(folder, f"out{rank}")  # no shared folder: everything goes through the process group
    summary = evaluate_scenes(clips, CrossFade(), config, out, rank=rank, world=2, model=MODEL)
    Path(folder, f"summary{rank}.json").write_text(json.dumps(summary))
    dist.destroy_process_group()


def test_a_process_group_gathers_scores_and_scenes(tmp_path: Path) -> None:
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    for rank in range(2):
        mean = float((tmp_path / f"metric{rank}.txt").read_text())
        assert mean == pytest.approx((15.0 + 33.0 + 6.0) / 3, abs=1e-12)
    first, second = (json.loads((tmp_path / f"summary{rank}.json").read_text()) for rank in range(2))
    assert first == second and first["complete"] and first["finished"] == 3
    assert [scene["key"] for scene in first["scenes"]] == [tiny_clip(seed).key for seed in (1, 2, 3)]
    values = [scene["scores"]["reconx"]["mean"]["psnr"] for scene in first["scenes"]]
    assert first["mean"]["reconx"]["psnr"] == pytest.approx(sum(values) / 3, abs=1e-9)
    assert (tmp_path / "out0" / "results.json").is_file() and not (tmp_path / "out1" / "results.json").exists()
