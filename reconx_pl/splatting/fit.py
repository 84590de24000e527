"""Fit 3D Gaussians to frames: fixed number of steps, no densification, pruning or opacity reset (ReconX, V-A)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError, MissingWeightsError
from reconx_pl.metrics.lpips import LpipsDistance, TargetFeatures
from reconx_pl.splatting.confidence import normalise_confidence
from reconx_pl.splatting.exposure import Exposures
from reconx_pl.splatting.fit_config import FitConfig, LearningRates
from reconx_pl.splatting.fit_memory import check_memory, fit_memory
from reconx_pl.splatting.fit_parameters import FitOptimizer, SceneParameters, scene_extent
from reconx_pl.splatting.frame_sampling import sample_frames
from reconx_pl.splatting.initialise import gaussians_from_points
from reconx_pl.splatting.losses import Crop, TargetStatistics, confidence_loss, ssim_map
from reconx_pl.splatting.pose_refinement import RefinedPoses, pose_changes
from reconx_pl.splatting.renderers.base import Renderer
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.types import Cameras, Gaussians, PointCloud, Progress

__all__ = ["FitConfig", "FitResult", "LearningRates", "fit", "fit_memory", "scene_extent"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """The fitted scene, what was fitted beside it, and the loss of every step.

    Attributes:
        gaussians: the scene.
        cameras: of the frames; refined where ``FitConfig.poses`` asks for it, else the given ones.
        exposure: [V, 3, 4] colour transform [A | b] of each frame; None without ``FitConfig.exposure``.
        history: loss of every step.
        seconds: wall clock.
    """

    gaussians: Gaussians
    cameras: Cameras
    exposure: Tensor | None
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
    input_views: Sequence[int] = (),
) -> FitResult:
    """Fit a scene to posed frames: photographs, the frames generated between them, or a whole posed scene.

    Args:
        frames: [V, 3, H, W] in [0, 1]; their device is where the fit runs.
        cameras: of the frames.
        confidence: [V, H, W] as DUSt3R gives it (``normalise_confidence``); None = uniform.
        points: the cloud to start from, world units.
        config: see ``FitConfig``.
        renderer: None = ``default_renderer`` of the device.
        perceptual: the LPIPS network; None = made from ``config.lpips_net`` if the loss uses it.
        progress: called with the loss after every tenth step, and after the last.
        generator: CPU generator for the order of the frames and the places of crops; None = seeded with
            ``config.seed``.
        input_views: indices of frames that are photographs: ``FitConfig.input_view_weight`` says how often they are
            drawn; they keep their poses and are the reference of exposure.

    Raises:
        BadSceneError: frames of different sizes or not of the cameras' size, no views, several from one pose, bad
            confidence (``normalise_confidence``) or points (``gaussians_from_points``), a loss that is not finite.
        ConfigurationError: more memory than there is (``check_memory``), poses to refine and no known view, known views
            that are not among the frames, no frame that would ever be drawn.
        MissingWeightsError: LPIPS is in the loss and its weights are not there.
    """
    config = config or FitConfig()
    started = time.monotonic()
    targets = _check_frames(frames, cameras)
    device, (views, _, height, width) = targets.device, targets.shape
    check_memory(len(points), views, height, width, config, device)
    cameras = cameras.to(device, torch.float32)
    weights = _weights(targets, confidence, config)
    inputs = _inputs(input_views, views)
    generator = generator or torch.Generator().manual_seed(config.seed)
    frequencies = [config.input_view_weight if view in inputs else 1.0 for view in range(views)]
    order = sample_frames(frequencies, config.frames_per_step, generator)
    start = gaussians_from_points(points, cameras, replace(config.initialise, sh_degree=config.sh_degree))
    poses = None if config.poses is None else RefinedPoses(cameras, inputs, start.means, config.poses)
    exposures = None if config.exposure is None else Exposures(views, inputs, config.exposure).to(device)
    renderer = renderer or default_renderer(device)
    perceptual = (perceptual or LpipsDistance(config.lpips_net)).to(device) if config.loss.lpips > 0 else None

    scene = SceneParameters(start, config).to(device)
    extent = scene_extent(cameras, scene.means.detach())
    optimizer = FitOptimizer(scene, config, extent, poses, exposures)
    statistics = TargetStatistics.of(targets)
    features = _target_features(targets, perceptual, config)
    rise = max(1, round(config.steps * config.sh_interval))

    def picture_of(gaussians: Gaussians, chosen: list[int]) -> Tensor:  # [len(chosen), 3, H, W]
        color = renderer.render(gaussians, cameras[chosen] if poses is None else poses.pick(chosen)).color
        return color if exposures is None else exposures.apply_to(color, chosen)

    losses: list[Tensor] = []
    counting = weights
    for step in range(config.steps):
        chosen = next(order)
        gaussians = scene.gaussians(min(config.sh_degree, step // rise))
        if config.robust_weights is not None and config.robust_weights.due(step, config.steps):
            with torch.no_grad():
                similarity = [
                    ssim_map(picture_of(gaussians, [view]).clamp(0.0, 1.0), targets[[view]], statistics[[view]])
                    for view in range(views)
                ]
                counting = weights * config.robust_weights.factors(torch.cat(similarity), sorted(inputs))
        picture = picture_of(gaussians, chosen)
        with_lpips = perceptual is not None and step % config.lpips_every == 0
        crop = Crop.random(config.lpips_crop, height, width, generator) if with_lpips and config.lpips_crop else None
        loss = confidence_loss(
            picture,
            targets[chosen],
            counting[chosen],
            config.loss,
            perceptual=perceptual if with_lpips else None,
            perceptual_factor=float(config.lpips_every) if config.lpips_compensate else 1.0,
            perceptual_crop=crop,
            statistics=statistics[chosen],
            features=None if features is None or not with_lpips else features[chosen],
        )
        optimizer.step(loss, step)
        losses.append(loss.detach())
        if step % 10 == 9 or step == config.steps - 1:
            value = float(losses[-1])
            if not math.isfinite(value):
                raise BadSceneError(
                    f"the fit's loss is {value} at step {step}; check the cameras and the learning rates"
                )
            if progress is not None:
                progress(f"fit, loss {value:.3f}", step + 1, config.steps)
    seconds = time.monotonic() - started
    _LOG.info("fitted %d Gaussians to %d frames: %d steps in %.1f s", len(points), views, config.steps, seconds)
    refined = cameras if poses is None else _refined(poses)
    exposure = None if exposures is None else exposures.result()
    return FitResult(scene.detached(), refined, exposure, torch.stack(losses).tolist(), seconds)


def _refined(poses: RefinedPoses) -> Cameras:
    """The refined cameras; how far each moved goes into the log."""
    refined = poses.refined()
    angles, distances = pose_changes(poses.given, refined)
    for view in poses.free:
        _LOG.info("pose of frame %d: %.3f degrees, %.4g world units", view, float(angles[view]), float(distances[view]))
    return refined


def _check_frames(frames: Tensor | Sequence[Tensor], cameras: Cameras) -> Tensor:  # [V, 3, H, W]
    if not isinstance(frames, Tensor):
        sizes = sorted({tuple(frame.shape) for frame in frames})
        if len(sizes) > 1:
            raise BadSceneError(f"frames of different sizes {sizes}: resize and crop them to one size first")
    if len(frames) == 0:
        raise BadSceneError("no frames to fit")
    if not isinstance(frames, Tensor):
        frames = torch.stack(list(frames))
    expected = (len(cameras), 3, cameras.height, cameras.width)
    if tuple(frames.shape) != expected:
        raise BadSceneError(f"frames {tuple(frames.shape)} do not go with cameras for {expected} (V, 3, H, W)")
    if not frames.is_floating_point():
        raise BadSceneError(f"frames must be float in [0, 1], got {frames.dtype}; divide uint8 by 255")
    if not bool(torch.isfinite(frames).all()):
        raise BadSceneError("the frames have NaN or infinite pixels")
    poses = cameras.world_to_camera.reshape(len(cameras), -1)
    if len(cameras) > 1 and bool((poses - poses[:1]).abs().max() < 1e-8):
        raise BadSceneError(
            f"{len(cameras)} views from one and the same pose have no parallax to fit a scene to; check the cameras"
        )
    return frames.detach().float()


def _weights(targets: Tensor, confidence: Tensor | None, config: FitConfig) -> Tensor:  # [V, H, W]
    views, _, height, width = targets.shape
    if confidence is None:
        return targets.new_ones(views, height, width)
    if tuple(confidence.shape) != (views, height, width):
        raise BadSceneError(f"confidence {tuple(confidence.shape)} does not go with frames {tuple(targets.shape)}")
    return normalise_confidence(confidence.to(targets), config.confidence)


def _inputs(input_views: Sequence[int], views: int) -> set[int]:
    if any(not -views <= view < views for view in input_views):
        raise ConfigurationError(f"input_views {list(input_views)} are not all among the {views} frames")
    return {view % views for view in input_views}


def _target_features(targets: Tensor, perceptual: LpipsDistance | None, config: FitConfig) -> TargetFeatures | None:
    """Features of all targets, or None if there is no use for them or they do not fit into the memory allowed."""
    if perceptual is None or config.lpips_crop is not None:
        return None
    first = perceptual.features(targets[:1])
    if first.bytes * len(targets) > config.lpips_memory:
        _LOG.info("LPIPS features of %d targets exceed lpips_memory; computing them in each step", len(targets))
        return None
    kept = tuple(layer.new_empty(len(targets), *layer.shape[1:]) for layer in first.layers)
    for view in range(len(targets)):
        for layer, part in zip(kept, perceptual.features(targets[view : view + 1]).layers, strict=True):
            layer[view] = part[0]
    return TargetFeatures(kept, first.height, first.width)


def loss_network(
    config: FitConfig, device: torch.device, option: str = "--evaluation.fit.loss.lpips 0"
) -> LpipsDistance | None:
    """The LPIPS network of the fit's loss; None where the loss does not use it. ``option`` is how to go without.

    Raises:
        MissingWeightsError: its weights are not there; the message has both remedies.
    """
    if config.loss.lpips == 0:
        return None
    try:
        return LpipsDistance(config.lpips_net).to(device)
    except MissingWeightsError as error:
        raise MissingWeightsError(f"{error}, or fit without it: `{option}`") from error
