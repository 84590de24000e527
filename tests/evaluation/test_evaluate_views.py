"""Entries of a protocol on tiny scenes: what is generated, what is fitted, what is scored, and what never looks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from da3_networks import tiny_network as tiny_da3
from dust3r_networks import tiny_network
from PIL import Image
from tiny_scenes import ENTRIES, MODEL, PROTOCOL, QUICK, CrossFade, Oracle, lazily, tiny_clip, tiny_views

from reconx_pl.data.formats.readers import only_scene
from reconx_pl.data.packing.clip_sampling import scene_clip
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.evaluation import scene as scene_module
from reconx_pl.evaluation.baselines import METHODS, nearest_view
from reconx_pl.evaluation.entry_views import EntryViews
from reconx_pl.evaluation.records import Record, scene_folder
from reconx_pl.evaluation.report import write_report
from reconx_pl.evaluation.runner import evaluate_scenes, evaluate_views
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.evaluation.task import FROM_CONTEXT_DEPTH, views_task
from reconx_pl.geometry.alignment.options import AlignmentOptions
from reconx_pl.geometry.da3.estimator import Da3Options, DepthAnything3Estimator
from reconx_pl.geometry.da3.preprocess import Da3Preprocessing
from reconx_pl.geometry.da3.pretrained import PretrainedDa3
from reconx_pl.geometry.dust3r.estimator import Dust3rEstimator, Dust3rOptions
from reconx_pl.geometry.dust3r.preprocess import Preprocessing
from reconx_pl.geometry.dust3r.pretrained import PretrainedDust3r
from reconx_pl.geometry.estimators.base import KnownDepth
from reconx_pl.geometry.estimators.colmap import ColmapEstimator
from reconx_pl.geometry.estimators.pairs import PairGraph
from reconx_pl.geometry.point_maps import cloud_from_maps, point_map_from_depth
from reconx_pl.metrics.image import psnr
from reconx_pl.reconstruction import scene_builder
from reconx_pl.reconstruction.alignment import holds_fixed_views
from reconx_pl.reconstruction.pair_clips import pair_clips, path_cameras
from reconx_pl.splatting.fit import FitResult
from reconx_pl.splatting.io.ply import load_ply
from reconx_pl.types import Cameras

BARE = replace(ENTRIES, two_views=False, depth_warp=False, nearest_input=False)


def run(views: EntryViews, out: Path, config: EvaluationConfig = ENTRIES, **options: Any) -> Record:
    view_generator = options.pop("view_generator", None) or CrossFade()
    return evaluate_views(lazily(views), view_generator, config, out, model=MODEL, protocol=PROTOCOL, **options)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What every fit was given, and its result."""
    calls: list[dict[str, Any]] = []
    real = scene_builder.fit

    def watch(frames: torch.Tensor, cameras: Cameras, confidence: Any, start: Any, *args: Any, **kw: Any) -> FitResult:
        found = real(frames, cameras, confidence, start, *args, **kw)
        calls.append({"frames": frames, "cameras": cameras, "start": start, "known": list(kw["input_views"])})
        calls[-1] |= {"confidence": confidence, "gaussians": found.gaussians}
        return found

    monkeypatch.setattr(scene_builder, "fit", watch)
    return calls


def test_the_plain_case(tmp_path: Path) -> None:
    summary = run(tiny_views(1), tmp_path)
    (record,) = summary["scenes"]
    assert summary["complete"] and summary["protocol"] == record["protocol"] == PROTOCOL
    assert list(summary["mean"]) == ["reconx", "contexts", "depth_warp", "nearest_input"]
    assert set(summary["mean"]) <= METHODS.keys() and summary["mean"]["reconx"].keys() == {"psnr", "ssim"}
    assert record["contexts"] == [0, 4] and record["targets"] == [1, 2] and record["frame_gap"] == 4
    assert record["frames"] == 4 and record["size"] == [32, 32] and record["geometry"] == FROM_CONTEXT_DEPTH
    assert len(record["scores"]["reconx"]["targets"]["psnr"]) == 2
    assert record["scores"]["reconx"]["mean"]["psnr"] == summary["mean"]["reconx"]["psnr"] > 15
    split = summary["split"]
    assert split.keys() == {"generation", "geometry", "fit", "metrics", "baselines", "reading"}
    assert sum(split.values()) == pytest.approx(sum(summary["seconds"].values()), abs=0.01)
    assert summary["scenes_per_hour"] == pytest.approx(3600 / sum(split.values()), rel=1e-3)


def test_two_context_views_are_scored_as_a_clip_is(tmp_path: Path) -> None:
    clip = tiny_clip(3)
    targets = [1, 2, 3]
    views = EntryViews(
        key=clip.key,
        dataset=clip.dataset,
        scene=clip.scene,
        context_images=clip.images[[0, 4]],
        context_cameras=clip.cameras[[0, 4]],
        context_indices=(0, 4),
        target_images=clip.images[targets],
        target_cameras=clip.cameras[targets],
        target_indices=tuple(targets),
        context_depth=clip.depth,
        context_confidence=clip.confidence,
        cloud=clip.cloud,
    )
    config = replace(BARE, clip_frames=5, nearest_input=True)
    entry = run(views, tmp_path / "entry", config)["scenes"][0]
    scene = evaluate_scenes([clip], CrossFade(), config, tmp_path / "clip", model=MODEL)["scenes"][0]
    for method in ("reconx", "nearest_input"):
        assert entry["scores"][method] == scene["scores"][method]
    assert entry["final_loss"] == scene["final_loss"] and entry["gaussians"] == scene["gaussians"]


def test_three_contexts_are_two_pairs_in_the_order_of_visiting(tmp_path: Path, fits: list[dict[str, Any]]) -> None:
    views, view_generator = tiny_views(2, contexts=(8, 4, 0), targets=(1, 6)), CrossFade()
    record = run(views, tmp_path, BARE, view_generator=view_generator)["scenes"][0]
    assert record["contexts"] == [8, 4, 0] and record["frame_gap"] == 8 and record["frames"] == 7
    first, second = view_generator.seen
    for clip, pair in ((first, [0, 1]), (second, [1, 2])):
        assert torch.equal(clip.images[[0, -1]], views.context_images[pair])
        assert torch.equal(clip.cameras.world_to_camera[[0, -1]], views.context_cameras[pair].world_to_camera)
        assert clip.frames[1:-1].abs().max() == 0 and clip.frames.shape[0] == 4
    assert first.key != second.key and first.frame_indices == (8, 7, 5, 4)
    (given,) = fits
    assert given["known"] == [0, 3, 6] and len(given["frames"]) == 7
    assert torch.equal(given["frames"][[0, 3, 6]], views.context_images)
    assert torch.equal(given["cameras"].world_to_camera[[0, 3, 6]], views.context_cameras.world_to_camera)
    blend = views.context_images[1] / 3 + views.context_images[2] * 2 / 3  # frame 2 of the second clip
    assert torch.allclose(given["frames"][5], blend, atol=0.5 / 255 + 1e-6)
    assert len(given["start"]) == int((views.context_depth > 0).sum())  # the maps of all three
    assert len(torch.unique(given["cameras"].centers, dim=0)) == 7


def test_targets_have_no_say_in_what_is_generated_and_fitted(tmp_path: Path, fits: list[dict[str, Any]]) -> None:
    views = tiny_views(3, contexts=(0, 4, 8), targets=(1, 2, 6))
    generator = torch.Generator().manual_seed(0)
    moved = views.target_cameras.world_to_camera.clone()
    moved[:, :3, 3] += torch.rand(3, 3, generator=generator)
    noise = replace(
        views,
        target_images=torch.rand(views.target_images.shape, generator=generator),
        target_cameras=replace(views.target_cameras, world_to_camera=moved),
    )
    view_generators = CrossFade(), CrossFade()
    config = replace(ENTRIES, refine_test_poses=3)
    true, other = (
        run(one, tmp_path / str(number), config, view_generator=view_generators[number])
        for number, one in enumerate((views, noise))
    )
    for ours, theirs in zip(view_generators[0].seen, view_generators[1].seen, strict=True):
        assert torch.equal(ours.frames, theirs.frames)
        assert torch.equal(ours.cameras.world_to_camera, theirs.cameras.world_to_camera)
        assert torch.equal(ours.cloud.points, theirs.cloud.points)
    count = len(fits) // 2
    assert count == 2  # the method and the baseline of the context views
    for ours, theirs in zip(fits[:count], fits[count:], strict=True):
        assert torch.equal(ours["frames"], theirs["frames"])
        if ours["confidence"] is not None:  # the baseline of photographs alone trusts every pixel alike
            assert torch.equal(ours["confidence"], theirs["confidence"])
        for part in ("means", "sh", "quaternions", "log_scales", "opacity_logits"):
            assert torch.equal(getattr(ours["gaussians"], part), getattr(theirs["gaussians"], part))
    assert true["mean"]["reconx"]["psnr"] > other["mean"]["reconx"]["psnr"] + 5  # and they are what scores


def test_depth_warps_closer_to_the_truth_than_the_nearest_view(tmp_path: Path) -> None:
    views = tiny_views(5, targets=(2,), size=(48, 48))
    record = run(views, tmp_path, replace(ENTRIES, two_views=False))["scenes"][0]
    scores = {method: record["scores"][method]["mean"]["psnr"] for method in ("depth_warp", "nearest_input")}
    assert scores["depth_warp"] > scores["nearest_input"] + 3
    assert len(record["warp_holes"]) == 1 and 0 <= record["warp_holes"][0] < 0.1
    sparse = cloud_from_maps(point_map_from_depth(views.context_depth, views.context_cameras), views.context_images, 60)
    drawn = run(replace(views, context_depth=None, cloud=sparse), tmp_path / "cloud", replace(ENTRIES, two_views=False))
    assert drawn["scenes"][0]["warp_holes"][0] > 0.2 and drawn["scenes"][0]["gaussians"] == 60


def test_geometry_comes_from_depth_or_else_the_cloud_or_else_an_estimator(tmp_path: Path) -> None:
    views = tiny_views(4)
    bare = replace(views, context_depth=None)
    failed = run(bare, tmp_path / "none", BARE)
    assert not failed["complete"] and "neither depth" in failed["failed"]["room-4"]
    oracle = KnownDepth(views.context_depth, points=200)
    found = run(bare, tmp_path / "estimator", BARE, estimator=oracle)
    assert found["complete"] and found["scenes"][0]["gaussians"] == 2 * 32 * 32
    assert "KnownDepth(depth=tensor (2, 32, 32)" in found["estimator"], "its options, not its name alone"
    assert "KnownDepth from the 2 context views" in found["scenes"][0]["geometry"]
    with_cloud = replace(
        bare, cloud=cloud_from_maps(oracle.estimate(*_context(views)).point_map, _context(views)[0], 90)
    )
    assert run(with_cloud, tmp_path / "cloud", BARE, estimator=oracle)["scenes"][0]["gaussians"] == 90
    half = views.context_depth.clone()
    half[1] = 0  # one context view alone has depth
    record = run(replace(views, context_depth=half), tmp_path / "half", BARE)["scenes"][0]
    assert record["gaussians"] == int((half > 0).sum())


def _context(views: EntryViews) -> tuple[torch.Tensor, Cameras]:
    return views.context_images, views.context_cameras


def test_aligned_poses_hold_the_contexts_and_give_points_and_confidence(
    tmp_path: Path, fits: list[dict[str, Any]]
) -> None:
    views = replace(tiny_views(6), context_depth=None)
    where = path_cameras(tiny_views(6).context_cameras, 4)
    moved = where.world_to_camera.clone()
    moved[:, :3, 3] += 0.25  # of the contexts too, which must not follow
    oracle = Oracle(replace(where, world_to_camera=moved))
    config = replace(BARE, pose_policy="aligned", confidence="alignment")
    summary = run(views, tmp_path, config, estimator=oracle)
    assert summary["complete"] and summary["estimator"] == "an oracle" and summary["pose_policy"] == "aligned"
    assert summary["seconds"]["alignment"] > 0
    _, (frames, _, fixed) = oracle.seen  # first the geometry of the contexts alone, then all frames
    assert fixed.tolist() == [True, False, False, True] and torch.equal(frames[[0, 3]], views.context_images)
    (given,) = fits
    assert torch.equal(given["cameras"].world_to_camera[[0, 3]], views.context_cameras.world_to_camera)
    assert torch.equal(given["cameras"].world_to_camera[[1, 2]], moved[[1, 2]])
    assert given["confidence"][1].unique().tolist() == [1.0, 1.5] and given["confidence"][2].max() == 5
    assert len(given["start"]) == 2 * 31 * 32  # maps of the two contexts as the alignment gave them
    run(views, tmp_path, replace(config, points=replace(config.points, views="all")), estimator=oracle)
    assert len(fits[-1]["start"]) == 4 * 31 * 32
    measured = tiny_views(6)  # depth that came with the data counts for more
    run(measured, tmp_path / "measured", config, estimator=oracle)
    assert len(fits[-1]["start"]) == int((measured.context_depth > 0).sum())


def test_dust3r_aligns_generated_frames(tmp_path: Path, fits: list[dict[str, Any]]) -> None:
    """A tiny random network: what it finds means nothing, that it is asked and obeyed does."""
    views = tiny_views(6)
    options = Dust3rOptions(
        preprocessing=Preprocessing(size=32),
        graph=PairGraph("swin", window=1, cyclic=False),
        alignment=AlignmentOptions(steps=3),
        min_confidence=1.0,
    )
    estimator = Dust3rEstimator(tiny_network(), options)
    config = replace(BARE, pose_policy="aligned", confidence="alignment")
    summary = run(views, tmp_path, config, estimator=estimator)
    assert summary["failed"] == {} and summary["complete"]
    (given,) = fits
    found, straight = given["cameras"].world_to_camera, path_cameras(views.context_cameras, 4)
    assert torch.equal(found[[0, 3]], views.context_cameras.world_to_camera)
    assert not torch.allclose(found[[1, 2]], straight.world_to_camera[[1, 2]], atol=1e-3)
    assert holds_fixed_views(PretrainedDust3r()) and not holds_fixed_views(ColmapEstimator())


def test_depth_anything_3_places_generated_frames(tmp_path: Path, fits: list[dict[str, Any]]) -> None:
    """Likewise, in one pass over all frames."""
    views = tiny_views(6)
    options = Da3Options(preprocessing=Da3Preprocessing(size=28), min_confidence=1.0)
    estimator = DepthAnything3Estimator(tiny_da3(), options)
    config = replace(BARE, pose_policy="aligned", confidence="alignment")
    summary = run(views, tmp_path, config, estimator=estimator)
    assert summary["failed"] == {} and summary["complete"]
    (given,) = fits
    found, straight = given["cameras"].world_to_camera, path_cameras(views.context_cameras, 4)
    assert torch.equal(found[[0, 3]], views.context_cameras.world_to_camera)
    assert not torch.allclose(found[[1, 2]], straight.world_to_camera[[1, 2]], atol=1e-3)
    assert torch.isfinite(found).all() and holds_fixed_views(PretrainedDa3())


def test_alignment_without_one_who_can_is_refused_at_once(tmp_path: Path) -> None:
    config = replace(BARE, pose_policy="aligned")
    with pytest.raises(ConfigurationError, match="no estimator was named"):
        run(tiny_views(1), tmp_path, config)
    with pytest.raises(ConfigurationError, match="KnownDepth cannot do that"):
        run(tiny_views(1), tmp_path, config, estimator=KnownDepth(torch.ones(2, 32, 32)))
    with pytest.raises(ConfigurationError, match="needs pose_policy 'aligned'"):
        replace(BARE, confidence="alignment")
    assert not list(tmp_path.iterdir())


def test_settings_that_need_true_frames_are_refused(tmp_path: Path) -> None:
    for wrong in ({"pose_policy": "dataset"}, {"ceiling": True}, {"target_stride": 2}, {"targets": (1,)}):
        with pytest.raises(ConfigurationError):
            run(tiny_views(1), tmp_path, replace(ENTRIES, **wrong))
    for wrong in ({"clip_frames": 1}, {"masks": "some"}, {"refine_test_poses": -1}):
        with pytest.raises(ConfigurationError):
            replace(ENTRIES, **wrong)


def test_refined_test_poses_are_a_row_of_their_own(tmp_path: Path) -> None:
    views = tiny_views(7, targets=(1, 2))
    off = views.target_cameras.world_to_camera.clone()
    off[:, 0, 3] += 0.05  # metres, as if the data set's poses were off
    views = replace(views, target_cameras=replace(views.target_cameras, world_to_camera=off))
    config = replace(BARE, fit=replace(QUICK, steps=60))
    plain = run(views, tmp_path / "plain", config)
    refined = run(views, tmp_path / "refined", replace(config, refine_test_poses=30))
    assert refined["mean"]["reconx"] == plain["mean"]["reconx"] and "reconx_refined" not in plain["mean"]
    assert refined["mean"]["reconx_refined"]["psnr"] > plain["mean"]["reconx"]["psnr"] + 0.3
    assert all(0 < degrees < 10 and 0 < units < 0.3 for degrees, units in refined["scenes"][0]["refined_by"])
    assert plain["scenes"][0]["refined_by"] == [] and "refined" in METHODS["reconx_refined"]


def test_a_target_wrong_only_outside_its_mask_scores_perfectly(tmp_path: Path) -> None:
    """With the splats' own pictures for truth, spoiled where nobody looks."""
    views = tiny_views(8, targets=(1, 2))
    seen: list[torch.Tensor] = []
    real = scene_module._Evaluation._render

    def watch(self: Any, gaussians: Any, cameras: Cameras) -> torch.Tensor:
        seen.append(real(self, gaussians, cameras))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene_module._Evaluation, "_render", watch)
        run(views, tmp_path / "first", BARE)
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[:, 8:24, 10:20] = True
    spoiled = torch.where(masks[:, None], seen[0].clamp(0, 1), torch.rand(2, 3, 32, 32))
    views = replace(views, target_images=spoiled, target_masks=masks)
    scores = {masks: run(views, tmp_path, replace(BARE, masks=masks)) for masks in ("none", "targets", "white")}
    assert scores["none"]["mean"]["reconx"]["psnr"] < 20 and not scores["none"]["scenes"][0]["masked"]
    for way in ("targets", "white"):
        assert scores[way]["mean"]["reconx"]["psnr"] > 60 and scores[way]["mean"]["reconx"]["ssim"] > 0.9999
        assert scores[way]["scenes"][0]["masked"]
    empty = replace(views, target_masks=torch.zeros_like(masks))
    assert "empty" in str(run(empty, tmp_path, replace(BARE, masks="targets"))["failed"])


def test_views_that_do_not_go_together_are_refused() -> None:
    views = tiny_views(1)
    with pytest.raises(BadSceneError, match="target masks"):
        replace(views, target_masks=torch.ones(2, 16, 16, dtype=torch.bool))
    with pytest.raises(BadSceneError, match="context depth"):
        replace(views, context_depth=torch.ones(3, 32, 32))
    with pytest.raises(BadSceneError, match="context images"):
        replace(views, context_images=views.context_images[..., 1:])
    with pytest.raises(BadSceneError, match="targets of"):
        replace(
            views,
            target_images=views.target_images[..., :16],
            target_cameras=replace(views.target_cameras, width=16),
        )


def test_a_pair_has_the_points_of_its_own_two_views() -> None:
    views = tiny_views(9, contexts=(0, 4, 8))
    whole = views_task(views, ENTRIES, None)
    by_depth = pair_clips(whole.inputs, 4)
    assert len(by_depth[0].cloud) == len(by_depth[1].cloud) == 2 * 32 * 32
    turned = views.context_cameras.world_to_camera.clone()
    turned[2, :3] = torch.diag(torch.tensor([-1.0, 1, -1])) @ turned[2, :3]  # the last view looks back
    cameras = replace(views.context_cameras, world_to_camera=turned)
    by_cloud = pair_clips(replace(whole.inputs, cameras=cameras, depth=None), 4)
    assert len(by_cloud[1].cloud) < len(by_cloud[0].cloud) <= len(whole.inputs.cloud)


def test_files_and_report_of_an_entry(tmp_path: Path) -> None:
    views = tiny_views(1, contexts=(0, 4, 8), targets=(1, 2, 3))
    views = replace(views, target_masks=torch.ones(3, 32, 32, dtype=torch.bool))
    config = replace(ENTRIES, media=True, masks="white", refine_test_poses=1, fit=replace(QUICK, steps=2))
    summary = run(views, tmp_path, config)
    record, folder = summary["scenes"][0], scene_folder(tmp_path, views.key)
    assert set(record["files"].values()) | {"result.json"} == {path.name for path in folder.iterdir()}
    assert len(load_ply(folder / "scene.ply")) == record["gaussians"]
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.height > 4 * 192  # one row of contexts and generated frames, three of targets
    page = write_report(tmp_path, summary).read_text()
    for text in ("protocol <code>tiny</code>", METHODS["depth_warp"], METHODS["contexts"], "RegNeRF", "not a score"):
        assert text in page
    assert "only the first and the last frame" not in page and METHODS["two_views"] not in page


@pytest.mark.parametrize(
    ("scene", "contexts", "targets"), [("dtu_scan24", (23, 24, 33), (22, 25)), ("pi3_room", (0, 3, 6), (1, 4))]
)
def test_real_photographs(
    scene: str, contexts: tuple[int, ...], targets: tuple[int, ...], shared_dir: Path, tmp_path: Path
) -> None:
    raw = only_scene(shared_dir / "scenes" / scene)
    chosen = [*contexts, *targets]
    clip = scene_clip(replace(raw, cloud=None), chosen, 128, 128)
    context, target = list(range(3)), [3, 4]
    depth, estimator = None, None
    if raw.frames[0].load_depth is None:
        pytest.importorskip("pycolmap")
        estimator = ColmapEstimator()
    else:
        pairs = [scene_clip(raw, [index, index], 128, 128).depth for index in contexts]
        depth = torch.stack([pair[0] for pair in pairs])
    views = EntryViews(
        key=scene,
        dataset=raw.dataset,
        scene=raw.name,
        context_images=clip.images[context],
        context_cameras=clip.cameras[context],
        context_indices=contexts,
        target_images=clip.images[target],
        target_cameras=clip.cameras[target],
        target_indices=targets,
        context_depth=depth,
    )
    summary = run(views, tmp_path, ENTRIES, estimator=estimator)
    assert summary["failed"] == {} and summary["complete"]
    (record,) = summary["scenes"]
    assert record["frames"] == 7 and record["contexts"] == list(contexts) and record["targets"] == list(targets)
    nearest = nearest_view(views.target_cameras, views.context_cameras)
    copied = psnr(views.context_images[nearest], views.target_images)
    assert record["scores"]["nearest_input"]["targets"]["psnr"] == pytest.approx(copied.tolist(), abs=1e-6)
    if depth is None:
        assert "ColmapEstimator from the 3 context views" in record["geometry"] and record["gaussians"] > 64
    else:
        assert summary["mean"]["depth_warp"]["psnr"] > summary["mean"]["nearest_input"]["psnr"] + 1
        assert record["gaussians"] == int((depth > 0).sum())
