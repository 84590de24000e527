"""Which weights should a fit give to frames that a model guided by renders has generated, and to the photographs?

``python -m benchmarks.guided_fit RUN SHARDS [--scenes N] [--steps N]``: each validation clip is generated once at its
true cameras and fitted with every setting; PSNR at the frames between the input views. Choose on validation scenes,
never on those that are reported.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from reconx_pl.data.shards.stream import read_clips
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.evaluation.task import clip_task
from reconx_pl.metrics.image import psnr
from reconx_pl.reconstruction.scene_builder import (
    FitInput,
    SceneConfig,
    fit_scene,
    generate_sequence,
    photographs_alone,
    prepare_fit,
)
from reconx_pl.reconstruction.view_generator import ViewGenerator
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.splatting.robust_weights import RobustWeights
from reconx_pl.training.models import find_model
from reconx_pl.types import Clip


def settings(steps: int) -> Mapping[str, SceneConfig]:
    plain, robust = FitConfig(steps=steps, loss=LossWeights(lpips=0.0)), RobustWeights(start=0.3)
    often = replace(plain, input_view_weight=3.0)
    fits = {
        "all frames alike": replace(plain, confidence="none"),
        "confidence": plain,
        "photographs x 3": replace(often, confidence="none"),
        "confidence, photographs x 3": often,
        "confidence, photographs x 8": replace(plain, input_view_weight=8.0),
        "confidence, photographs x 3, robust weights": replace(plain, input_view_weight=3.0, robust_weights=robust),
        "linear confidence, photographs x 20, robust weights": replace(
            plain, confidence="linear", input_view_weight=20.0, robust_weights=robust
        ),
    }
    return {
        **{name: SceneConfig(fit, poses="dataset", confidence="reprojection") for name, fit in fits.items()},
        "confidence by surfaces, photographs x 3": SceneConfig(often, poses="dataset", confidence="render"),
    }


def scores(clip: Clip, generator: ViewGenerator, steps: int) -> dict[str, float]:
    """PSNR of one scene by setting, and of what they are compared with."""
    task, device = clip_task(clip, EvaluationConfig()), torch.device("cpu")
    renderer, inner = default_renderer(device), slice(1, -1)
    sequence = generate_sequence(task.inputs, task.clips, generator, 0, device, cameras=task.view_cameras)

    def fitted(frames: FitInput, config: SceneConfig) -> float:
        result = fit_scene(frames, config, clip.key, renderer=renderer)
        with torch.no_grad():
            views = renderer.render(result.gaussians, task.view_cameras).color
        return float(psnr(views[inner], task.views[inner]).mean())

    found = {"(generated frames)": float(psnr(sequence.images[inner], task.views[inner]).mean())}
    for name, config in settings(steps).items():
        given = prepare_fit(task.inputs, sequence, config)
        if name == "confidence":
            found["(the two views alone)"] = fitted(photographs_alone(task.inputs, given.start), config)
        found[name] = fitted(given, config)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("shards", type=Path, help="validation clips with depth")
    parser.add_argument("--scenes", type=int, default=9)
    parser.add_argument("--steps", type=int, default=200)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    generator = find_model(chosen.run).load()
    every: dict[str, list[float]] = {}
    for number, clip in enumerate(islice(read_clips(chosen.shards), chosen.scenes)):
        for name, value in scores(clip, generator, chosen.steps).items():
            every.setdefault(name, []).append(value)
        print(f"{number + 1} of {chosen.scenes} scenes", flush=True)
    for name, values in every.items():
        print(f"{sum(values) / len(values):7.2f} dB   {name}")


if __name__ == "__main__":
    main()
