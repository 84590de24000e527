"""What can be set in an alignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.types import Cameras

Weighting = Literal["log", "raw"]
Distances = Literal["auto", "world", "pair"]


@dataclass(frozen=True)
class AlignmentOptions:
    """How the objective is weighted and minimised.

    Args:
        steps: of Adam (betas 0.9, 0.9), at most; 0 keeps the initialisation.
        learning_rate: at the start of the cosine schedule, after the warm-up.
        final_learning_rate: at its end.
        warmup: steps over which the rate rises (ours; the original has none, and its loss nearly doubles at first).
        tolerance: stop early, once the mean loss of ``window`` steps has not been below that of the window before by
            this fraction, and the cameras are ``still``; None never does. What is left of the schedule is then run
            through in ``settle`` steps, after the parameters have moved on by what is left out.
        still: the cameras have arrived when what is left out would turn, shift and zoom them by less than this share of
            the median angle between a camera and what the pairs say of it. The loss is flat long before.
        window: steps between two looks at the loss; each look waits for the device.
        settle: steps of the end of the schedule after an early stop.
        weighting: of a pixel's distance by its confidence C. "log": log C, as DUSt3R's code does. "raw": C, as the
            papers write it.
        distances: "world": as in the papers, the distance of world points. "pair": in the unit of the pair that says
            them, times ``pair_scale``. Where known cameras set the unit, noise makes the first draw all points towards
            the cameras, since a smaller scene has smaller distances; "auto" is then "pair", and otherwise "world".
        pair_scale: geometric mean of the pairs' scales, which fixes the unit of the world where no known cameras do.

    Raises:
        ConfigurationError: numbers out of range.
    """

    steps: int = 300
    learning_rate: float = 0.01
    final_learning_rate: float = 1e-6
    warmup: int = 20
    tolerance: float | None = None
    still: float = 0.15
    window: int = 10
    settle: int = 30
    weighting: Weighting = "log"
    distances: Distances = "auto"
    pair_scale: float = 0.5

    def __post_init__(self) -> None:
        if self.steps < 0 or self.warmup < 0 or self.window < 1 or self.settle < 1:
            raise ConfigurationError(
                f"steps and warmup must not be negative, window and settle be at least 1, got steps {self.steps}, "
                f"warmup {self.warmup}, window {self.window}, settle {self.settle}"
            )
        if not 0 < self.final_learning_rate <= self.learning_rate:
            raise ConfigurationError(
                f"the rate falls from learning_rate {self.learning_rate:g} to final_learning_rate "
                f"{self.final_learning_rate:g}: both must be positive, and the second not larger"
            )
        if self.pair_scale <= 0 or (self.tolerance is not None and self.tolerance < 0):
            raise ConfigurationError(
                f"pair_scale must be positive and tolerance not negative, got {self.pair_scale} and {self.tolerance}"
            )
        if self.still < 0:
            raise ConfigurationError(f"still must not be negative, got {self.still}")
        if self.weighting not in ("log", "raw"):
            raise ConfigurationError(f"weighting is 'log' or 'raw', not {self.weighting!r}")
        if self.distances not in ("auto", "world", "pair"):
            raise ConfigurationError(f"distances is 'auto', 'world' or 'pair', not {self.distances!r}")


@dataclass(frozen=True)
class FixedViews:
    """Cameras that are known beforehand; the alignment holds them exactly, and the world is theirs.

    Args:
        world_to_camera: [V, 4, 4]; rows of views without a known pose are not read.
        intrinsics: [V, 3, 3] pixels of the images that were paired, this package's convention; rows of views without
            known intrinsics are not read.
        poses: [V] bool, which poses are known.
        lenses: [V] bool, which intrinsics are known.

    Raises:
        ConfigurationError: shapes that do not go together.
    """

    world_to_camera: Tensor  # [V, 4, 4]
    intrinsics: Tensor  # [V, 3, 3]
    poses: Tensor  # [V] bool
    lenses: Tensor  # [V] bool

    def __post_init__(self) -> None:
        views = len(self.poses)
        shapes = tuple(self.world_to_camera.shape), tuple(self.intrinsics.shape), tuple(self.lenses.shape)
        if shapes != ((views, 4, 4), (views, 3, 3), (views,)):
            raise ConfigurationError(f"known views of {views} poses have shapes {shapes}")
        if self.poses.dtype != torch.bool or self.lenses.dtype != torch.bool:
            raise ConfigurationError("poses and lenses say for every view whether it is known: bool tensors")

    def cpu(self) -> FixedViews:
        return FixedViews(self.world_to_camera.cpu(), self.intrinsics.cpu(), self.poses.cpu(), self.lenses.cpu())

    @classmethod
    def none(cls, views: int) -> FixedViews:
        unknown = torch.zeros(views, dtype=torch.bool)
        return cls(torch.eye(4).repeat(views, 1, 1), torch.eye(3).repeat(views, 1, 1), unknown, unknown)

    @classmethod
    def of(cls, cameras: Cameras, poses: Tensor | None = None, lenses: Tensor | None = None) -> FixedViews:
        """Known from ``cameras``: everything, or what the masks [V] say."""
        fixed = torch.ones(len(cameras), dtype=torch.bool)
        return cls(
            cameras.world_to_camera,
            cameras.intrinsics,
            fixed if poses is None else poses,
            fixed if lenses is None else lenses,
        )
