"""Renders of conditions: surfaces, points and the filling of holes, by numba and by plain torch, beside the U-Net.

``python -m benchmarks.condition_renders [SIZE ...] [--device cuda] [--rounds N]``: two views of SIZE x SIZE pixels with
depth are rendered into the frames between them, and so is the cloud of all their pixels. One thread.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.timing import seconds_of, table
from benchmarks.unet import SIZES, Case, built, step_of
from reconx_pl.data.procedural import procedural_clip
from reconx_pl.geometry.cameras import unproject
from reconx_pl.geometry.rendering.fill import fill_holes
from reconx_pl.geometry.rendering.points import render_points
from reconx_pl.geometry.rendering.surface import render_surface
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.types import PointCloud

FRAMES = 8
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


if __name__ == "__main__":
    main()
