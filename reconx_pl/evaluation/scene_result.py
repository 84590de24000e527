"""What an evaluation of a scene yields, and how its time is measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reconx_pl.evaluation.coverage import Coverage
from reconx_pl.evaluation.task import SceneTask
from reconx_pl.reconstruction.scene_builder import FitInput
from reconx_pl.types import Gaussians

Scores = dict[str, dict[str, Tensor]]  # method -> metric -> [targets] float64


@dataclass
class SceneResult:
    """Scores and products of one scene. Tensors are on the CPU.

    Attributes:
        task: what was evaluated; its ``targets`` are the scored places of its ``views``.
        given: all frames of the fit in their order, as they were fitted.
        rendered: [M, 3, H, W], the fitted scene at the cameras of ``task.views``.
        final_loss: of the fit, mean of its last tenth.
        scores: on the targets; for "ceiling" on ``ceiling_targets``.
        held_out_scores: on the held-out views, if there were any ("generated" has none: nothing is generated there).
        ceiling_targets: frames that the ceiling is scored on.
        coverage: what the input views have seen of ``task.views``; None where it was not asked for.
        part_scores: as ``scores``, of "covered" and of "uncovered" pixels; a part too small to tell is not there, and
            NaN in a single view where it is too small.
        left_out: method -> why it was not scored here although it was asked for.
        filled: [*, 3, H, W], the filled renders: of the frames of a clip, else of the targets; None without them.
        holes: of every target the share of pixels that "filled_render", or "depth_warp", had to fill.
        moved: of every target by how many degrees, and world units, "reconx_refined" moved its camera.
        seconds: wall clock of each stage.
    """

    task: SceneTask
    given: FitInput
    rendered: Tensor
    gaussians: Gaussians
    final_loss: float
    scores: Scores = field(default_factory=dict)
    held_out_scores: Scores = field(default_factory=dict)
    ceiling_targets: list[int] = field(default_factory=list)
    coverage: Coverage | None = None
    part_scores: dict[str, Scores] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    filled: Tensor | None = None
    holes: list[float] = field(default_factory=list)
    moved: list[tuple[float, float]] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def targets(self) -> list[int]:
        return self.task.targets


@contextmanager
def stopwatch(seconds: dict[str, float], stage: str, device: torch.device) -> Iterator[None]:
    """Add the wall clock of the block to ``seconds[stage]``, device work included."""
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


# What the stages of a scene are for; the time of a stage that is not here counts as "other".
PARTS = {
    "load": "reading",
    "geometry": "geometry",
    "alignment": "geometry",
    "confidence": "geometry",
    "generate": "generation",
    "fit": "fit",
    "render": "metrics",
    "score": "metrics",
    "two views": "baselines",
    "contexts": "baselines",
    "warp": "baselines",
    "filled render": "baselines",
    "coverage": "metrics",
    "ceiling": "baselines",
    "refine": "baselines",
    "media": "media",
}
