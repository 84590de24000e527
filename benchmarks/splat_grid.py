"""One step of the Gaussian fit by image size and number of Gaussians, beside plain torch: time and memory.

A step renders one view, takes L1 + SSIM, goes back, and lets Adam step, spherical harmonics of degree 3 in use.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch

from benchmarks.timing import added_bytes, seconds_of
from benchmarks.torch_renderer import TILE, TorchRenderer
from reconx_pl.data.procedural import procedural_clip
from reconx_pl.geometry.cameras import project, resize_cameras
from reconx_pl.splatting.initialise import InitialiseConfig, gaussians_from_points
from reconx_pl.splatting.losses import LossWeights, TargetStatistics, confidence_loss
from reconx_pl.splatting.renderers.base import Renderer
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.types import Clip, Gaussians

SIZES = (128, 256, 512)
COUNTS = (5_000, 10_000, 20_000, 60_000, 200_000)
OURS, PLAIN = "ours", "plain torch"
MOST_SECONDS = 60.0  # of a step in plain torch
MOST_BYTES = 8 * 2**30  # that plain torch may keep for going back


@cache
def _clip(points: int) -> Clip:
    return procedural_clip(0, frames=2, points=points, size=(512, 512))


def scene(size: int, count: int, device: str) -> tuple[Gaussians, Clip]:
    """A room of ``count`` Gaussians as a fit starts with them, and its clip at ``size`` x ``size``."""
    clip = _clip(count)
    images = torch.nn.functional.interpolate(clip.images, size=(size, size), mode="area")
    frames = (images * 255).round().to(torch.uint8)
    clip = replace(clip, frames=frames, cameras=resize_cameras(clip.cameras, size, size))
    assert clip.cloud is not None and len(clip.cloud) == count
    start = gaussians_from_points(clip.cloud, clip.cameras, InitialiseConfig())
    leaves = {name: value.to(device) for name, value in vars(start).items()}
    for name in ("means", "quaternions", "log_scales", "opacity_logits", "sh"):
        leaves[name].requires_grad_()
    return Gaussians(**leaves), clip


def step_of(renderer: Renderer, size: int, count: int, device: str) -> Callable[[], None]:
    """The call that is measured. Its learning rate is so small that the scene stays what it is."""
    gaussians, clip = scene(size, count, device)
    camera, target = clip.cameras[0].to(device), clip.images[:1].to(device)
    weights, statistic = torch.ones(1, size, size, device=device), TargetStatistics.of(target)
    leaves = [value for value in vars(gaussians).values() if value.requires_grad]
    optimizer = torch.optim.Adam(leaves, lr=1e-12, fused=True)

    def step() -> None:
        color = renderer.render(gaussians, camera).color
        loss = confidence_loss(color, target, weights, LossWeights(lpips=0.0), statistics=statistic)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def kept_bytes(size: int, count: int) -> int:
    """About what plain torch keeps of a step: eight values for each pixel of each (tile, Gaussian) pair."""
    gaussians, clip = scene(size, count, "cpu")
    pixels, depth = project(gaussians.means.detach(), clip.cameras[0])
    radius = 3.33 * gaussians.log_scales.detach()[:, 0].exp() * clip.cameras.intrinsics[0, 0, 0] / depth[0]
    seen = (depth[0] > 0.01) & (pixels[0] > 0).all(-1) & (pixels[0] < size).all(-1)
    pairs = float(((2 * radius / TILE + 1) ** 2)[seen].sum())
    return int(pairs * TILE**2 * 8 * 4)


def renderers(device: str) -> dict[str, Renderer]:
    return {OURS: default_renderer(device), PLAIN: TorchRenderer()}


def report_memory(size: int, count: int, name: str, device: str) -> None:
    """Print the most that the first step adds to the scene: gradients and Adam's moments are among it."""
    if device == "cpu":
        torch.set_num_threads(1)
    renderer = renderers(device)[name]
    step_of(renderer, 32, 100, device)()  # kernels and libraries are loaded now
    step = step_of(renderer, size, count, device)
    print(json.dumps({"bytes": added_bytes(step, device)}))


def memory(size: int, count: int, name: str, device: str) -> int:
    arguments = ["memory", "--sizes", str(size), "--counts", str(count), "--renderer", name, "--device", device]
    command = [sys.executable, "-m", "benchmarks.splat", *arguments]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(json.loads(found.splitlines()[-1])["bytes"])


def main(sizes: list[int], counts: list[int], device: str, rounds: int, with_plain: bool = True) -> None:
    print("| size | Gaussians | a step | plain torch: takes times (least to greatest) | memory | plain torch |")
    print("|---|---|---|---|---|---|", flush=True)
    known = renderers(device)
    for size in sizes:
        for count in counts:
            steps: dict[str, Callable[[], object]] = {OURS: step_of(known[OURS], size, count, device)}
            left_out = "" if with_plain else "not asked for"
            if with_plain and kept_bytes(size, count) > MOST_BYTES:
                left_out = f"left out: some {kept_bytes(size, count) / 2**30:.0f} GiB"
            if not left_out:
                plain = step_of(known[PLAIN], size, count, device)
                start = time.perf_counter()
                plain()
                if time.perf_counter() - start > MOST_SECONDS:
                    left_out = f"left out: {time.perf_counter() - start:.0f} s"
                else:
                    steps[PLAIN] = plain
            seconds = seconds_of(steps, rounds, device)
            ours = statistics.median(seconds[OURS])
            row = [str(size), f"{count:,}", f"{ours * 1000:.1f} ms"]
            if PLAIN in steps:
                ratios = [other / one for one, other in zip(seconds[OURS], seconds[PLAIN], strict=True)]
                row.append(f"{statistics.median(ratios):.0f} ({min(ratios):.0f} to {max(ratios):.0f})")
            else:
                row.append(left_out)
            row += [f"{memory(size, count, name, device) / 2**20:.0f} MiB" if name in steps else "" for name in known]
            print("| " + " | ".join(row) + " |", flush=True)
