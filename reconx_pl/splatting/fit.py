"""Fit 3D Gaussians to frames: fixed number of steps, no densification, pruning or opacity reset (ReconX, section 4)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.splatting.confidence import ConfidenceMode, normalise_confidence
from reconx_pl.splatting.initialise import InitialiseConfig, gaussians_from_points
from reconx_pl.splatting.losses import LossWeights, TargetStatistics, confidence_loss
from reconx_pl.splatting.perceptual import LpipsDistance, TargetFeatures
from reconx_pl.splatting.renderer import Renderer, default_renderer
from reconx_pl.types import Cameras, Gaussians, PointCloud

_LOG = logging.getLogger(__name__)
Progress = Callable[[int, int, float], None]  # step done, steps in all, loss


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
    """How a fit runs; the defaults are the paper's where it says something.

    Args:
        steps: of the optimiser.
        frames_per_step: frames a step, drawn in shuffled order without repetition until all had their turn.
        sh_degree: highest degree of the spherical harmonics, 0 to 3.
        sh_interval: share of the steps after which the degree rises by one (3DGS's every 1,000 steps would leave a
            1,000-step fit at degree 0).
        loss: factors of L1, SSIM and LPIPS; an LPIPS factor of 0 needs no weights.
        lpips_net: ``"vgg"``, or ``"alex"`` at a twelfth of the cost.
        lpips_every: compute LPIPS in every k-th step only.
        lpips_compensate: multiply its factor by k in those steps, which keeps the expected gradient. Off, because Adam
            then divides every other step by those spikes: with k = 4 a fit to inconsistent frames at 128 x 128 scored
            PSNR 30.3, LPIPS 0.209 on held-out views so, and 31.5, 0.161 without (k = 1: 31.0, 0.173).
        lpips_memory: bytes; target features of all frames are kept if they fit, else computed in each step.
        confidence: how DUSt3R's confidence becomes weights, see ``normalise_confidence``.
        known_view_weight: times the weight of the frames that are photographs (``known_views`` of ``fit``).
        rates: learning rates.
        initialise: opacity and widths at the start; its ``sh_degree`` is replaced by the one above.
        background: colour behind the scene, in [0, 1].
        max_points: most Gaussians; more are refused with the memory that they would take.
        seed: of the order of the frames, where ``fit`` gets no generator.
    """

    steps: int = 1000
    frames_per_step: int = 1
    sh_degree: int = 3
    sh_interval: float = 0.25
    loss: LossWeights = field(default_factory=LossWeights)
    lpips_net: Literal["vgg", "alex"] = "vgg"
    lpips_every: int = 1
    lpips_compensate: bool = False
    lpips_memory: int = 2**30
    confidence: ConfidenceMode = "mean-log"
    known_view_weight: float = 1.0
    rates: LearningRates = field(default_factory=LearningRates)
    initialise: InitialiseConfig = field(default_factory=InitialiseConfig)
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    max_points: int = 1_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "frames_per_step", "lpips_every", "max_points"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.sh_degree <= 3 or self.sh_interval <= 0:
            raise ConfigurationError(
                f"need sh_degree 0 to 3 and sh_interval > 0, got {self.sh_degree}, {self.sh_interval}"
            )
        if self.known_view_weight < 0 or self.lpips_memory < 0:
            raise ConfigurationError("known_view_weight and lpips_memory must be >= 0")


@dataclass(frozen=True)
class FitResult:
    """The fitted scene and the loss of every step."""

    gaussians: Gaussians
    history: list[float]
    seconds: float

    @property
    def final_loss(self) -> float:
        """Mean loss of the last tenth of the steps (single steps see different frames)."""
        tail = self.history[-max(1, len(self.history) // 10) :]
        return sum(tail) / len(tail)


def fit(
    frames: Tensor | Sequence[Tensor],
    cameras: Cameras,
    confidence: Tensor | None,
    points: PointCloud,
    config: FitConfig | None = None,
    renderer: Renderer | None = None,
    perceptual: LpipsDistance | None = None,
    progress: Progress | None = None,
    generator: torch.Generator | None = None,
    known_views: Sequence[int] = (),
) -> FitResult:
    """Fit a scene to posed frames.

    Args:
        frames: [V, 3, H, W] in [0, 1]; their device is where the fit runs.
        cameras: of the frames.
        confidence: [V, H, W] as DUSt3R gives it (``normalise_confidence``); None = uniform.
        points: the cloud to start from, world units.
        config: see ``FitConfig``.
        renderer: None = ``default_renderer`` of the device.
        perceptual: the LPIPS network; None = made from ``config.lpips_net`` if the loss uses it.
        progress: called after every step of ten, and after the last.
        generator: CPU generator for the order of the frames; None = seeded with ``config.seed``.
        known_views: indices of frames that are photographs, see ``FitConfig.known_view_weight``.

    Raises:
        BadSceneError: frames of different sizes or not of the cameras' size, fewer than two different views, bad
            confidence (``normalise_confidence``) or points (``gaussians_from_points``), a loss that is not finite.
        ConfigurationError: more points than ``config.max_points``.
        MissingWeightsError: LPIPS is in the loss and its weights are not there.
    """
    config = config or FitConfig()
    started = time.monotonic()
    targets = _check_frames(frames, cameras)
    _check_memory(len(points), config)
    device, views = targets.device, len(targets)
    cameras = cameras.to(device, torch.float32)
    weights = _weights(targets, confidence, config, known_views)
    renderer = renderer or default_renderer(device)
    if config.loss.lpips > 0 and perceptual is None:
        perceptual = LpipsDistance(config.lpips_net)
    if perceptual is not None:
        perceptual = perceptual.to(device)
    generator = generator or torch.Generator().manual_seed(config.seed)

    scene = _Parameters(gaussians_from_points(points, cameras, _initial(config)), config)
    scene.to(device)
    extent = scene_extent(cameras, scene.means.detach())
    optimizer = scene.optimizer(config.rates, extent)
    statistics = TargetStatistics.of(targets)
    features = _target_features(targets, perceptual, config)
    rise = max(1, round(config.steps * config.sh_interval))
    singles = [cameras[view] for view in range(views)]

    losses: list[Tensor] = []
    order = _shuffled(views, config.frames_per_step, generator)
    for step in range(config.steps):
        chosen = next(order)
        optimizer.param_groups[0]["lr"] = (
            config.rates.means * extent * config.rates.means_final ** (step / config.steps)
        )
        gaussians = scene.gaussians(min(config.sh_degree, step // rise))
        picked = singles[chosen[0]] if len(chosen) == 1 else cameras[chosen]
        output = renderer.render(gaussians, picked)
        with_lpips = perceptual is not None and step % config.lpips_every == 0
        loss = confidence_loss(
            output.color,
            targets[chosen],
            weights[chosen],
            config.loss,
            perceptual=perceptual if with_lpips else None,
            perceptual_factor=float(config.lpips_every) if config.lpips_compensate else 1.0,
            statistics=statistics[chosen],
            features=None if features is None or not with_lpips else features[chosen],
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if step % 10 == 9 or step == config.steps - 1:
            value = float(losses[-1])
            if not math.isfinite(value):
                raise BadSceneError(
                    f"the fit's loss is {value} at step {step}; check the cameras and the learning rates"
                )
            if progress is not None:
                progress(step + 1, config.steps, value)
    seconds = time.monotonic() - started
    _LOG.info("fitted %d Gaussians to %d frames: %d steps in %.1f s", len(points), views, config.steps, seconds)
    return FitResult(scene.detached(), torch.stack(losses).tolist(), seconds)


def scene_extent(cameras: Cameras, means: Tensor) -> float:
    """World units that the learning rate of the means is measured in: 1.1 times the radius of the cameras (3DGS), but
    at least a tenth of the median distance of the points, since a clip's cameras may hardly move."""
    centers = cameras.centers
    middle = centers.mean(dim=0)
    radius = 1.1 * float((centers - middle).norm(dim=1).max())
    return max(radius, 0.1 * float((means - middle).norm(dim=1).median()))


def fit_memory(points: int, sh_degree: int) -> int:
    """Bytes that a fit holds for its Gaussians: parameters, gradients, Adam's two moments, and the renderer's rows."""
    parameters = 11 + 3 * (sh_degree + 1) ** 2
    return points * 4 * (6 * parameters + 120)


class _Parameters(nn.Module):
    """The optimised tensors. One tensor a degree, so that Adam leaves alone what is not yet in use."""

    def __init__(self, start: Gaussians, config: FitConfig) -> None:
        super().__init__()
        self.means = nn.Parameter(start.means)
        self.quaternions = nn.Parameter(start.quaternions)
        self.log_scales = nn.Parameter(start.log_scales)
        self.opacity_logits = nn.Parameter(start.opacity_logits)
        bands = start.sh.split([2 * degree + 1 for degree in range(config.sh_degree + 1)], dim=1)
        self.sh = nn.ParameterList(nn.Parameter(band.contiguous()) for band in bands)
        self.register_buffer("background", torch.tensor(config.background))

    def optimizer(self, rates: LearningRates, extent: float) -> torch.optim.Adam:
        groups = [
            {"params": [self.means], "lr": rates.means * extent},
            {"params": [self.quaternions], "lr": rates.quaternions},
            {"params": [self.log_scales], "lr": rates.log_scales},
            {"params": [self.opacity_logits], "lr": rates.opacity_logits},
            {"params": [self.sh[0]], "lr": rates.sh_base},
            {"params": list(self.sh)[1:], "lr": rates.sh_higher},
        ]
        return torch.optim.Adam([group for group in groups if group["params"]], eps=1e-15, fused=True)

    def gaussians(self, degree: int) -> Gaussians:
        bands = list(self.sh)[: degree + 1]
        return Gaussians(
            self.means,
            self.quaternions,
            self.log_scales,
            self.opacity_logits,
            bands[0] if degree == 0 else torch.cat(bands, dim=1),
            self.get_buffer("background"),
        )

    def detached(self) -> Gaussians:
        values = self.gaussians(len(self.sh) - 1)
        return Gaussians(**{name: tensor.detach().clone() for name, tensor in vars(values).items()})


def _initial(config: FitConfig) -> InitialiseConfig:
    start = config.initialise
    return InitialiseConfig(config.sh_degree, start.opacity, start.max_width, start.min_pixels)


def _check_frames(frames: Tensor | Sequence[Tensor], cameras: Cameras) -> Tensor:  # [V, 3, H, W]
    if not isinstance(frames, Tensor):
        sizes = sorted({tuple(frame.shape) for frame in frames})
        if len(sizes) > 1:
            raise BadSceneError(f"frames of different sizes {sizes}: resize and crop them to one size first")
        if not frames:
            raise BadSceneError("no frames to fit")
        frames = torch.stack(list(frames))
    expected = (len(cameras), 3, cameras.height, cameras.width)
    if tuple(frames.shape) != expected:
        raise BadSceneError(f"frames {tuple(frames.shape)} do not go with cameras for {expected} (V, 3, H, W)")
    if not frames.is_floating_point():
        raise BadSceneError(f"frames must be float in [0, 1], got {frames.dtype}; divide uint8 by 255")
    if not bool(torch.isfinite(frames).all()):
        raise BadSceneError("the frames have NaN or infinite pixels")
    poses = cameras.world_to_camera.reshape(len(cameras), -1)
    if len(cameras) < 2 or bool((poses - poses[:1]).abs().max() < 1e-8):
        raise BadSceneError(
            f"{len(cameras)} view(s) from one and the same pose have no parallax to fit a scene to; check the cameras"
        )
    return frames.detach().float()


def _check_memory(count: int, config: FitConfig) -> None:
    if count > config.max_points:
        need = fit_memory(count, config.sh_degree) / 2**30
        raise ConfigurationError(
            f"a fit of {count} points with sh_degree {config.sh_degree} needs about {need:.1f} GiB, and max_points is "
            f"{config.max_points}: take a prefix of the cloud (points[:{config.max_points}]), or raise max_points"
        )


def _weights(targets: Tensor, confidence: Tensor | None, config: FitConfig, known: Sequence[int]) -> Tensor:
    views, _, height, width = targets.shape
    if confidence is None:
        weights = targets.new_ones(views, height, width)
    elif tuple(confidence.shape) != (views, height, width):
        raise BadSceneError(f"confidence {tuple(confidence.shape)} does not go with frames {tuple(targets.shape)}")
    else:
        weights = normalise_confidence(confidence.to(targets), config.confidence).clone()
    if any(not -views <= view < views for view in known):
        raise ConfigurationError(f"known_views {list(known)} are not all among the {views} frames")
    for view in {view % views for view in known}:
        weights[view] *= config.known_view_weight
    return weights


def _target_features(targets: Tensor, perceptual: LpipsDistance | None, config: FitConfig) -> TargetFeatures | None:
    """Features of all targets, or None if there is no LPIPS or they do not fit into the memory allowed."""
    if perceptual is None:
        return None
    first = perceptual.features(targets[:1])
    if first.bytes * len(targets) > config.lpips_memory:
        _LOG.info("LPIPS features of %d targets exceed lpips_memory; computing them in each step", len(targets))
        return None
    rest = [perceptual.features(targets[view : view + 1]) for view in range(1, len(targets))]
    layers = zip(*(part.layers for part in (first, *rest)), strict=True)
    return TargetFeatures(tuple(torch.cat(layer) for layer in layers), first.height, first.width)


def _shuffled(views: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Endless batches of frame indices, every frame once before any comes again."""
    waiting: list[int] = []
    while True:
        while len(waiting) < min(size, views):
            waiting += torch.randperm(views, generator=generator).tolist()
        batch, waiting = waiting[: min(size, views)], waiting[min(size, views) :]
        yield batch
