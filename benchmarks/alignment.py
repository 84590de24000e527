"""Global alignment of 4 views (12 directed pairs of 128 x 96 pixels), beside a plain variant that loops over the edges.

``python -m benchmarks.alignment [--views N] [--height H] [--width W] [--device cuda] [--rounds N]``. The pairs are made
up: a bent surface seen by cameras side by side, every pair in a unit of its own, with noise that falls as the
confidence grows. Plain: one residual an edge and a side, gradients by autograd, the loss read in each step. Both take
the same steps.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import peak_bytes, seconds_of, table
from reconx_pl.geometry.alignment.align import align, opened
from reconx_pl.geometry.alignment.initialisation import Start, initialise
from reconx_pl.geometry.alignment.minimise import learning_rate, minimise
from reconx_pl.geometry.alignment.observations import grouped
from reconx_pl.geometry.alignment.options import AlignmentOptions, FixedViews
from reconx_pl.geometry.alignment.pixels import centred_pixels, default_intrinsics
from reconx_pl.geometry.alignment.state import AlignmentState, Gauge, geometry_of, matrices
from reconx_pl.geometry.estimators.pair_predictions import PairPredictions
from reconx_pl.geometry.estimators.pairs import PairGraph
from reconx_pl.geometry.procrustes import Similarity
from reconx_pl.types import Cameras

STEPS = 100


def made_up_pairs(views: int, height: int, width: int) -> tuple[PairPredictions, Cameras]:
    """A complete graph; noise of 5 % of the depth where the confidence is 2; and the true cameras."""
    generator = torch.Generator().manual_seed(0)
    pixels = centred_pixels(height, width)
    world, poses, lenses = [], [], []
    near = min(1.0, 3 / (views - 1))  # more than four share the way of four
    for view in range(views):
        turn = matrices(torch.tensor([0.02 * near * view, 0.05 * (near * view - 1), 0.01, 1.0]))
        center = torch.tensor([0.4 * near * (view - (views - 1) / 2), 0.1 * near * (-1) ** view, 0.05 * near * view])
        focal = width * (0.85 + 0.2 * float(torch.rand((), generator=generator)))
        rays = torch.cat([(pixels / focal).float(), torch.ones(1, height * width)]).T @ turn.T
        depth = (4 - center[2]) / rays[:, 2]
        for _ in range(30):  # to where the ray meets z = 4 + 0.8 sin(2 x) cos(3 y)
            x, y, _z = (center + rays * depth[:, None]).unbind(1)
            depth = 0.5 * depth + 0.5 * (4 + 0.8 * torch.sin(2 * x) * torch.cos(3 * y) - center[2]) / rays[:, 2]
        world.append(center + rays * depth[:, None])
        poses.append((turn, center))
        lenses.append(default_intrinsics(torch.tensor(focal), height, width))
    edges = PairGraph().edges(views)
    points, confidence = [], []
    for pair in edges.tolist():
        turn, center = poses[pair[0]]
        scale = 0.15 + 0.35 * float(torch.rand((), generator=generator))
        sure = [1 + torch.exp(1.5 + torch.randn(height * width, generator=generator)) for _ in pair]
        both = []
        for view, one in zip(pair, sure, strict=True):
            inside = (world[view] - center) @ turn
            noise = torch.randn(height * width, 3, generator=generator) * (0.05 / (one - 1))[:, None]
            both.append((scale * (inside + noise * inside[:, 2:])).view(height, width, 3))
        points.append((both[0], both[1]))
        confidence.append((sure[0].view(height, width), sure[1].view(height, width)))
    world_to_camera = torch.eye(4).repeat(views, 1, 1)
    for view, (turn, center) in enumerate(poses):
        world_to_camera[view, :3, :3], world_to_camera[view, :3, 3] = turn.T, -turn.T @ center
    return PairPredictions(edges, points, confidence), Cameras(world_to_camera, torch.stack(lenses), height, width)


def unstarted(views: int, pixels: int) -> Start:
    """A start that says nothing and costs nothing, where only memory is looked at."""
    edges = views * (views - 1)
    eye = torch.eye(3, dtype=torch.float64)
    one = torch.ones(edges, dtype=torch.float64)
    return Start(
        torch.eye(4, dtype=torch.float64).repeat(views, 1, 1),
        100 * torch.ones(views, dtype=torch.float64),
        [torch.ones(pixels, dtype=torch.float64)] * views,
        Similarity(one, eye.repeat(edges, 1, 1), torch.ones(edges, 3, dtype=torch.float64)),
    )


class Setting:
    """Everything up to the first step."""

    def __init__(self, views: int, height: int, width: int, device: str, started: bool = True) -> None:
        self.predictions, _ = made_up_pairs(views, height, width)
        self.pixels = [centred_pixels(height, width)] * views
        fixed = FixedViews.none(views)
        self.options = AlignmentOptions(steps=STEPS)
        start = initialise(self.predictions, self.pixels, fixed) if started else unstarted(views, height * width)
        self.groups = grouped(self.predictions, self.pixels, device=device)
        origin, unit = start.camera_to_world[0, :3, 3], float(start.pairs.scale.log().mean().exp()) / 0.5
        self.start, self.gauge = opened(start, self.groups, fixed, origin, unit, self.options)

    def ours(self) -> Tensor:
        return minimise(copy.deepcopy(self.start), self.gauge, self.groups, self.options)

    def plain(self) -> Tensor:
        state = copy.deepcopy(self.start)
        device = state.pair_quaternion.device
        flat = [
            [(p.flatten(0, 1).to(device), c.flatten().log().to(device)) for p, c in zip(points, sure, strict=True)]
            for points, sure in zip(self.predictions.points, self.predictions.confidence, strict=True)
        ]
        rays = [one.T.float().to(device) for one in self.pixels]
        adam = torch.optim.Adam(state.parameters(), betas=(0.9, 0.9))
        losses = []
        for step in range(STEPS):
            adam.param_groups[0]["lr"] = learning_rate(step, step, self.options)
            adam.zero_grad()
            loss = plain_objective(state, self.gauge, self.predictions.edges, flat, rays)
            loss.backward()
            adam.step()
            losses.append(loss.item())
        with torch.no_grad():
            losses.append(float(plain_objective(state, self.gauge, self.predictions.edges, flat, rays)))
        return torch.tensor(losses)


def plain_objective(
    state: AlignmentState, gauge: Gauge, edges: Tensor, flat: list[list[tuple[Tensor, Tensor]]], rays: list[Tensor]
) -> Tensor:
    """The formula as it is written, in world coordinates."""
    geometry = geometry_of(state, gauge)
    world = []
    for view, log_depth in enumerate(state.log_depth[0]):
        depth = log_depth.exp()[:, None]
        inside = torch.cat([rays[view] / geometry.focal[view] * depth, depth], 1)
        world.append(inside @ geometry.rotation[view].T + geometry.translation[view])
    total = torch.zeros((), device=state.view_focal.device)
    for edge, pair in enumerate(edges.tolist()):
        for view, (points, weight) in zip(pair, flat[edge], strict=True):
            moved = points @ geometry.pair_matrix[edge].T + geometry.pair_offset[edge]
            total = total + (weight * (world[view] - moved).norm(dim=1)).sum()
    return total / (len(edges) * len(rays[0]))


def measure(views: int, height: int, width: int, device: str, rounds: int) -> None:
    setting = Setting(views, height, width, device)
    print(f"{views} views, {len(setting.predictions.edges)} edges, {width} x {height} pixels, {device}, {STEPS} steps")
    ours, plain = setting.ours(), setting.plain()
    print(f"loss {ours[0]:.6f} at first; after {STEPS} steps ours {ours[-1]:.6f}, plain {plain[-1]:.6f}")
    seconds = seconds_of({"plain": setting.plain, "ours": setting.ours}, rounds, device)
    table(seconds, "plain")
    for name, values in seconds.items():
        print(f"{statistics.median(values) / STEPS * 1000:8.2f} ms an iteration   {name}")

    def whole(**options: float) -> Callable[[], object]:
        return lambda: align(setting.predictions, AlignmentOptions(**options), device=device)  # type: ignore[arg-type]

    found = {
        "align: the start alone": whole(steps=0),
        f"align, {STEPS} steps": whole(steps=STEPS),
        "align, 300 steps (the default)": whole(),
        "align, tolerance 1e-3": whole(tolerance=1e-3),
    }
    table(seconds_of(found, max(1, rounds // 2), device), f"align, {STEPS} steps")
    for name, call in found.items():
        losses = call().losses  # type: ignore[attr-defined]
        print(f"loss {losses[-1]:.6f} after {len(losses) - 1} steps   {name}")
    for kind in ("ours", "plain"):
        command = [sys.executable, "-m", "benchmarks.alignment", "--device", device, "--memory-of", kind]
        command += ["--views", str(views), "--height", str(height), "--width", str(width)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        before, after = json.loads(lines[-1])
        print(f"{(after - before) / 2**20:6.1f} MiB at the peak of {STEPS} steps, beside pairs and parameters   {kind}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alignment")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", choices=["ours", "plain"], help="print the peak memory and end")
    options = parser.parse_args(arguments if arguments is not None else [])
    torch.set_num_threads(1)
    if not options.memory_of:
        measure(options.views, options.height, options.width, options.device, options.rounds)
        return
    setting = Setting(options.views, options.height, options.width, options.device, started=False)
    Setting(2, 16, 16, options.device, started=False).ours()  # what is imported at the first step is not the step's
    before = peak_bytes(options.device)
    setting.ours() if options.memory_of == "ours" else setting.plain()
    print(json.dumps([before, peak_bytes(options.device)]))


if __name__ == "__main__":
    main(sys.argv[1:])
