"""Renders of conditions: surfaces, points and the filling of holes, by numba and by plain torch, beside the U-Net.

``python -m benchmarks.condition_renders [SIZE ...] [--device cuda] [--rounds N]``: two views of SIZE x SIZE pixels with
depth are rendered into the frames between them, and so is the cloud of all their pixels. One thread. At last the
renders of a batch stand beside the rest of a training step of the demo.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.timing import seconds_of, table
from benchmarks.unet import SIZES, Case, built, step_of
from reconx_pl.data.procedural import procedural_clip
from reconx_pl.diffusion.render_sources import batch_renders
from reconx_pl.diffusion.weights.building import build_network
from reconx_pl.files.configs import read_config
from reconx_pl.geometry.cameras import unproject
from reconx_pl.geometry.rendering.fill import fill_holes
from reconx_pl.geometry.rendering.points import render_points
from reconx_pl.geometry.rendering.surface import render_surface
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.types import ClipBatch, PointCloud

FRAMES = 8
STEP = "the rest of a training step of the demo"
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RADIUS_PIXELS = 1.44  # what ViewCrafter's 0.01 is at its own size


def alternatives(size: int, device: str) -> dict[str, Callable[[], object]]:
    """Calls that render, or do one forward for, ``FRAMES`` frames each."""
    clip = procedural_clip(0, frames=FRAMES, size=(size, size), kind="room")
    assert clip.depth is not None
    ends = [0, FRAMES - 1]
    views = DepthViews(clip.images[ends], clip.depth, clip.cameras[ends]).to(device)
    cameras = clip.cameras.to(device)
    points = unproject(views.depth, views.cameras).view(-1, 3)
    cloud = PointCloud(points, views.images.permute(0, 2, 3, 1).reshape(-1, 3), torch.ones_like(points[:, 0]))
    seen = render_surface(views, cameras)
    radius = 2 * RADIUS_PIXELS / size
    found: dict[str, Callable[[], object]] = {}
    for backend in ("numba", "torch") if device == "cpu" else ("torch",):
        found[f"surface, {backend}"] = lambda by=backend: render_surface(views, cameras, backend=by)  # type: ignore[misc]
        found[f"points, {backend}"] = lambda by=backend: render_points(  # type: ignore[misc]
            cloud, cameras, radius=radius, backend=by
        )
    found["fill_holes"] = lambda: fill_holes(seen.color, seen.coverage)
    demo = replace(SIZES["demo"], batch=1)
    found[f"demo U-Net, a forward of {demo.frames} frames of 128 x 128"] = step_of(
        built(demo, device, False), demo, Case(), device
    )
    return found


def step_parts(device: str) -> dict[str, Callable[[], object]]:
    """A training step of the small network, 4 clips of 8 x 128 x 128, without making the renders; and that alone."""
    config = read_config(CONFIGS / "model" / "demo.yaml")
    network = build_network(config["model"]["network"], "configs/model/demo.yaml", device).train()
    assert network.render is not None
    count, size = 4, (128, 128)
    clips = [procedural_clip(seed, FRAMES, size, points=2048) for seed in range(count)]
    batch = ClipBatch(
        key=[clip.key for clip in clips],
        caption=[clip.caption for clip in clips],
        frames=torch.stack([clip.frames for clip in clips]).to(device),
        world_to_camera=torch.stack([clip.cameras.world_to_camera for clip in clips]).float().to(device),
        intrinsics=torch.stack([clip.cameras.intrinsics for clip in clips]).float().to(device),
        fps=torch.full((count,), 8.0, device=device),
        points=torch.stack([clip.cloud.points for clip in clips if clip.cloud is not None]).to(device),
        depth=torch.stack([clip.depth for clip in clips if clip.depth is not None]).to(device),
        confidence=torch.stack([clip.confidence for clip in clips if clip.confidence is not None]).to(device),
    )
    renders, render = batch_renders(batch, network.render), network.render

    def step() -> None:
        generator = torch.Generator(device).manual_seed(0)
        network.loss(ClipBatch(**batch, renders=renders), generator).loss.backward()
        network.zero_grad()

    return {STEP: step, "its renders": lambda: batch_renders(batch, render)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[256, 512])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(arguments)
    for size in options.sizes:
        calls = alternatives(size, options.device)
        seconds = seconds_of(calls, options.rounds, options.device)
        print(f"\n{size} x {size}, two views, {2 * size * size} points, {FRAMES} frames a call")
        table(seconds, next(iter(calls)))
        for name, values in seconds.items():
            print(f"{1000 * statistics.median(values) / FRAMES:8.2f} ms a frame   {name}")
    print("\nTraining, 4 clips of 8 x 128 x 128")
    table(seconds_of(step_parts(options.device), options.rounds, options.device), STEP)


if __name__ == "__main__":
    main()
