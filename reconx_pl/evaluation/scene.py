"""Evaluates one scene: paint, fit, render, score, and the same for the baselines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError, MissingWeightsError
from reconx_pl.evaluation.baselines import ceiling_split, nearest_view
from reconx_pl.evaluation.metrics import MetricSuite
from reconx_pl.evaluation.painter import HeldOutViews, Painter, blind, scene_generator, with_ends
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.geometry.cameras import interpolate_cameras
from reconx_pl.geometry.estimator import reprojection_confidence
from reconx_pl.geometry.point_maps import point_map_from_depth
from reconx_pl.splatting.fit import FitResult, fit
from reconx_pl.splatting.perceptual import LpipsDistance
from reconx_pl.splatting.points import points_from_maps, select_points
from reconx_pl.splatting.renderer import Renderer, default_renderer
from reconx_pl.types import Cameras, Clip, Gaussians, PointCloud

Progress = Callable[[str, float], None]  # what is done now ("key: stage"), share of this scene that is done
Scores = dict[str, dict[str, Tensor]]  # method -> metric -> [targets] float64
NEUTRAL_CONFIDENCE = 2.0  # 1 + exp(0)


@dataclass
class SceneResult:
    """Scores and products of one scene. Tensors are on the CPU.

    Attributes:
        targets: scored frames of the clip.
        scores: on these targets; for "ceiling" on ``ceiling_targets``.
        held_out_scores: on the held-out views, if there were any ("painted" has none: nothing is painted there).
        painted: [T, 3, H, W], the input views in the first and the last place.
        rendered: [T, 3, H, W], the fitted scene at the true cameras of the clip.
        confidence: [T, H, W] of the fitted frames, before normalisation.
        final_loss: of the fit, mean of its last tenth.
        seconds: wall clock of each stage.
    """

    clip: Clip
    targets: list[int]
    painted: Tensor
    rendered: Tensor
    confidence: Tensor
    gaussians: Gaussians
    final_loss: float
    scores: Scores = field(default_factory=dict)
    held_out_scores: Scores = field(default_factory=dict)
    ceiling_targets: list[int] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@contextmanager
def stopwatch(seconds: dict[str, float], stage: str, device: torch.device) -> Iterator[None]:
    """Add the wall clock of the block to ``seconds[stage]``, device work included."""
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


def _cloud(clip: Clip, device: torch.device) -> PointCloud:
    if clip.cloud is None or len(clip.cloud) == 0:
        raise BadSceneError(f"clip {clip.key} has no point cloud; pack it with its geometry (see reconx pack --help)")
    cloud = clip.cloud
    return PointCloud(
        *(part.detach().clone().float().to(device) for part in (cloud.points, cloud.colors, cloud.confidence))
    )


def _start(clip: Clip, cloud: PointCloud, config: EvaluationConfig, device: torch.device) -> PointCloud:
    """The points that the fits start from (ReconX, section 4: of the first and the last frame)."""
    generator = scene_generator(config.seed, clip.key, "points")
    if clip.depth is None:
        return select_points(cloud, config.points, generator)
    ends = [0, clip.frames.shape[0] - 1]
    images, cameras = clip.images[ends].to(device), clip.cameras[ends].to(device, torch.float32)
    depth, confidence = (None if part is None else part.float().to(device) for part in (clip.depth, clip.confidence))
    assert depth is not None
    maps = point_map_from_depth(depth, cameras, confidence)
    return points_from_maps(maps, images, config.points, generator)


def loss_network(config: EvaluationConfig, device: torch.device) -> LpipsDistance | None:
    """The LPIPS network of the fit's loss; None where the loss does not use it.

    Raises:
        MissingWeightsError: its weights are not there; the message has both remedies.
    """
    if config.fit.loss.lpips == 0:
        return None
    try:
        return LpipsDistance(config.fit.lpips_net).to(device)
    except MissingWeightsError as error:
        raise MissingWeightsError(f"{error}, or fit without it: `--evaluation.fit.loss.lpips 0`") from error


def painted_frames(clip: Clip, painter: Painter, seed: int, device: torch.device) -> Tensor:
    """Paint and put the input views into their places: [T, 3, H, W] in [0, 1].

    Raises:
        BadSceneError: the painter returned another shape, or values that are not finite.
    """
    painted = painter.paint(blind(clip), scene_generator(seed, clip.key, "paint", device))
    if tuple(painted.shape) != tuple(clip.frames.shape):
        raise BadSceneError(
            f"clip {clip.key}: the painter returned frames {tuple(painted.shape)} for a clip {tuple(clip.frames.shape)}"
        )
    # A copy: frames that were painted in inference mode could not enter the fit's graph.
    painted = painted.detach().clone().float().to(device).clamp(0, 1)
    if not torch.isfinite(painted).all():
        raise BadSceneError(f"clip {clip.key}: the painted frames have NaN or infinite values; check the checkpoint")
    painted[[0, -1]] = clip.images[[0, -1]].to(device)
    return painted


def evaluate_scene(
    clip: Clip,
    painter: Painter,
    config: EvaluationConfig,
    *,
    suite: MetricSuite | None = None,
    renderer: Renderer | None = None,
    perceptual: LpipsDistance | None = None,
    held_out: HeldOutViews | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> SceneResult:
    """Evaluate one scene by PAPER section 8 and "Protocols".

    The input views are the first and the last frame of the clip; the truth of the other frames is touched for scoring
    only. Two things may know more than these two views, and both are recorded: with ``pose_policy="dataset"`` the
    poses of the painted frames are those of the true frames, and the cloud of a clip without depth is part of a
    reconstruction from all photographs (``records.geometry_note``).

    Args:
        clip: T frames with true cameras and a cloud.
        painter: gets the blind clip and a generator on ``device``.
        config: settings.
        suite: metrics, if they are loaded already.
        renderer: None takes the default of the device.
        perceptual: LPIPS network of the fit's loss; None makes it if the loss uses it.
        held_out: further true views to score.
        device: of fit and metrics.
        progress: called with what is done now ("key: stage") and the share of this scene that is done.

    Raises:
        BadSceneError: nothing to score, no cloud, frames that cannot be used.
        MissingWeightsError: the fit's loss uses LPIPS and its weights are not there.
    """
    # Lightning validates in inference mode, where nothing can be fitted.
    with torch.inference_mode(False), torch.enable_grad():
        return _Evaluation(clip, painter, config, suite, renderer, perceptual, held_out, device, progress).run()


class _Evaluation:
    """The stages of ``evaluate_scene`` with what they share."""

    def __init__(
        self,
        clip: Clip,
        painter: Painter,
        config: EvaluationConfig,
        suite: MetricSuite | None,
        renderer: Renderer | None,
        perceptual: LpipsDistance | None,
        held_out: HeldOutViews | None,
        device: torch.device | str,
        progress: Progress | None,
    ) -> None:
        self.device = torch.device(device)
        self.clip, self.painter, self.config, self.held_out = clip, painter, config, held_out
        self.suite = suite or MetricSuite(config.metrics, self.device)
        self.renderer = renderer or default_renderer(self.device)
        self.perceptual = perceptual or loss_network(config, self.device)
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.done = 0.0  # share of the scene
        self.shares = self._shares()
        self.count = clip.frames.shape[0]
        self.targets = config.target_frames(self.count)
        if not self.targets and held_out is None:
            raise BadSceneError(f"clip {clip.key} has {self.count} frames and no target to score; give at least one")
        self.cloud = _cloud(clip, self.device)
        self.start = _start(clip, self.cloud, config, self.device)
        self.truth = clip.images.to(self.device)  # [T, 3, H, W]
        cameras = clip.cameras
        self.cameras = replace(
            cameras,
            world_to_camera=cameras.world_to_camera.detach().clone().float().to(self.device),
            intrinsics=cameras.intrinsics.detach().clone().float().to(self.device),
        )

    def run(self) -> SceneResult:
        ends = self.cameras[[0, self.count - 1]]
        with self._stage("paint"):
            painted = painted_frames(self.clip, self.painter, self.config.seed, self.device)
        with self._stage("confidence"):
            poses = self._painted_cameras(ends)
            confidence = self._confidence(painted, poses)
        fitted = self._fit("fit", painted, poses, confidence, known_views=(0, self.count - 1))
        with self._stage("render"):
            rendered = self._render(fitted.gaussians, self.cameras)
        result = SceneResult(
            clip=self.clip,
            targets=self.targets,
            painted=painted.cpu(),
            rendered=rendered.cpu(),
            confidence=confidence.cpu(),
            gaussians=fitted.gaussians,
            final_loss=fitted.final_loss,
            absent=dict(self.suite.absent),
            seconds=self.seconds,
        )
        self._score(result, "reconx", rendered, self._render_held_out(fitted.gaussians))
        self._score(result, "painted", painted, None)
        if self.config.two_views:
            alone = self._fit("two views", painted[[0, -1]], ends, confidence[[0, -1]], known_views=(0, 1))
            with self._stage("two views"):
                views = self._render(alone.gaussians, self.cameras)
            self._score(result, "two_views", views, self._render_held_out(alone.gaussians))
        if self.config.nearest_input:
            inputs = self.truth[[0, -1]]
            copies = inputs[nearest_view(self.cameras, ends)]
            others = inputs[nearest_view(self.held_out.cameras.to(self.device), ends)] if self.held_out else None
            self._score(result, "nearest_input", copies, others)
        if self.config.ceiling:
            self._ceiling(result)
        return result

    def _painted_cameras(self, ends: Cameras) -> Cameras:
        if self.config.pose_policy == "dataset":
            return self.cameras
        positions = torch.linspace(0, 1, self.count, dtype=torch.float64)
        return with_ends(interpolate_cameras(ends, positions), ends)

    def _confidence(self, painted: Tensor, poses: Cameras) -> Tensor:
        """[T, H, W] on DUSt3R's scale: the clip's own for input views, by agreement with their cloud for others."""
        if self.config.confidence == "uniform":
            return torch.full_like(painted[:, 0], NEUTRAL_CONFIDENCE)
        confidence = reprojection_confidence(painted, poses, self.cloud)
        if self.clip.confidence is not None:
            confidence[[0, -1]] = self.clip.confidence.detach().clone().to(confidence)
        return confidence

    def _fit(
        self, stage: str, frames: Tensor, cameras: Cameras, confidence: Tensor, known_views: Sequence[int]
    ) -> FitResult:
        def step(done: int, steps: int, loss: float) -> None:
            self._report(stage, self.done + self.shares.get(stage, 0.0) * done / steps)

        with self._stage(stage):
            return fit(
                frames,
                cameras,
                confidence,
                self.start,
                self.config.fit,
                renderer=self.renderer,
                perceptual=self.perceptual,
                progress=step,
                known_views=known_views,
                generator=scene_generator(self.config.seed, self.clip.key, stage),
            )

    @torch.no_grad()
    def _render(self, gaussians: Gaussians, cameras: Cameras) -> Tensor:
        return self.renderer.render(gaussians, cameras).color  # [V, 3, H, W]

    def _render_held_out(self, gaussians: Gaussians) -> Tensor | None:
        if self.held_out is None:
            return None
        with self._stage("render"):
            return self._render(gaussians, self.held_out.cameras.to(self.device))

    def _score(self, result: SceneResult, method: str, frames: Tensor, held_out: Tensor | None) -> None:
        """Score ``frames`` [T, ...] at the targets, and what was rendered at the held-out views."""
        with self._stage("score"):
            if self.targets:
                result.scores[method] = self.suite(frames[self.targets], self.truth[self.targets])
            if self.held_out is not None and held_out is not None:
                result.held_out_scores[method] = self.suite(held_out, self.held_out.images.to(self.device))

    def _ceiling(self, result: SceneResult) -> None:
        used, left = ceiling_split(self.count)
        if not left:
            return
        trust = torch.full_like(self.truth[used, 0], NEUTRAL_CONFIDENCE)
        best = self._fit("ceiling", self.truth[used], self.cameras[used], trust, known_views=range(len(used)))
        with self._stage("ceiling"):
            views = self._render(best.gaussians, self.cameras[left])
        with self._stage("score"):
            result.scores["ceiling"] = self.suite(views, self.truth[left])
        result.ceiling_targets = left

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self._report(name, self.done)
        with stopwatch(self.seconds, name, self.device):
            yield
        self.done += self.shares.pop(name, 0.0)
        self._report(name, self.done)

    def _report(self, stage: str, share: float) -> None:
        if self.progress is not None:
            self.progress(f"{self.clip.key}: {stage}", min(share, 1.0))

    def _shares(self) -> dict[str, float]:
        """About which part of the scene's time each long stage takes."""
        weights = {
            "paint": 1.0,
            "fit": 1.0,
            "two views": float(self.config.two_views),
            "ceiling": float(self.config.ceiling),
        }
        return {stage: weight / sum(weights.values()) for stage, weight in weights.items()}
