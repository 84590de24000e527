"""Each row of the paper's table V leaves out its part and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_scenes import CONFIG, ENTRIES, MODEL, PROTOCOL, CrossFade, lazily, tiny_clip, tiny_views

from reconx_pl.diffusion.conditioning.render_config import GuidanceName
from reconx_pl.diffusion.pipeline import SamplingConfig
from reconx_pl.errors import BadSceneError
from reconx_pl.evaluation.ablation import PAPER, PARTS, Ablation, ablation_table
from reconx_pl.evaluation.runner import evaluate_views
from reconx_pl.evaluation.scene import evaluate_scene
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.files.json_files import write_json
from reconx_pl.geometry.cameras import project
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.points import random_points
from reconx_pl.splatting.robust_weights import RobustWeights


def changed(one: object, other: object, path: str = "") -> set[str]:
    """Names of the settings in which two dataclasses differ."""
    names = set()
    for item in dataclasses.fields(one):  # type: ignore[arg-type]
        a, b = getattr(one, item.name), getattr(other, item.name)
        if dataclasses.is_dataclass(a) and dataclasses.is_dataclass(b):
            names |= changed(a, b, f"{path}{item.name}.")
        elif a != b:
            names.add(path + item.name)
    return names


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("no_lpips", {"fit.loss.lpips"}),
        ("no_confidence", {"confidence", "fit.robust_weights"}),
        ("random_init", {"points.random"}),
        ("no_diffusion", {"diffusion"}),
        ("no_structure", set()),
    ],
)
def test_a_flag_changes_its_settings_and_no_other(flag: str, expected: set[str]) -> None:
    full = EvaluationConfig(fit=FitConfig(robust_weights=RobustWeights(start=0.3)))
    ablation = Ablation(**{flag: True})
    assert changed(full, ablation.evaluation(full)) == expected
    assert changed(SamplingConfig(), ablation.sampling(SamplingConfig())) == (
        {"structure"} if flag == "no_structure" else set()
    )
    assert Ablation().evaluation(full) == full


def test_names_go_both_ways(tmp_path: Path) -> None:
    both = Ablation(no_lpips=True, no_structure=True)
    assert both.name == "no-structure+no-lpips" and Ablation.named(both.name) == both
    assert both.out(tmp_path) == tmp_path / "ablation" / both.name and Ablation().out(tmp_path) == tmp_path
    assert Ablation.named("full") == Ablation() and Ablation.named("no-such-part") is None


def test_without_diffusion_nothing_is_generated_and_the_input_views_alone_are_fitted() -> None:
    view_generator, clip = CrossFade(), tiny_clip(3)
    config = Ablation(no_diffusion=True).evaluation(CONFIG)
    result = evaluate_scene(clip, view_generator, config)
    assert view_generator.seen == [] and "generated" not in result.scores
    spoiled = dataclasses.replace(clip, frames=clip.frames.clone())
    spoiled.frames[1:-1] = 0
    assert torch.equal(evaluate_scene(spoiled, view_generator, config).gaussians.means, result.gaussians.means)
    full = evaluate_scene(clip, view_generator, CONFIG)
    assert len(view_generator.seen) == 1 and not torch.equal(full.gaussians.means, result.gaussians.means)


def test_without_diffusion_an_entry_is_fitted_to_its_contexts(tmp_path: Path) -> None:
    view_generator = CrossFade()
    config = Ablation(no_diffusion=True).evaluation(ENTRIES)
    views = tiny_views(3, contexts=(0, 4, 8))
    results = evaluate_views(lazily(views), view_generator, config, tmp_path, model=MODEL, protocol=PROTOCOL)
    assert results["complete"] and view_generator.seen == []
    assert "reconx" in results["mean"]


def test_random_points_are_seen_by_a_camera_and_as_many_as_asked() -> None:
    cameras = tiny_clip(3).cameras[[0, 4]]
    cloud = random_points(cameras, 500)
    pixels, depth = project(cloud.points, cameras)
    inside = (depth > 0) & (pixels >= 0).all(-1) & (pixels <= 32).all(-1)
    assert len(cloud) == 500 and bool(inside.any(0).all())
    reach = float((cameras.centers[0] - cameras.centers[1]).norm())
    nearest = torch.where(inside, depth, torch.inf).amin(0)
    assert float(nearest.min()) < reach and float(depth.max()) > 5 * reach
    assert torch.equal(cloud.points, random_points(cameras, 500).points)
    with pytest.raises(BadSceneError, match="one place"):
        random_points(cameras[[0, 0]], 10)


def test_random_points_replace_the_geometry_in_equal_number() -> None:
    clip = tiny_clip(3)
    full = evaluate_scene(clip, CrossFade(), CONFIG)
    random = evaluate_scene(clip, CrossFade(), Ablation(random_init=True).evaluation(CONFIG))
    assert len(random.gaussians) == len(full.gaussians)
    assert full.scores["reconx"]["psnr"][0] > random.scores["reconx"]["psnr"][0] + 3


@pytest.mark.parametrize(
    ("guidance", "kept"),
    [(None, (True, True)), ("none", (False, False)), ("structure", (True, False)), ("render", (False, True))],
)
def test_guidance_leaves_out_what_it_does_not_name(guidance: GuidanceName | None, kept: tuple[bool, bool]) -> None:
    sampling = Ablation().guided_by(guidance).sampling(SamplingConfig())
    assert (sampling.structure, sampling.render) == kept
    assert Ablation(no_structure=True).guided_by("both").no_structure  # a flag stays


def results(psnr: float, complete: bool = True) -> dict[str, object]:
    return {
        "mean": {"reconx": {"psnr": psnr, "ssim": 0.5}},
        "metrics": ["psnr", "ssim"],
        "finished": 3,
        "expected": 3 if complete else 4,
        "complete": complete,
    }


def test_the_table_has_a_row_for_every_result_and_the_papers_beside_it(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", results(20.0))
    for ablation, psnr in (
        (Ablation(no_structure=True), 19.0),
        (Ablation(no_diffusion=True, no_confidence=True, no_lpips=True), 12.0),
    ):
        write_json(ablation.out(tmp_path) / "results.json", results(psnr, complete=psnr > 15))
    (tmp_path / "ablation" / "notes").mkdir()
    text = ablation_table(tmp_path)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert rows[0][: len(PARTS)] == list(PARTS)
    assert rows[1] == ["-", "-", "-", "yes", "-", "-", "12.000", "0.500", "3 of 4", "17.34 / .527 / .259"]
    assert rows[2] == ["yes", "-", "yes", "yes", "yes", "yes", "19.000", "0.500", "3 of 3", PAPER["no_structure",]]
    assert rows[3] == ["yes", "yes", "yes", "yes", "yes", "yes", "20.000", "0.500", "3 of 3", "28.31 / .912 / .088"]
    assert "**Not complete:** no-diffusion+no-confidence+no-lpips" in text
