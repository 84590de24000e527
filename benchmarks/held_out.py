"""Real photographs: the fit from all but every 8th view, and from 3 and 6 views, scored on views held out."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.posed_scenes import points_from
from reconx_pl.data.formats.readers import only_scene
from reconx_pl.evaluation.media import scene_sheet
from reconx_pl.evaluation.posed_scenes import PosedSceneConfig, open_posed_scene
from reconx_pl.evaluation.scene import evaluate_task
from reconx_pl.evaluation.task import SceneTask
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.geometry.estimators.colmap import ColmapEstimator
from reconx_pl.metrics.image import MetricSuite
from reconx_pl.metrics.lpips import LpipsDistance
from reconx_pl.reconstruction.view_generator import NoViewGenerator
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.splatting.renderers.choose import default_renderer

SCENES = ("llff_fern", "ingp_fox", "dtu_scan24", "mid_templeRing", "banana")
WINDOW = 17  # photographs in a row around the middle: the few views span them, the held-out ones among them are scored


def few_views(task: SceneTask, count: int) -> SceneTask:
    """``count`` of the fitted views, evenly spaced over a window, and the held-out ones within it."""
    inputs = task.inputs
    views = len(inputs) + len(task.targets)
    start = max(0, (views - WINDOW) // 2)
    usable = [at for at, view in enumerate(inputs.indices) if start <= view < start + WINDOW]
    fitted = [usable[round(place * (len(usable) - 1) / (count - 1))] for place in range(count)]
    numbers = tuple(inputs.indices[at] for at in fitted)
    scored = [at for at, view in enumerate(task.target_indices) if numbers[0] < view < numbers[-1]]
    few = replace(inputs, images=inputs.images[fitted], cameras=inputs.cameras[fitted], indices=numbers)
    return replace(task, inputs=few, targets=scored, target_indices=[task.target_indices[at] for at in scored])


def nobody(source: Path, lacking: str) -> PointMapEstimator:
    return ColmapEstimator()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.held_out", description=__doc__)
    parser.add_argument("scenes", nargs="*", default=SCENES, help="folders in --root")
    parser.add_argument("--root", type=Path, default=Path("../shared/scenes"), help="folder of posed scenes")
    parser.add_argument("--size", type=int, default=256, help="short side, pixels")
    parser.add_argument("--views", type=int, nargs="+", default=[0, 3, 6], help="views of the fit; 0 is all")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--lpips_every", type=int, default=4, help="AlexNet features in every k-th step; 0 is never")
    parser.add_argument("--cache", type=Path, default=Path("runs/posed_scenes"), help="for points")
    parser.add_argument("--pictures", type=Path, help="folder for comparison sheets")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    loss = LossWeights() if options.lpips_every else LossWeights(lpips=0.0)
    fit = FitConfig(steps=options.steps, loss=loss, lpips_net="alex", lpips_every=max(1, options.lpips_every))
    config = PosedSceneConfig(fit=fit, short_side=options.size)
    suite, renderer = MetricSuite(), default_renderer("cpu")
    perceptual = LpipsDistance("alex") if options.lpips_every else None
    print("scene           views  held out  points   PSNR   SSIM  LPIPS   nearest view   seconds")
    rows: dict[int, list[dict[str, float]]] = {}
    for name in options.scenes:
        folder = options.root / name
        task = open_posed_scene(folder, config, None, nobody).task()
        points = points_from(only_scene(folder), task.inputs.indices, options.cache)
        task = replace(task, inputs=replace(task.inputs, cloud=points, depth=None))
        for count in options.views:
            part = few_views(task, count) if count else task
            result = evaluate_task(part, NoViewGenerator(), config.evaluation, suite, renderer, perceptual)
            scores = {key: float(values.mean()) for key, values in result.scores["reconx"].items()}
            rows.setdefault(count, []).append(scores)
            print(
                f"{name:15s} {len(part.inputs):5d} {len(part.targets):9d} {len(result.gaussians):7d} {_text(scores)} "
                f"{float(result.scores['nearest_input']['psnr'].mean()):13.2f} {result.seconds['fit']:9.0f}",
                flush=True,
            )
            if options.pictures:
                options.pictures.mkdir(parents=True, exist_ok=True)
                scene_sheet(result, config.evaluation).save(options.pictures / f"{name}_{count or 'all'}.png")
    for count, scenes in rows.items():
        mean = {key: statistics.mean(scene[key] for scene in scenes) for key in scenes[0]}
        print(f"mean of {len(scenes)}, views {count or 'all'}: {_text(mean)}")


def _text(scores: dict[str, float]) -> str:
    digits = {"psnr": "6.2f", "ssim": "6.3f", "lpips": "6.3f"}
    return " ".join(f"{scores[name]:{digits[name]}}" if name in scores else "     -" for name in digits)


if __name__ == "__main__":
    main()
