"""What generated frames do for the scene: Gaussians fitted with them against Gaussians of the input views alone.

``python -m benchmarks.mini --first_seed N --clips M --gap G --json FILE`` on procedural scenes of these seeds, and
``python -m benchmarks.mini --root FOLDER --scenes NAME... --json FILE`` on posed photographs: of each scene the first
and the last photograph of a window are given; those between are the truth. Both print and write every floor, covered
and uncovered pixels apart, and each scene.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reconx_pl.cli.evaluate import evaluate
from reconx_pl.data.photos.posed_clip import SceneWindow
from reconx_pl.data.procedural import write_procedural
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.geometry.estimators.plane_sweep_estimator import PlaneSweepEstimator
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.losses import LossWeights

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
    window = SceneWindow(frames=chosen.frames, stride=chosen.stride, height=chosen.size, width=chosen.size)
    return [
        evaluate(
            out=folder / name,
            model=chosen.model,
            scene=chosen.root / name,
            estimator=PlaneSweepEstimator(),
            poses=chosen.poses,
            evaluation=settings(chosen.cameras, chosen.steps),
            window=window,
        )
        for name in chosen.scenes
    ]


def means(records: list[Mapping[str, Any]], part: str) -> dict[str, dict[str, float]]:
    """Method -> metric -> mean over scenes; ``part`` is "", "covered_" or "uncovered_"."""
    found: dict[str, dict[str, list[float]]] = {}
    for record in records:
        for method, scores in record[f"{part}scores"].items():
            for metric, value in scores["mean"].items():
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
        every = parts["all"][method]
        cells = [f"{every['psnr']:.2f}", f"{every['ssim']:.3f}", f"{every['lpips']:.3f}"]
        cells += [f"{parts[name][method]['psnr']:.2f}" if method in parts[name] else "" for name in ("seen", "unseen")]
        yield f"| {title} | {' | '.join(cells)} |"
    for record in records:
        scores = {method: values["mean"] for method, values in record["scores"].items()}
        gain = difference(scores, "reconx", "two_views")
        yield f"{record['key']}: {gain['psnr']:+.2f} dB, {gain['lpips']:+.3f} LPIPS over the two views alone"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True, help="what --model of evaluate.py takes")
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
        "scenes": {
            record["key"]: {method: values["mean"] for method, values in record["scores"].items()} for record in records
        },
    }
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
