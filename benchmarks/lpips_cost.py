"""What LPIPS in every k-th step, or on crops, costs in quality and saves in time, on held-out views of photographs.

``python -m benchmarks.lpips_cost SCENE [SCENE ...]``: folders of posed photographs in any format that ``reconx pack``
reads. All true frames but every 8th are fitted, the others scored; points are triangulated from the fitted ones.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.posed_scenes import points_from, posed_scene
from reconx_pl.metrics.image import MetricSuite
from reconx_pl.metrics.lpips import LpipsDistance
from reconx_pl.splatting.fit import FitConfig, fit
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.splatting.renderers.choose import default_renderer

SETTINGS: dict[str, dict[str, Any]] = {
    "no LPIPS": {"loss": LossWeights(lpips=0.0)},
    "AlexNet": {"lpips_net": "alex"},
    "AlexNet, every 2nd step": {"lpips_net": "alex", "lpips_every": 2},
    "AlexNet, every 4th step": {"lpips_net": "alex", "lpips_every": 4},
    "AlexNet, crop of 64": {"lpips_net": "alex", "lpips_crop": 64},
    "VGG, every 4th step, crop of 64": {"lpips_every": 4, "lpips_crop": 64},
    "VGG, every 4th step": {"lpips_every": 4},
    "VGG": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="+", type=Path)
    parser.add_argument("--size", type=int, default=128, help="short side of the frames, pixels")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--cache", type=Path, help="folder for triangulated points; default: gone with the run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    suite = MetricSuite()
    scores: dict[str, list[Tensor]] = {name: [] for name in options.only}
    with tempfile.TemporaryDirectory() as temporary:
        for folder in options.scenes:
            scene = posed_scene(folder, options.size)
            used, left = scene.training, scene.held_out
            cloud = points_from(scene.raw, used, options.cache or Path(temporary))
            print(
                f"{scene.name}: {len(used)} frames of {tuple(scene.frames.shape[-2:])}, {len(cloud)} points", flush=True
            )
            for name in options.only:
                config = replace(FitConfig(steps=options.steps), **SETTINGS[name])
                perceptual = LpipsDistance(config.lpips_net) if config.loss.lpips > 0 else None
                start = time.process_time()
                result = fit(scene.frames[used], scene.cameras[used], None, cloud, config, perceptual=perceptual)
                spent = 1000 * (time.process_time() - start) / options.steps
                with torch.no_grad():
                    pictures = default_renderer("cpu").render(result.gaussians, scene.cameras[left]).color
                values = [value.mean() for value in suite(pictures, scene.frames[left]).values()]
                scores[name].append(torch.stack([*values, torch.tensor(spent, dtype=torch.float64)]))
                print(f"  {name:32s} " + "  ".join(f"{float(value):.4g}" for value in scores[name][-1]), flush=True)
    print(f"\n| | {' / '.join(suite.names)} | ms a step |\n|---|---|---|")
    for name, rows in scores.items():
        *values, spent_mean = torch.stack(rows).mean(dim=0).tolist()
        print(f"| {name} | {values[0]:.2f} / " + " / ".join(f"{v:.3f}" for v in values[1:]) + f" | {spent_mean:.0f} |")


if __name__ == "__main__":
    main()
