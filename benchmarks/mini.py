"""What generated frames do for the scene: Gaussians fitted with them against Gaussians of the input views alone.

``python -m benchmarks.mini --first_seed N --clips M --gap G --json FILE`` on procedural scenes of these seeds, and
``python -m benchmarks.mini --root FOLDER --scenes NAME... --json FILE`` on posed photographs: of each scene the first
and the last photograph of a window are given; those between are the truth. A window of fewer photographs than the model
generates, because those farther apart do not overlap enough, is generated along cameras between the two. Both print and
write every floor, covered and uncovered pixels apart, and each scene.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from reconx_pl.cli.evaluate import chosen_model, evaluate
from reconx_pl.data.photos.posed_clip import SceneWindow, posed_clip
from reconx_pl.data.procedural import write_procedural
from reconx_pl.errors import BadSceneError
from reconx_pl.evaluation.ablation import Ablation
from reconx_pl.evaluation.entry_views import EntryViews, LazyViews
from reconx_pl.evaluation.runner import evaluate_scenes, evaluate_views
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.files.weights import MINI
from reconx_pl.geometry.estimators.plane_sweep_estimator import PlaneSweepEstimator
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.types import Clip

METHODS = {
    "reconx": "Gaussians of generated frames",
    "two_views": "Gaussians of the two views",
    "filled_render_splats": "Gaussians of filled renders",
    "generated": "generated frames",
    "filled_render": "filled renders",
    "nearest_input": "nearest view",
}


def settings(cameras: str, steps: int) -> EvaluationConfig:
    fit = FitConfig(steps=steps, loss=LossWeights(lpips=0.0), input_view_weight=3.0)
    return EvaluationConfig(fit=fit, pose_policy=cameras, ceiling=False, media=False)


def procedural(chosen: argparse.Namespace, folder: Path) -> Mapping[str, Any]:
    """The results of procedural scenes."""
    write_procedural(
        folder / "shards",
        chosen.clips,
        chosen.first_seed,
        frames=chosen.frames,
        size=(chosen.size, chosen.size),
        points=2048,
        gap=chosen.gap,
        variety=chosen.variety,
    )
    return evaluate(
        out=folder / "results",
        model=chosen.model,
        shards=folder / "shards",
        evaluation=settings(chosen.cameras, chosen.steps),
    )


def photographed(chosen: argparse.Namespace, folder: Path) -> list[Mapping[str, Any]]:
    """The results of posed photographs, scene by scene."""
    model, identity = chosen_model(chosen.model, None, Ablation(), "cpu")
    estimator = PlaneSweepEstimator()
    found: list[Mapping[str, Any]] = []
    for name in chosen.scenes:
        try:
            clip = widest_window(chosen, chosen.root / name)
        except BadSceneError as error:
            found.append({"scenes": [], "failed": {name: str(error)}})
            continue
        print(f"{name}: photographs {clip.frame_indices[0]} to {clip.frame_indices[-1]}, both given", flush=True)
        if len(clip.frame_indices) == chosen.frames:
            config = settings(chosen.cameras, chosen.steps)
            found.append(evaluate_scenes([clip], model, config, folder / name, model=identity, estimator=estimator))
        else:
            config = replace(settings("interpolated", chosen.steps), clip_frames=chosen.frames)
            entry = LazyViews(clip.key, partial(views_of, clip))
            out = folder / name
            found.append(
                evaluate_views([entry], model, config, out, model=identity, protocol="window", estimator=estimator)
            )
    return found


def widest_window(chosen: argparse.Namespace, scene: Path) -> Clip:
    """The window in the middle of a scene, narrowed until its first and last photograph overlap enough."""
    for width in (chosen.frames, 5, 3):
        window = SceneWindow(frames=width, stride=chosen.stride, height=chosen.size, width=chosen.size)
        try:
            return posed_clip(scene, window, PlaneSweepEstimator(), chosen.poses)
        except BadSceneError as error:
            narrowest = error
    raise narrowest


def views_of(clip: Clip) -> EntryViews:
    """The ends of a clip as the photographs that are given, those between as targets."""
    ends, between = [0, len(clip.frames) - 1], list(range(1, len(clip.frames) - 1))
    numbers = clip.frame_indices
    return EntryViews(
        key=clip.key,
        dataset=clip.dataset,
        scene=clip.scene,
        context_images=clip.images[ends],
        context_cameras=clip.cameras[ends],
        context_indices=(numbers[0], numbers[-1]),
        target_images=clip.images[between],
        target_cameras=clip.cameras[between],
        target_indices=tuple(numbers[1:-1]),
        context_depth=clip.depth,
        context_confidence=clip.confidence,
        cloud=clip.cloud,
        geometry=clip.geometry,
        fps=clip.fps,
        caption=clip.caption,
    )


def scores_of(record: Mapping[str, Any], part: str = "") -> dict[str, Mapping[str, float]]:
    """Method -> metric -> mean over the views of a scene; ``part`` is "", "covered_" or "uncovered_"."""
    found = {method: values["mean"] for method, values in record[f"{part}scores"].items()}
    return {"two_views" if method == "contexts" else method: values for method, values in found.items()}


def means(records: list[Mapping[str, Any]], part: str) -> dict[str, dict[str, float]]:
    """Method -> metric -> mean over scenes."""
    found: dict[str, dict[str, list[float]]] = {}
    for record in records:
        for method, scores in scores_of(record, part).items():
            for metric, value in scores.items():
                found.setdefault(method, {}).setdefault(metric, []).append(value)
    return {
        method: {metric: sum(values) / len(values) for metric, values in metrics.items()}
        for method, metrics in found.items()
    }


def difference(scores: Mapping[str, Mapping[str, float]], method: str, floor: str) -> dict[str, float]:
    return {metric: scores[method][metric] - scores[floor][metric] for metric in scores[method]}


def lines(records: list[Mapping[str, Any]]) -> Iterator[str]:
    """The table, and each scene."""
    parts = {name: means(records, part) for name, part in (("all", ""), ("seen", "covered_"), ("unseen", "uncovered_"))}
    share = sum(record["coverage"]["share"] for record in records) / len(records)
    yield f"| {len(records)} scenes, {100 * share:.1f} % seen | psnr | ssim | lpips | psnr, seen | psnr, unseen |"
    yield "|---|---:|---:|---:|---:|---:|"
    for method, title in METHODS.items():
        if method not in parts["all"]:
            continue
        every, scored = parts["all"][method], sum(method in scores_of(record) for record in records)
        title += "" if scored == len(records) else f", {scored} scenes alone"
        cells = [f"{every['psnr']:.2f}", f"{every['ssim']:.3f}", f"{every['lpips']:.3f}"]
        cells += [f"{parts[name][method]['psnr']:.2f}" if method in parts[name] else "" for name in ("seen", "unseen")]
        yield f"| {title} | {' | '.join(cells)} |"
    for record in records:
        scores = scores_of(record)
        gain = difference(scores, "reconx", "two_views")
        yield f"{record['key']}: {gain['psnr']:+.2f} dB, {gain['lpips']:+.3f} LPIPS over the two views alone"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default=MINI, help="what --model of evaluate.py takes")
    parser.add_argument("--first_seed", type=int)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--gap", type=float, default=3.0)
    parser.add_argument("--variety", choices=["plain", "varied", "estimated"], default="plain")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--scenes", nargs="+", default=[])
    parser.add_argument("--stride", type=int, default=1, help="photographs from frame to frame")
    parser.add_argument("--poses", choices=["dataset", "estimated"], default="dataset", help="of the two photographs")
    parser.add_argument("--cameras", choices=["dataset", "interpolated"], default="dataset", help="of generated frames")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200, help="of a fit")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    if (chosen.first_seed is None) == (chosen.root is None):
        parser.error("name --first_seed, or --root with --scenes")
    with tempfile.TemporaryDirectory(prefix="mini-") as folder:
        found = [procedural(chosen, Path(folder))] if chosen.root is None else photographed(chosen, Path(folder))
    records = [record for results in found for record in results["scenes"]]
    failed = {key: why for results in found for key, why in results["failed"].items()}
    for key, why in failed.items():
        print(f"not scored: {key}: {why}", flush=True)
    if not records:
        raise SystemExit(1)
    print("\n".join(lines(records)), flush=True)
    whole = means(records, "")
    name = "gaussians_minus_two_views" if chosen.root is None else "gaussians_minus_no_generation"
    content = {
        name: difference(whole, "reconx", "two_views"),
        **{
            f"gaussians_minus_{floor}": difference(whole, "reconx", floor)
            for floor in ("filled_render_splats", "nearest_input")
            if floor in whole  # a scene without depth has no render
        },
        "all": whole,
        "seen": means(records, "covered_"),
        "unseen": means(records, "uncovered_"),
        "failed": failed,
        "scenes": {record["key"]: scores_of(record) for record in records},
    }
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
