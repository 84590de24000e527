"""Real photographs: the fit from all but every 8th view, and from 3 and 6 views, scored on views held out."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.posed_scenes import points_from
from reconx_pl.data.formats.readers import only_scene
from reconx_pl.evaluation.posed_scene_runner import save_comparison
from reconx_pl.evaluation.posed_scenes import PosedScene, PosedSceneConfig, fit_posed_scene, load_posed_scene
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.geometry.estimators.colmap import ColmapEstimator
from reconx_pl.metrics.image import MetricSuite
from reconx_pl.metrics.lpips import LpipsDistance
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.splatting.points import select_points
from reconx_pl.splatting.renderers.choose import default_renderer

SCENES = ("llff_fern", "ingp_fox", "dtu_scan24", "mid_templeRing", "banana")
WINDOW = 17  # photographs in a row around the middle: the few views span them, the held-out ones among them are scored


def few_views(capture: PosedScene, count: int) -> PosedScene:
    """``count`` of the fitted views, evenly spaced over a window, and the held-out ones within it."""
    views = len(capture.images)
    start = max(0, (views - WINDOW) // 2)
    window = range(start, min(views, start + WINDOW))
    usable = [view for view in capture.fitted if view in window]
    fitted = [usable[round(place * (len(usable) - 1) / (count - 1))] for place in range(count)]
    held_out = [view for view in capture.held_out if fitted[0] < view < fitted[-1]]
    return replace(capture, fitted=fitted, held_out=held_out)


def nobody(source: Path, lacking: str) -> PointMapEstimator:
    return ColmapEstimator()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.posed scenes", description=__doc__)
    parser.add_argument("scenes", nargs="*", default=SCENES, help="folders in --root")
    parser.add_argument("--root", type=Path, default=Path("../shared/scenes"), help="folder of posed scenes")
    parser.add_argument("--size", type=int, default=256, help="short side, pixels")
    parser.add_argument("--views", type=int, nargs="+", default=[0, 3, 6], help="views of the fit; 0 is all")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lpips_every", type=int, default=4, help="AlexNet features in every k-th step; 0 is never")
    parser.add_argument("--cache", type=Path, default=Path("runs/posed scenes"), help="for points")
    parser.add_argument("--pictures", type=Path, help="folder for comparison sheets")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    loss = LossWeights() if options.lpips_every else LossWeights(lpips=0.0)
    fit = FitConfig(steps=options.steps, loss=loss, lpips_net="alex", lpips_every=max(1, options.lpips_every))
    config = PosedSceneConfig(fit=fit, short_side=options.size)
    suite, renderer = MetricSuite(), default_renderer("cpu")
    perceptual = LpipsDistance("alex") if options.lpips_every else None
    print("scene           views  held out  points   PSNR   SSIM  LPIPS   fitted PSNR   seconds")
    rows: dict[int, list[dict[str, float]]] = {}
    for name in options.scenes:
        capture = load_posed_scene(options.root / name, config, None, nobody)
        points = points_from(only_scene(options.root / name), capture.fitted, options.cache)
        for count in options.views:
            part = few_views(capture, count) if count else capture
            part = replace(part, points=partial(select_points, points, config.points_for(len(part.fitted))))
            result = fit_posed_scene(part, config, suite, renderer, perceptual)
            scores = {key: float(values.mean()) for key, values in result.scores.items()}
            rows.setdefault(count, []).append(scores)
            print(
                f"{name:15s} {len(part.fitted):5d} {len(part.held_out):9d} {result.points:7d} {_text(scores)} "
                f"{float(result.fitted_scores['psnr'].mean()):13.2f} {result.fit.seconds:9.0f}",
                flush=True,
            )
            if options.pictures:
                save_comparison(part, result, options.pictures / f"{name}_{count or 'all'}")
    for count, scenes in rows.items():
        mean = {key: statistics.mean(scene[key] for scene in scenes) for key in scenes[0]}
        print(f"mean of {len(scenes)}, views {count or 'all'}: {_text(mean)}")


def _text(scores: dict[str, float]) -> str:
    digits = {"psnr": "6.2f", "ssim": "6.3f", "lpips": "6.3f"}
    return " ".join(f"{scores[name]:{digits[name]}}" if name in scores else "     -" for name in digits)


if __name__ == "__main__":
    main()
