"""How a fit runs: typed options with the paper's values where it gives some."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from reconx_pl.errors import ConfigurationError
from reconx_pl.metrics.lpips import MIN_SIZE
from reconx_pl.splatting.confidence import ConfidenceMode
from reconx_pl.splatting.exposure import ExposureCompensation
from reconx_pl.splatting.initialise import InitialiseConfig
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.splatting.pose_refinement import PoseRefinement
from reconx_pl.splatting.robust_weights import RobustWeights


@dataclass(frozen=True)
class LearningRates:
    """Adam's learning rates. The paper is silent; these are 3DGS's, times 4 where 1,000 steps have to do.

    Args:
        means: times the extent of the cameras, world units; decays exponentially to ``means_final`` of it.
        means_final: share of the first rate that is left at the last step.
        quaternions, log_scales, opacity_logits, sh_base, sh_higher: of the unconstrained parameters.
    """

    means: float = 1.6e-3
    means_final: float = 0.01
    quaternions: float = 4e-3
    log_scales: float = 2e-2
    opacity_logits: float = 5e-2
    sh_base: float = 1e-2
    sh_higher: float = 5e-4

    def __post_init__(self) -> None:
        if any(rate < 0 for rate in vars(self).values()) or not 0 < self.means_final <= 1:
            raise ConfigurationError(f"learning rates must be >= 0 and means_final within (0, 1], got {self}")


@dataclass(frozen=True)
class FitConfig:
    """How a fit runs; the defaults are the paper's where it says something. ``docs/splatting.md`` explains them.

    Args:
        steps: of the optimiser.
        frames_per_step: frames a step.
        sh_degree: highest degree of the spherical harmonics, 0 to 3.
        sh_interval: share of the steps after which the degree rises by one (3DGS's every 1,000 steps would leave a
            1,000-step fit at degree 0).
        loss: factors of L1, SSIM and LPIPS; an LPIPS factor of 0 needs no weights.
        lpips_net: ``"vgg"``, or ``"alex"`` at a twelfth of the cost.
        lpips_every: compute LPIPS in every k-th step only.
        lpips_compensate: multiply its factor by k in those steps, which keeps the expected gradient. Off, because Adam
            then divides every other step by those spikes: with k = 4 a fit to inconsistent frames at 128 x 128 scored
            PSNR 30.3, LPIPS 0.209 on held-out views so, and 31.5, 0.161 without (k = 1: 31.0, 0.173).
        lpips_crop: pixels; compute LPIPS on a square of this side at a random place of each frame. None = all of it.
        lpips_memory: bytes; target features of all frames are kept if they fit, else computed in each step. With
            ``lpips_crop`` none are kept.
        confidence: how DUSt3R's confidence becomes weights, see ``normalise_confidence``.
        input_view_weight: how often a frame that is a photograph (``input_views`` of ``fit``) is drawn for each time
            that another frame is; 0 = never, 2.5 = five times for every two.
        rates: learning rates.
        poses: refines the poses of the frames that are not known; None keeps all poses.
        exposure: compensates brightness and tint of the frames that are not known; None takes them as they are.
        robust_weights: lets the pixels of frames that are not known count by their agreement with the scene so far,
            beside ``confidence``; None lets confidence alone decide.
        initialise: opacity and widths at the start; its ``sh_degree`` is replaced by the one above.
        background: colour behind the scene, in [0, 1].
        max_memory: GiB that the fit may take; more is refused before it starts, with the numbers. None = four fifths
            of what is free on the device (where the system does not tell, nothing is refused).
        seed: of the order of the frames and the places of the crops, where ``fit`` gets no generator.
    """

    steps: int = 1000
    frames_per_step: int = 1
    sh_degree: int = 3
    sh_interval: float = 0.25
    loss: LossWeights = field(default_factory=LossWeights)
    lpips_net: Literal["vgg", "alex"] = "vgg"
    lpips_every: int = 1
    lpips_compensate: bool = False
    lpips_crop: int | None = None
    lpips_memory: int = 2**30
    confidence: ConfidenceMode = "mean-log"
    input_view_weight: float = 1.0
    rates: LearningRates = field(default_factory=LearningRates)
    poses: PoseRefinement | None = None
    exposure: ExposureCompensation | None = None
    robust_weights: RobustWeights | None = None
    initialise: InitialiseConfig = field(default_factory=InitialiseConfig)
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    max_memory: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "frames_per_step", "lpips_every"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.sh_degree <= 3 or self.sh_interval <= 0:
            raise ConfigurationError(
                f"need sh_degree 0 to 3 and sh_interval > 0, got {self.sh_degree}, {self.sh_interval}"
            )
        if not 0 <= self.input_view_weight < float("inf") or self.lpips_memory < 0:
            raise ConfigurationError("input_view_weight and lpips_memory must be >= 0 and finite")
        if self.max_memory is not None and not self.max_memory > 0:
            raise ConfigurationError(f"max_memory must be a positive number of GiB, got {self.max_memory}")
        if self.lpips_crop is not None and self.lpips_crop < MIN_SIZE[self.lpips_net]:
            raise ConfigurationError(
                f"lpips_crop must be at least {MIN_SIZE[self.lpips_net]} pixels for LPIPS ({self.lpips_net}), "
                f"got {self.lpips_crop}"
            )
        if not all(0 <= value <= 1 for value in self.background):
            raise ConfigurationError(f"background must be a colour in [0, 1], got {self.background}")
