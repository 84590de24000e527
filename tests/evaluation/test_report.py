"""The report: everything in one file, every scene, every notice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from html_pages import read_page
from PIL import Image

from reconx_pl.errors import BadDataError
from reconx_pl.evaluation.baselines import METHODS
from reconx_pl.evaluation.records import alignment_record, scene_folder
from reconx_pl.evaluation.report import VIDEO_LIMIT, write_report
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.evaluation.task import FROM_DEPTH, FROM_POINTS
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.pose_refinement import PoseRefinement
from reconx_pl.splatting.robust_weights import RobustWeights
from reconx_pl.types import AlignmentQuality
from reconx_pl.visualization.video import write_mp4


def scene_record(out: Path, key: str, scores: dict[str, dict[str, float]]) -> dict[str, Any]:
    folder = scene_folder(out, key)
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 32), (200, 30, 30)).save(folder / "contact_sheet.png")
    for name in ("generated", "confidence"):
        write_mp4(torch.rand(3, 3, 16, 16), folder / f"{name}.mp4", 8)
    (folder / "scene.ply").write_bytes(b"ply")
    return {
        "key": key,
        "frames": 5,
        "size": [32, 48],
        "frame_gap": 40,
        "gaussians": 1234,
        "targets": [1, 2, 3],
        "seconds": {"fit": 61.0, "generate": 2.5},
        "scores": {method: {"mean": values, "targets": {}} for method, values in scores.items()},
        "held_out_scores": {},
        "files": {
            "contact_sheet": "contact_sheet.png",
            "generated": "generated.mp4",
            "confidence": "confidence.mp4",
            "splats": "scene.ply",
        },
    }


SCORES = {
    "reconx": {"psnr": 24.126, "ssim": 0.8123},
    "generated": {"psnr": 23.0, "ssim": 0.85},
    "two_views": {"psnr": 18.0, "ssim": 0.6},
    "nearest_input": {"psnr": 17.0, "ssim": 0.5},
    "ceiling": {"psnr": 31.0, "ssim": 0.95},
}


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Any]:
    keys = ["room <1>", "re10k/0bf152ef84195293", "plain"]
    config = EvaluationConfig()
    return {
        "complete": False,
        "expected": 5,
        "finished": 3,
        "failed": {"bad & broken": "BadSceneError: no point cloud"},
        "missing": ["not yet"],
        "mean": SCORES,
        "mean_held_out": {},
        "metrics": ["psnr", "ssim", "lpips"],
        "absent": {"lpips": "no backbone (vgg); get it with `reconx weights fetch lpips`"},
        "pose_policy": "dataset",
        "geometry": {FROM_DEPTH: 2, FROM_POINTS: 1},
        "config": config.as_dict(),
        "config_hash": config.hash,
        "model": "step 2000",
        "version": "0.1.0",
        "seconds": {"fit": 183.0, "generate": 7.5},
        "scenes": [scene_record(tmp_path, key, SCORES) for key in keys],
    }


def test_report_stands_alone(tmp_path: Path, results: dict[str, Any]) -> None:
    page, links = read_page(write_report(tmp_path, results))
    assert not [target for target in links.targets if re.match(r"(https?:)?//", target)]
    assert not re.search(r"url\(|@import|<script", page)
    local = [target for target in links.targets if not target.startswith("data:")]
    assert local and all((tmp_path / target).is_file() or target.endswith(".json") for target in local)
    assert sum(target.startswith("data:image/jpeg") for target in links.targets) == 3
    assert sum(target.startswith("data:video/mp4") for target in links.targets) == 6  # two a scene
    assert all(links.alts) and len(links.alts) == 9


def test_report_says_everything(tmp_path: Path, results: dict[str, Any]) -> None:
    page, _ = read_page(write_report(tmp_path, results, title="Three scenes"))
    for text in ("room &lt;1&gt;", "re10k/0bf152ef84195293", "plain", "bad &amp; broken", "no point cloud", "not yet"):
        assert text in page
    assert "<title>Three scenes</title>" in page and "not complete" in page
    assert "LPIPS is not reported" in page and "<code>reconx weights fetch lpips</code>" in page
    assert "24.13" in page and "0.812" in page
    assert results["config_hash"] in page and "fit.steps" in page
    assert "28.31" not in page  # published numbers are of other scenes


def test_best_is_marked_among_those_that_do_not_see_the_truth(tmp_path: Path, results: dict[str, Any]) -> None:
    page, _ = read_page(write_report(tmp_path, results))
    table = page[page.index("<h2>Scores</h2>") : page.index("<h2>Where the time went</h2>")]
    assert re.findall(r'<td class="best" title="best">([\d.]+)', table) == ["24.13", "0.850"]
    lower = {"reconx": {"lpips": 0.2}, "generated": {"lpips": 0.1}, "ceiling": {"lpips": 0.05}}
    results |= {"mean": lower, "metrics": ["lpips"], "absent": {}, "scenes": results["scenes"][:0]}
    assert "No scene has been scored" in write_report(tmp_path, results).read_text()
    one = results | {"scenes": [scene_record(tmp_path, "late", lower)]}
    page = write_report(tmp_path, one).read_text()
    assert re.findall(r'<td class="best" title="best">([\d.]+)', page)[0] == "0.100"


def test_the_page_begins_with_who_wins_and_with_pictures(tmp_path: Path, results: dict[str, Any]) -> None:
    page, _ = read_page(write_report(tmp_path, results))
    head = page[: page.index("</header>")]
    assert f"<b>{METHODS['reconx']}</b> wins by 1.13 dB PSNR: 24.13 against 23.00, {METHODS['generated']}." in head
    assert f"{METHODS['reconx']}: +6.13 dB over {METHODS['two_views']}." in head
    assert page.index("data:image/jpeg") < page.index("What this is.") < page.index("<h2>Scores</h2>")


def test_a_method_that_loses_is_said_to_lose(tmp_path: Path, results: dict[str, Any]) -> None:
    scores = {"reconx": {"psnr": 17.5}, "two_views": {"psnr": 18.0}, "ceiling": {"psnr": 31.0}}
    page, _ = read_page(write_report(tmp_path, results | {"mean": scores}))
    assert f"<b>{METHODS['two_views']}</b> wins by 0.50 dB PSNR: 18.00 against 17.50, {METHODS['reconx']}." in page
    assert "over Splats" not in page, "the same two"
    alone = write_report(tmp_path, results | {"mean": {"reconx": {"psnr": 17.5}, "ceiling": {"psnr": 31.0}}})
    assert 'class="verdict"' not in alone.read_text(), "nobody to win against"


def test_only_the_first_scenes_have_pictures(tmp_path: Path, results: dict[str, Any]) -> None:
    page, links = read_page(write_report(tmp_path, results, pictured=1))
    assert sum(target.startswith("data:image/jpeg") for target in links.targets) == 1
    assert all(scene["key"].replace("<", "&lt;").replace(">", "&gt;") in page for scene in results["scenes"])


def test_large_videos_are_linked(tmp_path: Path, results: dict[str, Any]) -> None:
    path = scene_folder(tmp_path, "plain") / "generated.mp4"
    path.write_bytes(b"0" * (VIDEO_LIMIT + 1))
    _, links = read_page(write_report(tmp_path, results))
    assert "scenes/plain/generated.mp4" in links.targets
    assert sum(target.startswith("data:video/mp4") for target in links.targets) == 5


def test_training_curves_are_in_the_report(tmp_path: Path, results: dict[str, Any]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for stage in ("stage1", "stage2"):
        with SummaryWriter(str(tmp_path / "logs" / stage)) as writer:
            for step in range(20):
                writer.add_scalar("train/loss", 1 / (1 + step), step)
    page, links = read_page(
        write_report(tmp_path, results, [tmp_path / "logs" / "stage1", tmp_path / "logs" / "stage2"])
    )
    assert sum(target.startswith("data:image/svg+xml") for target in links.targets) == 2
    assert page.index("stage1: training") < page.index("stage2: training")


def test_a_missing_log_folder_does_not_lose_the_report(tmp_path: Path, results: dict[str, Any]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "logs" / "stage2")) as writer:
        for step in range(5):
            writer.add_scalar("train/loss", 1 / (1 + step), step)
    page, links = read_page(write_report(tmp_path, results, [tmp_path / "nowhere", tmp_path / "logs" / "stage2"]))
    assert sum(target.startswith("data:image/svg+xml") for target in links.targets) == 1
    notice = page[page.index("No loss curves") :]
    assert "nowhere" in notice[: notice.index("</div>")] and "24.13" in page


def test_report_says_what_was_given_beside_the_two_views(tmp_path: Path, results: dict[str, Any]) -> None:
    page, _ = read_page(write_report(tmp_path, results))
    assert "their poses were given to the fit" in page
    assert f"{FROM_DEPTH} (2 scenes)" in page and f"{FROM_POINTS} (1 scene)" in page
    one = results | {"pose_policy": "interpolated", "geometry": {FROM_POINTS: 3}}
    page, _ = read_page(write_report(tmp_path, one))
    assert "poses were given" not in page and "which neither the model nor the fit has seen" in page
    assert FROM_DEPTH not in page and f"{FROM_POINTS}." in page


def test_a_long_model_line_is_cut_and_stands_whole_in_the_settings(tmp_path: Path, results: dict[str, Any]) -> None:
    model = "weights 0123456789abcdef, " + "sampling " * 40 + "end"
    page, _ = read_page(write_report(tmp_path, results | {"model": model}))
    head = page[: page.index("</header>")]
    assert model[:80] in head and model[:81] not in head
    assert model in page[page.index("<h2>Settings</h2>") :]


def test_results_are_read_from_the_folder(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="results.json"):
        write_report(tmp_path)


def test_a_bad_alignment_cannot_be_overlooked(tmp_path: Path, results: dict[str, Any]) -> None:
    page = write_report(tmp_path, results).read_text()
    assert "alignment" not in page[: page.index("<h2>Settings</h2>")]  # which name an option of that name
    scenes = results["scenes"]
    scenes[0]["alignment"] = alignment_record(AlignmentQuality((0.1, 0.2), (0.3, 0.4)))
    page, _ = read_page(write_report(tmp_path, results))
    assert "alignment of found poses" in page and "0.20° at most" in page and "do not agree" not in page
    scenes[1]["alignment"] = alignment_record(AlignmentQuality((0.1, 7.5), (0.3, 40.0)))
    page, _ = read_page(write_report(tmp_path, results, pictured=1))  # also where its scene has no pictures
    warning = page[page.index("do not agree") : page.index("<h2>Scores</h2>")]
    assert "re10k/0bf152ef84195293" in warning and "7.50° at most" in warning and "room" not in warning
    assert alignment_record(None) is None


def test_report_says_when_the_fit_moved_poses_and_judged_frames(tmp_path: Path, results: dict[str, Any]) -> None:
    plain, _ = read_page(write_report(tmp_path, results))
    assert "refined these poses" not in plain and "count less" not in plain
    fit = FitConfig(poses=PoseRefinement(), robust_weights=RobustWeights())
    results["config"] = EvaluationConfig(fit=fit).as_dict()
    page, _ = read_page(write_report(tmp_path, results))
    assert "The fit refined these poses." in page and "they count less" in page
