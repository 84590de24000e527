"""How a fit converges on views it never saw: our learning rates beside those of gsplat's example trainer.

Held-out views are rendered every ``EVERY`` steps by a renderer that looks on, so that one run gives the whole curve.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from reconx_pl.data.formats.readers import UnreadableScene, read_scenes
from reconx_pl.data.packing.clip_sampling import scene_clip
from reconx_pl.data.procedural import procedural_clip, procedural_views
from reconx_pl.errors import BadSceneError
from reconx_pl.metrics.image import psnr
from reconx_pl.splatting.fit import FitConfig, LearningRates, fit
from reconx_pl.splatting.initialise import InitialiseConfig
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.splatting.renderers.base import Renderer, RenderOutput
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.types import Cameras, Gaussians, PointCloud

EVERY = 25  # steps between two looks at the held-out views
HELD_OUT = 7  # of a photographed scene: every seventh view, from the fourth on
WITHIN = 0.2  # dB of the final value

OURS = FitConfig(loss=LossWeights(lpips=0.0))
# gsplat 1.5.3, examples/simple_trainer.py, default strategy: 1.6e-4 of the extent for means, falling to a hundredth;
# opacities start at 0.1, the degree rises every 1,000 steps. Densification is left out, as in ReconX.
GSPLAT = replace(
    OURS,
    sh_interval=1.0,
    rates=LearningRates(1.6e-4, 0.01, 1e-3, 5e-3, 5e-2, 2.5e-3, 2.5e-3 / 20),
    initialise=InitialiseConfig(opacity=0.1),
)
PRESETS = {"ours": OURS, "gsplat's": GSPLAT}


@dataclass(frozen=True)
class Scene:
    """What is fitted and what is looked at."""

    name: str
    frames: Tensor  # [V, 3, H, W]
    cameras: Cameras
    points: PointCloud
    truth: Tensor  # [U, 3, H, W]
    held_out: Cameras  # U views


def procedural_room(size: int, points: int = 10_000) -> Scene:
    """A room seen by 8 frames, and the 7 views half-way between them."""
    seed, extent = 2_000_002, (size, size)
    clip = procedural_clip(seed, frames=8, size=extent, kind="room", points=points)
    truth, _, cameras = procedural_views(seed, [(index + 0.5) / 7 for index in range(7)], extent, "room")
    assert clip.cloud is not None
    return Scene("procedural room", clip.images, clip.cameras, clip.cloud, truth.float() / 255, cameras)


def photographed(folder: Path, size: int, points: int = 10_000) -> Scene:
    """A folder of posed photographs that brings points; every seventh view is held out."""
    raw = next(read_scenes(folder))
    if isinstance(raw, UnreadableScene) or raw.cloud is None:
        raise BadSceneError(f"{folder}: {raw.reason if isinstance(raw, UnreadableScene) else 'no points come with it'}")
    clip = scene_clip(raw, range(len(raw)), size, size)
    held = list(range(3, len(raw), HELD_OUT))
    kept = [view for view in range(len(raw)) if view not in held]
    images, cameras = clip.images, clip.cameras.to(dtype=torch.float32)
    return Scene(folder.name, images[kept], cameras[kept], raw.cloud[:points], images[held], cameras[held])


class Onlooker:
    """A renderer that scores the held-out views at every ``EVERY``-th call, beside the clock."""

    def __init__(self, inner: Renderer, scene: Scene, device: str) -> None:
        self.inner = inner
        self.cameras, self.truth = scene.held_out.to(device), scene.truth.to(device)
        self.steps = 0
        self.curve: list[tuple[int, float]] = []
        self.seconds = 0.0  # that scoring took
        self.clock = time.process_time if device == "cpu" else time.perf_counter

    def render(
        self, gaussians: Gaussians, cameras: Cameras, sh_degree: int | None = None, background: Tensor | None = None
    ) -> RenderOutput:
        if self.steps % EVERY == 0:
            self.look(gaussians)
        self.steps += 1
        return self.inner.render(gaussians, cameras, sh_degree, background)

    def look(self, gaussians: Gaussians) -> None:
        start = self.clock()
        with torch.no_grad():
            score = float(psnr(self.inner.render(gaussians, self.cameras).color.clamp(0, 1), self.truth).mean())
        self.curve.append((self.steps, score))
        self.seconds += self.clock() - start


def convergence(scene: Scene, config: FitConfig, device: str) -> tuple[list[tuple[int, float]], float]:
    """Curve of (step, PSNR), and the seconds of the fit without scoring: of the processor, or by the clock on CUDA."""
    onlooker = Onlooker(default_renderer(device), scene, device)
    start = onlooker.clock()
    result = fit(scene.frames.to(device), scene.cameras, None, scene.points, config, renderer=onlooker)
    seconds = onlooker.clock() - start - onlooker.seconds
    onlooker.look(result.gaussians)
    return onlooker.curve, seconds


def steps_within(curve: list[tuple[int, float]], margin: float = WITHIN) -> int:
    """The step from which on the score stays within ``margin`` of its final value or above."""
    late = [step for step, score in curve if score < curve[-1][1] - margin]
    return min(step for step, _ in curve if not late or step > late[-1])


def thousand(device: str) -> None:
    """Print the time of 1,000 steps: on the CPU at 128 x 128 with 10,000 Gaussians, on CUDA at 512 x 512, 32 frames."""
    size, frames, points = (128, 8, 10_000) if device == "cpu" else (512, 32, 60_000)
    clip = procedural_clip(2_000_002, frames=frames, size=(size, size), kind="room", points=points)
    assert clip.cloud is not None
    cases = {"L1 + SSIM": OURS}
    if device == "cpu":
        cases |= {
            "and LPIPS, AlexNet, every 4th step": replace(OURS, loss=LossWeights(), lpips_net="alex", lpips_every=4),
            "and LPIPS, VGG, every 8th step": replace(OURS, loss=LossWeights(), lpips_every=8),
        }
    else:
        cases["and LPIPS, VGG, every step"] = replace(OURS, loss=LossWeights())
    where = f"{torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name()
    print(f"1,000 steps, {size} x {size}, {frames} frames, {points:,} Gaussians, {where}")
    print("| loss | s by the clock | processor-seconds |\n|---|---|---|")
    warm = replace(OURS, steps=2)
    fit(clip.images.to(device), clip.cameras, None, clip.cloud, warm)  # compiles what is compiled once
    for name, config in cases.items():
        processor = time.process_time()
        result = fit(clip.images.to(device), clip.cameras, None, clip.cloud, config)
        print(f"| {name} | {result.seconds:.1f} | {time.process_time() - processor:.1f} |", flush=True)


def main(folders: list[Path], sizes: list[int], device: str = "cpu", steps: int = 1000) -> None:
    """Print a row for each scene, size and set of learning rates."""
    makers: list[Callable[[int], Scene]] = [procedural_room]
    makers += [partial(photographed, folder) for folder in folders]
    marks = [mark for mark in (100, 200, 400, 700, 1000, 2000, 4000) if mark <= steps]
    print("| scene | Gaussians | size | rates | " + " | ".join(map(str, marks)) + " | within 0.2 dB at | s |")
    print("|" + "---|" * (6 + len(marks)))
    for maker in makers:
        for size in sizes:
            scene = maker(size)
            for name in PRESETS:
                config = replace(PRESETS[name], steps=steps)
                if name != "ours":
                    config = replace(config, sh_interval=1000 / steps)
                curve, seconds = convergence(scene, config, device)
                known = dict(curve)
                scores = " | ".join(f"{known[mark]:.2f}" for mark in marks)
                print(
                    f"| {scene.name} | {len(scene.points):,} | {size} | {name} | {scores} | {steps_within(curve)} "
                    f"| {seconds:.0f} |",
                    flush=True,
                )
