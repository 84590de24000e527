"""The peak memory of a fit on the CPU, beside what ``fit_memory`` estimates. Linux.

``python -m benchmarks.fit_memory``: each case in a process of its own, one minute in all on a free machine.
"""

from __future__ import annotations

import subprocess
import sys

import torch

from benchmarks.timing import added_bytes
from reconx_pl.metrics.lpips import LpipsDistance
from reconx_pl.splatting.fit import FitConfig, fit, fit_memory
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.types import Cameras, PointCloud

# points, frames, pixels a side, LPIPS network ("" = none), crop (0 = none)
CASES = (
    (20_000, 4, 64, "", 0),
    (100_000, 4, 128, "", 0),
    (1_000, 64, 256, "", 0),
    (1_000, 16, 256, "vgg", 0),
    (1_000, 4, 256, "vgg", 128),
)


def scene(points: int, views: int, size: int) -> tuple[torch.Tensor, Cameras, PointCloud]:
    """Noise: what is in the pictures does not matter."""
    g = torch.Generator().manual_seed(0)
    poses = torch.eye(4).repeat(views, 1, 1)
    poses[:, 0, 3], poses[:, 2, 3] = torch.linspace(-0.3, 0.3, views), 3.0
    k = torch.tensor([[1.1 * size, 0.0, size / 2], [0.0, 1.1 * size, size / 2], [0.0, 0.0, 1.0]])
    cloud = PointCloud(
        torch.rand(points, 3, generator=g) * 2 - 1, torch.rand(points, 3, generator=g), torch.ones(points)
    )
    return torch.rand(views, 3, size, size, generator=g), Cameras(poses, k.repeat(views, 1, 1), size, size), cloud


def measure(points: int, views: int, size: int, net: str, crop: int) -> None:
    """Print one row of the table."""
    config = FitConfig(
        steps=12,
        sh_interval=0.1,
        loss=LossWeights(lpips=0.5 if net else 0.0),
        lpips_net="alex" if net == "alex" else "vgg",
        lpips_crop=crop or None,
        lpips_memory=2**33,
        max_memory=64.0,
    )
    perceptual = LpipsDistance(config.lpips_net) if net else None
    fit(*scene_with_confidence(300, 2, 64), config=FitConfig(steps=2, loss=LossWeights(lpips=0.0)))  # kernels load
    frames, cameras, confidence, cloud = scene_with_confidence(points, views, size)
    peak = added_bytes(lambda: fit(frames, cameras, confidence, cloud, config, perceptual=perceptual), "cpu") / 2**20
    estimate = fit_memory(points, views, size, size, config) / 2**20
    what = f"{net}{f', crop of {crop}' if crop else ''}" if net else "none"
    print(f"| {points:,} | {views} of {size} x {size} | {what} | {peak:.0f} MiB | {estimate:.0f} MiB |", flush=True)


def scene_with_confidence(points: int, views: int, size: int) -> tuple[torch.Tensor, Cameras, torch.Tensor, PointCloud]:
    """The arguments of a fit in their order."""
    frames, cameras, cloud = scene(points, views, size)
    return frames, cameras, torch.full((views, size, size), 3.0), cloud


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        measure(*CASES[int(sys.argv[1])])
        return
    print("| points | frames | LPIPS | measured | estimate |\n|---|---|---|---|---|", flush=True)
    for number in range(len(CASES)):
        subprocess.run([sys.executable, "-m", "benchmarks.fit_memory", str(number)], check=True)


if __name__ == "__main__":
    main()
