"""The runner on real, tiny scenes: what painters see, what is scored, restarts, failures, ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numba
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import save_file

from reconx_pl.data.procedural import procedural_clip
from reconx_pl.errors import BadDataError, BadSceneError, ConfigurationError, MissingWeightsError
from reconx_pl.evaluation import scene as scene_module
from reconx_pl.evaluation.baselines import ceiling_split, nearest_view
from reconx_pl.evaluation.metrics import MetricSuite, SceneMetrics, psnr
from reconx_pl.evaluation.painter import HeldOutViews, LazyScene, RecordedFrames, blind, scene_generator
from reconx_pl.evaluation.records import FROM_DEPTH, FROM_POINTS, scene_folder
from reconx_pl.evaluation.runner import EvaluationConfig, evaluate_scene, evaluate_scenes
from reconx_pl.geometry.cameras import interpolate_cameras
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.splatting.perceptual_weights import ENVIRONMENT, FILE_NAMES, _shapes
from reconx_pl.splatting.ply import load_ply
from reconx_pl.types import AlignmentQuality, Cameras, Clip

QUICK = FitConfig(steps=20, loss=LossWeights(lpips=0.0))
CONFIG = EvaluationConfig(fit=QUICK, metrics=("psnr", "ssim"), media=False)
MODEL = "test painter 1"


def tiny_clip(seed: int, frames: int = 5) -> Clip:
    return procedural_clip(seed, frames=frames, size=(32, 32), points=600, kind="room")


class CrossFade:
    """Paints by blending the two views; counts its calls and remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[Clip] = []

    def paint(self, clip: Clip, generator: torch.Generator) -> torch.Tensor:
        self.seen.append(clip)
        first, last = clip.images[0], clip.images[-1]
        share = torch.linspace(0, 1, len(clip.cameras))[:, None, None, None]
        return first * (1 - share) + last * share


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [tiny_clip(1), tiny_clip(2)]


def test_a_painter_is_shown_the_two_views_and_nothing_of_the_others(clips: list[Clip]) -> None:
    clip, painter = clips[0], CrossFade()
    evaluate_scene(clip, painter, CONFIG)
    seen = painter.seen[0]
    assert torch.equal(seen.frames[[0, -1]], clip.frames[[0, -1]])
    assert seen.frames[1:-1].abs().max() == 0
    assert torch.equal(seen.cameras.world_to_camera[[0, -1]], clip.cameras.world_to_camera[[0, -1]])
    # Poses between are what anybody could interpolate, not those of the hidden frames.
    shuffled = replace(clip, cameras=clip.cameras[[0, 3, 1, 2, 4]])
    assert torch.equal(blind(shuffled).cameras.world_to_camera, seen.cameras.world_to_camera)
    assert not torch.allclose(seen.cameras.world_to_camera[1:-1], clip.cameras.world_to_camera[1:-1])


def test_scores_are_those_of_the_frames(clips: list[Clip]) -> None:
    clip = clips[0]
    result = evaluate_scene(clip, CrossFade(), replace(CONFIG, target_stride=2))
    assert result.targets == [2]
    truth = clip.images
    assert torch.equal(result.painted[[0, -1]], truth[[0, -1]])
    blend = (truth[:1] + truth[-1:]) / 2
    assert result.scores["painted"]["psnr"].item() == pytest.approx(psnr(blend, truth[2:3]).item(), abs=1e-3)
    assert result.scores["reconx"]["psnr"].item() == pytest.approx(
        psnr(result.rendered[2:3], truth[2:3]).item(), abs=1e-4
    )
    copied = truth[[0, -1]][nearest_view(clip.cameras[2], clip.cameras[[0, 4]])]
    assert result.scores["nearest_input"]["psnr"].item() == pytest.approx(psnr(copied, truth[2:3]).item(), abs=1e-3)
    assert set(result.scores) == {"reconx", "painted", "two_views", "nearest_input"}
    assert set(result.scores["reconx"]) == {"psnr", "ssim"}


def test_perfect_painting_beats_the_two_views_and_a_longer_fit_helps(clips: list[Clip]) -> None:
    clip = clips[1]
    painter = RecordedFrames({clip.key: clip.images})
    longer = evaluate_scene(clip, painter, replace(CONFIG, fit=replace(QUICK, steps=80), confidence="uniform"))
    shorter = evaluate_scene(clip, painter, replace(CONFIG, fit=replace(QUICK, steps=2), confidence="uniform"))
    assert longer.scores["reconx"]["psnr"].mean() > longer.scores["two_views"]["psnr"].mean()
    assert longer.scores["reconx"]["psnr"].mean() > shorter.scores["reconx"]["psnr"].mean() + 1
    assert longer.scores["painted"]["psnr"].min() == pytest.approx(100)


def test_where_points_come_from_and_how_found_poses_fit_is_in_the_results(clips: list[Clip], tmp_path: Path) -> None:
    quality = AlignmentQuality((0.5, 4.0), (1.0, 2.0))
    clip = replace(clips[0], geometry="points found by someone", alignment=quality)
    results = evaluate_scenes([clip, clips[1]], CrossFade(), CONFIG, tmp_path, model=MODEL)
    found, plain = results["scenes"]
    assert found["geometry"] == "points found by someone" and plain["geometry"] == FROM_DEPTH
    assert found["alignment"]["suspicious"] and found["alignment"]["rotation_degrees"] == [0.5, 4.0]
    assert plain["alignment"] is None
    assert json.loads((scene_folder(tmp_path, clip.key) / "result.json").read_text())["alignment"] == found["alignment"]


def test_it_works_where_lightning_validates(clips: list[Clip]) -> None:
    with torch.inference_mode():
        clip = replace(clips[0], cameras=clips[0].cameras.to(dtype=torch.float32), frames=clips[0].frames.clone())
        result = evaluate_scene(clip, CrossFade(), replace(CONFIG, two_views=False))
    assert result.scores["reconx"]["psnr"].isfinite().all()


def test_the_perceptual_loss_has_gradients_where_lightning_validates(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks, clips and fit: all of them are made within Lightning's inference mode."""
    generator = torch.Generator().manual_seed(0)
    backbone = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in _shapes("alex").items()}
    save_file(backbone, tmp_path / FILE_NAMES["alex"])
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    steps = FitConfig(steps=3, lpips_net="alex")
    assert steps.loss.lpips > 0
    config = replace(CONFIG, fit=steps, two_views=False, nearest_input=False)
    with torch.inference_mode():
        made = [LazyScene(clips[0].key, lambda: replace(clips[0], frames=clips[0].frames.clone()))]
        summary = evaluate_scenes(made, CrossFade(), config, tmp_path, model=MODEL)
    assert summary["failed"] == {} and summary["complete"]


def test_without_weights_the_loss_stops_and_the_metric_is_absent(
    clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "nowhere"))
    config = replace(CONFIG, metrics=("psnr", "lpips"), fit=FitConfig(steps=2), two_views=False)
    for start in (
        lambda: evaluate_scenes(clips[:1], CrossFade(), config, tmp_path / "with", model=MODEL),
        lambda: evaluate_scene(clips[0], CrossFade(), config),
    ):
        with pytest.raises(MissingWeightsError) as caught:
            start()
        assert "`reconx weights fetch lpips`" in str(caught.value)
        assert "`--evaluation.fit.loss.lpips 0`" in str(caught.value)
    assert not (tmp_path / "with").exists()
    without = replace(config, fit=replace(config.fit, loss=LossWeights(lpips=0.0)))
    summary = evaluate_scenes(clips[:1], CrossFade(), without, tmp_path / "without", model=MODEL)
    assert summary["complete"] and summary["mean"]["reconx"].keys() == {"psnr"}
    assert "nowhere" in summary["absent"]["lpips"] and "reconx weights fetch lpips" in summary["absent"]["lpips"]


def test_every_result_says_where_its_geometry_comes_from(clips: list[Clip], tmp_path: Path) -> None:
    photographs = replace(clips[1], depth=None, confidence=None)
    config = replace(CONFIG, fit=replace(QUICK, steps=2), two_views=False)
    summary = evaluate_scenes([clips[0], photographs], CrossFade(), config, tmp_path, model=MODEL)
    assert [record["geometry"] for record in summary["scenes"]] == [FROM_DEPTH, FROM_POINTS]
    assert summary["geometry"] == {FROM_DEPTH: 1, FROM_POINTS: 1}
    assert "all photographs" in FROM_POINTS and "targets included" in FROM_POINTS


def test_a_scene_does_not_depend_on_what_was_evaluated_before(clips: list[Clip]) -> None:
    torch.manual_seed(1)
    first = evaluate_scene(clips[0], CrossFade(), replace(CONFIG, two_views=False))
    torch.rand(7)
    again = evaluate_scene(clips[0], CrossFade(), replace(CONFIG, two_views=False))
    assert torch.equal(first.scores["reconx"]["psnr"], again.scores["reconx"]["psnr"])
    seeds = {scene_generator(*parts).initial_seed() for parts in [(0, "a", "fit"), (1, "a", "fit"), (0, "b", "fit")]}
    assert len(seeds) == 3


def test_pose_policy_decides_the_cameras_of_painted_frames(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[Cameras] = []
    real = scene_module.fit

    def watch(frames, cameras, *args, **kwargs):
        fitted.append(cameras)
        return real(frames, cameras, *args, **kwargs)

    monkeypatch.setattr(scene_module, "fit", watch)
    clip = clips[0]
    for policy in ("dataset", "interpolated"):
        evaluate_scene(clip, CrossFade(), replace(CONFIG, two_views=False, pose_policy=policy))
    truth = clip.cameras.world_to_camera
    assert torch.allclose(fitted[0].world_to_camera, truth, atol=1e-6)
    between = interpolate_cameras(clip.cameras[[0, 4]], [0, 0.25, 0.5, 0.75, 1]).world_to_camera
    assert torch.allclose(fitted[1].world_to_camera, between.float(), atol=1e-5)
    assert not torch.allclose(fitted[1].world_to_camera[1:-1], truth[1:-1], atol=1e-3)
    assert torch.equal(fitted[1].world_to_camera[[0, -1]], truth[[0, -1]].float())


def test_ceiling_fits_even_frames_and_scores_odd_ones(clips: list[Clip]) -> None:
    assert ceiling_split(8) == ([0, 2, 4, 6, 7], [1, 3, 5])
    assert ceiling_split(2) == ([0, 1], [])
    result = evaluate_scene(clips[0], CrossFade(), replace(CONFIG, two_views=False, ceiling=True))
    assert result.ceiling_targets == [1, 3]
    assert len(result.scores["ceiling"]["psnr"]) == 2
    assert result.scores["ceiling"]["psnr"].mean() > result.scores["painted"]["psnr"].mean() - 20


def test_held_out_views_are_scored_apart(clips: list[Clip]) -> None:
    whole = tiny_clip(1, frames=9)
    held_out = HeldOutViews(whole.images[[1, 3]], whole.cameras[[1, 3]])
    result = evaluate_scene(clips[0], CrossFade(), replace(CONFIG, targets=()), held_out=held_out)
    assert result.scores == {}
    assert set(result.held_out_scores) == {"reconx", "two_views", "nearest_input"}
    assert len(result.held_out_scores["reconx"]["psnr"]) == 2


def test_nearest_view_by_centre_and_by_angle_where_centres_agree() -> None:
    clip = tiny_clip(3, frames=7)
    ends = clip.cameras[[0, 6]]
    nearest = nearest_view(clip.cameras, ends)
    assert nearest[0] == 0 and nearest[6] == 1
    distance = torch.cdist(clip.cameras.centers, ends.centers)
    assert torch.equal(nearest, distance.argmin(1))
    turned = torch.eye(4).repeat(3, 1, 1)
    for index, angle in enumerate((0.0, 0.5, 0.9)):
        turn = torch.tensor(angle)
        turned[index, :3, :3] = torch.tensor([[turn.cos(), 0, turn.sin()], [0, 1, 0], [-turn.sin(), 0, turn.cos()]])
    panorama = Cameras(turned, torch.eye(3).repeat(3, 1, 1), 8, 8)
    assert nearest_view(panorama[1], panorama[[0, 2]]).tolist() == [1]


def test_files_of_a_scene(clips: list[Clip], tmp_path: Path) -> None:
    summary = evaluate_scenes(clips[:1], CrossFade(), replace(CONFIG, media=True), tmp_path, model=MODEL)
    folder = scene_folder(tmp_path, clips[0].key)
    assert {path.name for path in folder.iterdir()} == {
        "contact_sheet.png",
        "painted.mp4",
        "rendered.mp4",
        "scene.ply",
        "result.json",
    }
    assert len(load_ply(folder / "scene.ply")) == summary["scenes"][0]["gaussians"]
    assert json.loads((tmp_path / "results.json").read_text()) == summary
    record = json.loads((folder / "result.json").read_text())
    assert record["pose_policy"] == "dataset" and record["config_hash"] == replace(CONFIG, media=True).hash
    assert summary["complete"] is True and summary["mean"]["reconx"].keys() == {"psnr", "ssim"}
    assert {"paint", "fit", "render", "score", "media"} <= set(summary["seconds"])


def test_a_restart_does_only_what_is_not_done(clips: list[Clip], tmp_path: Path) -> None:
    config = replace(CONFIG, two_views=False)
    painter = CrossFade()
    first = evaluate_scenes(clips, painter, config, tmp_path, model=MODEL)
    assert len(painter.seen) == 2
    again = evaluate_scenes(clips, painter, config, tmp_path, model=MODEL)
    assert len(painter.seen) == 2 and again["mean"] == first["mean"] and again["complete"]
    (scene_folder(tmp_path, clips[1].key) / "result.json").write_text("{ half a fi")
    evaluate_scenes(clips, painter, config, tmp_path, model=MODEL)
    assert [clip.key for clip in painter.seen[2:]] == [clips[1].key]
    evaluate_scenes(clips[:1], painter, replace(config, seed=1), tmp_path, model=MODEL)  # other settings
    assert len(painter.seen) == 4
    evaluate_scenes(clips[:1], painter, replace(config, seed=1), tmp_path, model="test painter 2")  # another model
    assert len(painter.seen) == 5
    darker = replace(clips[0], frames=clips[0].frames // 2)  # other data under the same name
    evaluate_scenes([darker], painter, replace(config, seed=1), tmp_path, model="test painter 2")
    assert len(painter.seen) == 6


def test_an_interruption_leaves_finished_scenes(clips: list[Clip], tmp_path: Path) -> None:
    config = replace(CONFIG, two_views=False)

    class Interrupted(CrossFade):
        def paint(self, clip: Clip, generator: torch.Generator) -> torch.Tensor:
            if clip.key == clips[1].key:
                raise KeyboardInterrupt
            return super().paint(clip, generator)

    with pytest.raises(KeyboardInterrupt):
        evaluate_scenes(clips, Interrupted(), config, tmp_path, model=MODEL)
    left = json.loads((tmp_path / "results.json").read_text())
    assert left["complete"] is False and left["finished"] == 1
    painter = CrossFade()
    assert evaluate_scenes(clips, painter, config, tmp_path, model=MODEL)["complete"]
    assert [clip.key for clip in painter.seen] == [clips[1].key]


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


def test_painters_that_return_rubbish_are_refused(clips: list[Clip]) -> None:
    clip = clips[0]
    for frames, message in (
        (clip.images[:3], "the painter returned"),
        (clip.images * float("nan"), "NaN"),
    ):
        with pytest.raises(BadSceneError, match=message):
            evaluate_scene(clip, RecordedFrames({clip.key: frames}), CONFIG)
    with pytest.raises(BadSceneError, match="no painted frames"):
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
    from reconx_pl.splatting import perceptual

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
