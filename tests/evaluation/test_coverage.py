"""Scores of what the input views have seen, and of what they have not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_scenes import CONFIG, MODEL, CrossFade, tiny_clip

from reconx_pl.evaluation.baselines import METHODS
from reconx_pl.evaluation.coverage import BY_CLOUD, BY_DEPTH, Coverage, input_coverage
from reconx_pl.evaluation.records import LAYOUT, scene_folder
from reconx_pl.evaluation.report import write_report
from reconx_pl.evaluation.runner import evaluate_scene, evaluate_scenes
from reconx_pl.evaluation.task import clip_task
from reconx_pl.reconstruction.view_generator import RecordedFrames
from reconx_pl.types import Clip

BARE = replace(CONFIG, two_views=False)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return tiny_clip(1)


def half_known(clip: Clip) -> Clip:
    """Of neither input view the right half is known, nor of the cloud."""
    depth = clip.depth.clone()
    depth[:, :, 16:] = 0
    return replace(clip, key="half", depth=depth)


def test_small_parts_are_left_out_of_a_view_and_of_a_scene() -> None:
    covered = torch.ones(4, 10, 40, dtype=torch.bool)
    covered[1, :, :20] = False  # half of it
    covered[2, 0, 0] = False  # 1 of 400 pixels
    coverage = Coverage(covered, BY_DEPTH)
    assert coverage.shares([1, 2, 0]) == pytest.approx([0.5, 0.9975, 1.0])
    parts = coverage.parts([1, 2, 0])
    assert parts["uncovered"].sum(dim=(1, 2)).tolist() == [200, 0, 0]
    assert parts["covered"].sum(dim=(1, 2)).tolist() == [200, 399, 400]
    assert coverage.parts([0, 2, 3]).keys() == {"covered"}  # 1 of 1,200 pixels
    assert coverage.parts([2]).keys() == {"covered"} and Coverage(~covered, "").parts([2]).keys() == {"uncovered"}
    masks = torch.zeros(2, 10, 40, dtype=torch.bool)
    masks[:, :, :10] = True  # of view 1 nothing that is scored has been seen
    assert coverage.shares([1, 3], masks) == [0.0, 1.0]
    assert coverage.parts([1, 3], masks)["covered"][0].sum() == 0
    assert coverage.parts([1], masks[:1]).keys() == {"uncovered"}


def test_depth_covers_or_else_the_cloud(clip: Clip) -> None:
    known = clip_task(half_known(clip), CONFIG).inputs
    by_depth = input_coverage(known, clip.cameras)
    assert by_depth.by == BY_DEPTH and by_depth.covered.shape == (5, 32, 32)
    assert by_depth.covered[0, :, :16].all() and not by_depth.covered[0, :, 22:].any()
    sky = torch.where(known.depth > 0, known.depth, torch.inf)
    assert input_coverage(replace(known, depth=sky), clip.cameras).covered[0].all()  # known to be far is seen
    one = torch.arange(len(clip.cloud)) < 1
    by_cloud = input_coverage(replace(known, depth=None, cloud=clip.cloud[one]), clip.cameras)
    assert by_cloud.by == BY_CLOUD and 0 < float(by_cloud.covered.float().mean()) < 0.2


def test_errors_outside_of_what_was_seen_do_not_touch_the_covered_score(clip: Clip, tmp_path: Path) -> None:
    clip = half_known(clip)
    seen = input_coverage(clip_task(clip, CONFIG).inputs, clip.cameras).covered
    wrong = torch.where(seen[:, None], clip.images, 1 - clip.images)
    results = evaluate_scenes([clip], RecordedFrames({clip.key: wrong}), BARE, tmp_path, model=MODEL)
    (record,) = results["scenes"]
    assert record["covered_scores"]["generated"]["mean"]["psnr"] == pytest.approx(100)
    assert record["uncovered_scores"]["generated"]["mean"]["psnr"] < 15
    assert record["covered_scores"].keys() == record["uncovered_scores"].keys() == record["scores"].keys()
    shares = seen[1:-1].float().mean(dim=(1, 2))
    assert record["coverage"]["targets"] == pytest.approx(shares.tolist(), abs=1e-6)
    assert record["coverage"]["by"] == BY_DEPTH
    for target in range(3):  # squared errors of the two parts are those of the whole
        share, (inside, outside, whole) = (
            float(shares[target]),
            (
                10 ** (-record[name]["reconx"]["targets"]["psnr"][target] / 10)
                for name in ("covered_scores", "uncovered_scores", "scores")
            ),
        )
        assert share * inside + (1 - share) * outside == pytest.approx(whole, rel=1e-5)


def test_means_are_of_the_scenes_that_have_such_pixels(clip: Clip, tmp_path: Path) -> None:
    half = half_known(clip)
    everything = replace(clip, key="all", cameras=clip.cameras[[0, 0, 0, 4, 4]])  # from where the input views are
    config = replace(BARE, ceiling=True)
    results = evaluate_scenes([half, everything], CrossFade(), config, tmp_path, model=MODEL)
    assert results["failed"] == {}
    of_half, of_all = results["scenes"]
    assert of_all["coverage"]["share"] == 1 and of_all["uncovered_scores"] == {}
    found = results["coverage"]
    methods = {"reconx", "generated", "nearest_input", "ceiling"}
    assert found["scenes"] == {"covered": dict.fromkeys(methods, 2), "uncovered": dict.fromkeys(methods, 1)}
    assert found["share"] == pytest.approx((of_half["coverage"]["share"] + 1) / 2) and found["by"] == {BY_DEPTH: 2}
    assert results["mean_uncovered"]["reconx"] == of_half["uncovered_scores"]["reconx"]["mean"]
    both = [record["covered_scores"]["reconx"]["mean"]["ssim"] for record in results["scenes"]]
    assert results["mean_covered"]["reconx"]["ssim"] == pytest.approx(sum(both) / 2)
    page = write_report(tmp_path, results).read_text()
    assert "PSNR, dB ↑,<br>covered" in page and "PSNR, dB ↑,<br>uncovered" in page
    assert "of covered pixels over 2 of 2 scenes and of uncovered pixels over 1 of 2 scenes" in page


def test_a_view_without_such_pixels_is_null_in_the_record(clip: Clip, tmp_path: Path) -> None:
    clip = replace(clip, cameras=clip.cameras[[0, 0, 2, 4, 4]])  # the second target alone is elsewhere
    results = evaluate_scenes([clip], CrossFade(), BARE, tmp_path, model=MODEL)
    (record,) = results["scenes"]
    scores = record["uncovered_scores"]["reconx"]
    for metric in ("psnr", "ssim"):
        first, second, third = scores["targets"][metric]
        assert first is None and third is None and scores["mean"][metric] == second
    assert results["mean_uncovered"]["reconx"] == scores["mean"]
    assert json.loads((scene_folder(tmp_path, clip.key) / "result.json").read_text()) == record


def test_a_split_that_nobody_asked_for_is_not_made(clip: Clip) -> None:
    result = evaluate_scene(clip, CrossFade(), replace(BARE, coverage=False))
    assert result.coverage is None and result.part_scores == {}


def test_records_of_another_layout_are_read_and_not_taken_for_finished(clip: Clip, tmp_path: Path) -> None:
    generator = CrossFade()
    results = evaluate_scenes([clip], generator, BARE, tmp_path, model=MODEL)
    path = scene_folder(tmp_path, clip.key) / "result.json"
    assert json.loads(path.read_text())["layout"] == results["layout"] == LAYOUT
    new = ("layout", "coverage", "left_out", "covered_scores", "uncovered_scores", "mean_covered", "mean_uncovered")
    old = {name: value for name, value in results.items() if name not in new}
    old["scenes"] = [{name: value for name, value in record.items() if name not in new} for record in old["scenes"]]
    page = write_report(tmp_path, old).read_text()
    assert METHODS["reconx"] in page and "<br>covered" not in page
    path.write_text(json.dumps(old["scenes"][0]))
    assert evaluate_scenes([clip], generator, BARE, tmp_path, model=MODEL)["complete"]
    assert len(generator.seen) == 2 and "covered_scores" in json.loads(path.read_text())
    evaluate_scenes([replace(clip, depth=2 * clip.depth)], generator, BARE, tmp_path, model=MODEL)  # other geometry
    assert len(generator.seen) == 3
