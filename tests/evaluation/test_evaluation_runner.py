"""The runner on real, tiny scenes: what view generators see and what is scored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_scenes import CONFIG, MODEL, QUICK, CrossFade, Oracle, tiny_clip

from reconx_pl.errors import ConfigurationError, MissingWeightsError
from reconx_pl.evaluation.baselines import ceiling_split, nearest_view
from reconx_pl.evaluation.records import scene_folder
from reconx_pl.evaluation.runner import evaluate_scene, evaluate_scenes
from reconx_pl.evaluation.task import FROM_DEPTH, FROM_POINTS, HeldOutViews, LazyScene
from reconx_pl.geometry.cameras import interpolate_cameras
from reconx_pl.metrics.image import psnr
from reconx_pl.metrics.lpips_weights import ENVIRONMENT, FILE_NAMES, _shapes
from reconx_pl.reconstruction import scene_builder
from reconx_pl.reconstruction.view_generator import RecordedFrames, blind, seeded_generator
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.splatting.points import PointsConfig
from reconx_pl.types import AlignmentQuality, Cameras, Clip


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    return [tiny_clip(1), tiny_clip(2)]


def test_a_view_generator_is_shown_the_two_views_and_nothing_of_the_others(clips: list[Clip]) -> None:
    clip, view_generator = clips[0], CrossFade()
    evaluate_scene(clip, view_generator, replace(CONFIG, pose_policy="interpolated"))
    evaluate_scene(clip, view_generator, CONFIG)
    seen, asked = view_generator.seen
    assert torch.equal(seen.frames[[0, -1]], clip.frames[[0, -1]])
    assert seen.frames[1:-1].abs().max() == 0
    assert torch.equal(seen.cameras.world_to_camera[[0, -1]], clip.cameras.world_to_camera[[0, -1]])
    # Poses between are what anybody could interpolate, not those of the hidden frames.
    shuffled = replace(clip, cameras=clip.cameras[[0, 3, 1, 2, 4]])
    assert torch.equal(blind(shuffled).cameras.world_to_camera, seen.cameras.world_to_camera)
    assert not torch.allclose(seen.cameras.world_to_camera[1:-1], clip.cameras.world_to_camera[1:-1])
    # With the policy "dataset" frames are asked for at the cameras of the data set, and are as black.
    assert torch.equal(asked.cameras.world_to_camera, clip.cameras.world_to_camera)
    assert torch.equal(asked.frames, seen.frames)


def test_scores_are_those_of_the_frames(clips: list[Clip]) -> None:
    clip = clips[0]
    result = evaluate_scene(clip, CrossFade(), replace(CONFIG, target_stride=2))
    assert result.targets == [2]
    truth = clip.images
    assert torch.equal(result.given.images[[0, -1]], truth[[0, -1]])
    blend = ((truth[:1] + truth[-1:]) / 2 * 255).round() / 255  # generated frames are kept as 8 bits
    assert result.scores["generated"]["psnr"].item() == pytest.approx(psnr(blend, truth[2:3]).item(), abs=1e-3)
    assert result.scores["reconx"]["psnr"].item() == pytest.approx(
        psnr(result.rendered[2:3], truth[2:3]).item(), abs=1e-4
    )
    copied = truth[[0, -1]][nearest_view(clip.cameras[2], clip.cameras[[0, 4]])]
    assert result.scores["nearest_input"]["psnr"].item() == pytest.approx(psnr(copied, truth[2:3]).item(), abs=1e-3)
    assert set(result.scores) == {"reconx", "generated", "two_views", "nearest_input"}
    assert set(result.scores["reconx"]) == {"psnr", "ssim"}


def test_perfect_generation_beats_the_two_views_and_a_longer_fit_helps(clips: list[Clip]) -> None:
    clip = clips[1]
    view_generator = RecordedFrames({clip.key: clip.images})
    longer = evaluate_scene(clip, view_generator, replace(CONFIG, fit=replace(QUICK, steps=80), confidence="uniform"))
    shorter = evaluate_scene(clip, view_generator, replace(CONFIG, fit=replace(QUICK, steps=2), confidence="uniform"))
    assert longer.scores["reconx"]["psnr"].mean() > longer.scores["two_views"]["psnr"].mean()
    assert longer.scores["reconx"]["psnr"].mean() > shorter.scores["reconx"]["psnr"].mean() + 1
    assert longer.scores["generated"]["psnr"].min() == pytest.approx(100)


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
    seeds = {seeded_generator(*parts).initial_seed() for parts in [(0, "a", "fit"), (1, "a", "fit"), (0, "b", "fit")]}
    assert len(seeds) == 3


def test_pose_policy_decides_the_cameras_of_generated_frames(
    clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[Cameras] = []
    real = scene_builder.fit

    def watch(frames, cameras, *args, **kwargs):
        fitted.append(cameras)
        return real(frames, cameras, *args, **kwargs)

    monkeypatch.setattr(scene_builder, "fit", watch)
    clip = clips[0]
    for policy in ("dataset", "interpolated"):
        evaluate_scene(clip, CrossFade(), replace(CONFIG, two_views=False, pose_policy=policy))
    truth = clip.cameras.world_to_camera
    assert torch.allclose(fitted[0].world_to_camera, truth, atol=1e-6)
    between = interpolate_cameras(clip.cameras[[0, 4]], [0, 0.25, 0.5, 0.75, 1]).world_to_camera
    assert torch.allclose(fitted[1].world_to_camera, between.float(), atol=1e-5)
    assert not torch.allclose(fitted[1].world_to_camera[1:-1], truth[1:-1], atol=1e-3)
    assert torch.equal(fitted[1].world_to_camera[[0, -1]], truth[[0, -1]].float())


def test_frames_of_a_clip_can_be_aligned_too(clips: list[Clip]) -> None:
    clip, config = clips[0], replace(CONFIG, two_views=False, pose_policy="aligned")
    result = evaluate_scene(clip, CrossFade(), config, estimator=Oracle(clip.cameras[[0, 3, 1, 2, 4]]))
    assert torch.allclose(result.given.cameras.world_to_camera[1], clip.cameras.world_to_camera[3], atol=1e-6)
    assert set(result.scores) == {"reconx", "generated", "nearest_input"}
    with pytest.raises(ConfigurationError, match="no estimator was named"):
        evaluate_scene(clip, CrossFade(), config)


def test_ceiling_fits_even_frames_and_scores_odd_ones(clips: list[Clip]) -> None:
    assert ceiling_split(8) == ([0, 2, 4, 6, 7], [1, 3, 5])
    assert ceiling_split(2) == ([0, 1], [])
    result = evaluate_scene(clips[0], CrossFade(), replace(CONFIG, two_views=False, ceiling=True))
    assert result.ceiling_targets == [1, 3]
    assert len(result.scores["ceiling"]["psnr"]) == 2
    assert result.scores["ceiling"]["psnr"].mean() > result.scores["generated"]["psnr"].mean() - 20


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


def test_the_fit_starts_from_the_maps_of_the_input_views_or_else_from_the_cloud() -> None:
    clip = tiny_clip(3)
    assert clip.depth is not None and clip.cloud is not None
    pixels = int((clip.depth > 0).sum())
    assert pixels != len(clip.cloud)
    assert len(evaluate_scene(clip, CrossFade(), CONFIG).gaussians) == pixels
    thinned = replace(CONFIG, points=PointsConfig(budget=300))
    assert len(evaluate_scene(clip, CrossFade(), thinned).gaussians) == 300
    without = replace(clip, depth=None, confidence=None)
    assert len(evaluate_scene(without, CrossFade(), CONFIG).gaussians) == len(clip.cloud)
    with pytest.raises(ConfigurationError, match="generated frames"):
        replace(CONFIG, points=PointsConfig(views="all"))
