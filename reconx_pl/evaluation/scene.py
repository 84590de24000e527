"""Evaluates one scene: generate, fit, render, score, and the same for the baselines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from reconx_pl.evaluation.baselines import ceiling_split, nearest_view, warped_views
from reconx_pl.evaluation.coverage import depth_views, input_coverage
from reconx_pl.evaluation.filled_render import NO_DEPTH, filled_fit, filled_frames
from reconx_pl.evaluation.scene_result import SceneResult, stopwatch
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.evaluation.target_poses import refined_targets
from reconx_pl.evaluation.task import HeldOutViews, SceneTask, clip_task
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.metrics.image import MetricSuite
from reconx_pl.metrics.lpips import LpipsDistance
from reconx_pl.reconstruction.scene_builder import (
    FitInput,
    FrameSequence,
    fit_scene,
    generate_sequence,
    input_sequence,
    photographs_alone,
    prepare_fit,
)
from reconx_pl.reconstruction.view_generator import ViewGenerator
from reconx_pl.splatting.fit import FitResult, loss_network
from reconx_pl.splatting.pose_refinement import pose_changes
from reconx_pl.splatting.renderers.base import Renderer
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.types import Cameras, Clip, Gaussians, PointCloud, Progress


def evaluate_scene(
    clip: Clip,
    view_generator: ViewGenerator,
    config: EvaluationConfig,
    *,
    suite: MetricSuite | None = None,
    renderer: Renderer | None = None,
    perceptual: LpipsDistance | None = None,
    held_out: HeldOutViews | None = None,
    estimator: PointMapEstimator | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> SceneResult:
    """Evaluate one clip by ReconX, IV-E and V-A.

    The input views are the first and the last frame of the clip; the truth of the other frames is touched for scoring
    only. Two things may know more than these two views, and both are recorded: with ``pose_policy="dataset"`` the
    poses of the generated frames are those of the true frames, and the cloud of a clip without depth is part of a
    reconstruction from all photographs (``task.geometry_note``).

    Args:
        clip: T frames with true cameras and a cloud.
        view_generator: gets the blind clip and a generator on ``device``.
        config: settings.
        suite: metrics, if they are loaded already.
        renderer: None takes the default of the device.
        perceptual: LPIPS network of the fit's loss; None makes it if the loss uses it.
        held_out: further true views to score.
        estimator: aligns the generated frames, if ``config.pose_policy`` asks for that.
        device: of fit and metrics.
        progress: counts percent of this scene; what is done is "key: stage".

    Raises:
        BadSceneError: nothing to score, no cloud, frames that cannot be used.
        ConfigurationError: the pose policy "aligned" and no estimator that can do it.
        MissingWeightsError: the fit's loss uses LPIPS and its weights are not there.
    """
    config.check(estimator)
    with torch.inference_mode(False):
        task = clip_task(clip, config, held_out)
    return evaluate_task(task, view_generator, config, suite, renderer, perceptual, estimator, device, progress)


def evaluate_task(
    task: SceneTask,
    view_generator: ViewGenerator,
    config: EvaluationConfig,
    suite: MetricSuite | None = None,
    renderer: Renderer | None = None,
    perceptual: LpipsDistance | None = None,
    estimator: PointMapEstimator | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> SceneResult:
    """As ``evaluate_scene``, for what ``task.clip_task`` or ``task.views_task`` made."""
    # Lightning validates in inference mode, where nothing can be fitted.
    with torch.inference_mode(False), torch.enable_grad():
        return _Evaluation(task, view_generator, config, suite, renderer, perceptual, estimator, device, progress).run()


class _Evaluation:
    """The stages of ``evaluate_task`` with what they share."""

    def __init__(
        self,
        task: SceneTask,
        view_generator: ViewGenerator,
        config: EvaluationConfig,
        suite: MetricSuite | None,
        renderer: Renderer | None,
        perceptual: LpipsDistance | None,
        estimator: PointMapEstimator | None,
        device: torch.device | str,
        progress: Progress | None,
    ) -> None:
        self.device = torch.device(device)
        self.task, self.view_generator, self.config, self.estimator = task, view_generator, config, estimator
        self.suite = suite or MetricSuite(config.metrics, self.device)
        self.renderer = renderer or default_renderer(self.device)
        self.perceptual = perceptual or loss_network(config.fit, self.device)
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.done = 0.0  # share of the scene
        # the stage, and so the seed, of this baseline
        self.contexts = "two views" if task.views_in_clip else "contexts"
        self.inputs = task.inputs.copied().to(self.device, torch.float32)
        self.shares = self._shares()
        self.truth = task.views.to(self.device)  # [M, 3, H, W]
        self.cameras = task.view_cameras.copied().to(self.device, torch.float32)
        self.masks = None if task.masks is None else task.masks[task.targets].to(self.device)

    def run(self) -> SceneResult:
        scene = self.config.scene
        with self._stage("generate"):
            sequence = self._sequence()
        given = prepare_fit(self.inputs, sequence, scene, self.estimator, stage=self._stage)
        fitted = self._fit("fit", given)
        with self._stage("render"):
            rendered = self._render(fitted.gaussians, self.cameras)
        result = SceneResult(
            task=self.task,
            given=given.to("cpu"),
            rendered=rendered.cpu(),
            gaussians=fitted.gaussians,
            final_loss=fitted.final_loss,
            absent=dict(self.suite.absent),
            seconds=self.seconds,
        )
        if self.config.coverage and (self.task.targets or self.config.ceiling):
            with self._stage("coverage"):
                result.coverage = input_coverage(self.inputs, self.cameras)
        self._score(result, "reconx", rendered, self._render_held_out(fitted.gaussians))
        if self.task.views_in_clip and self.config.diffusion:
            self._score(result, "generated", given.images, None)
        if self.config.two_views:
            alone = self._fit(self.contexts, photographs_alone(self.inputs, given.start))
            with self._stage(self.contexts):
                views = self._render(alone.gaussians, self.cameras)
            self._score(result, self.contexts.replace(" ", "_"), views, self._render_held_out(alone.gaussians))
        if len(given.images) > len(self.inputs):  # something was generated
            self._filled_renders(result, sequence, given.start)
        self._copies(result)
        if self.config.ceiling:
            self._ceiling(result, given.start)
        if self.config.refine_test_poses and self.task.targets:
            self._refine(result)
        return result

    def _sequence(self) -> FrameSequence:
        if not self.config.diffusion or not self.task.clips:
            return input_sequence(self.inputs)
        known = self.cameras if self.config.pose_policy == "dataset" else None  # where frames are asked for
        return generate_sequence(
            self.inputs, self.task.clips, self.view_generator, self.config.seed, self.device, cameras=known
        )

    def _fit(self, stage: str, given: FitInput) -> FitResult:
        def within(what: str, done: int, total: int | None) -> None:
            self._report(stage, self.done + self.shares.get(stage, 0.0) * done / (total or 1))

        with self._stage(stage):
            return fit_scene(
                given,
                self.config.scene,
                self.task.key,
                renderer=self.renderer,
                perceptual=self.perceptual,
                progress=within,
                purpose=stage,
            )

    @torch.no_grad()
    def _render(self, gaussians: Gaussians, cameras: Cameras) -> Tensor:
        return self.renderer.render(gaussians, cameras).color  # [V, 3, H, W]

    def _render_held_out(self, gaussians: Gaussians) -> Tensor | None:
        if self.task.held_out is None:
            return None
        with self._stage("render"):
            return self._render(gaussians, self.task.held_out.cameras.to(self.device))

    def _score(self, result: SceneResult, method: str, frames: Tensor, held_out: Tensor | None) -> None:
        """Score ``frames`` [M, ...] at the targets, and what was rendered at the held-out views."""
        targets, other = self.task.targets, self.task.held_out
        with self._stage("score"):
            if targets:
                self._measure(result, method, frames[targets], targets, self.masks)
            if other is not None and held_out is not None:
                result.held_out_scores[method] = self.suite(held_out, other.images.to(self.device))

    def _measure(
        self, result: SceneResult, method: str, images: Tensor, places: list[int], masks: Tensor | None
    ) -> None:
        """Score ``images`` [K, ...] against the true views at ``places``, whole and by what the input views saw."""
        parts = {} if result.coverage is None else result.coverage.parts(places, masks)
        truth, way = self.truth[places], self.config.masks
        result.scores[method], of_parts = self.suite.split(images, truth, parts, masks, way)
        for name, scores in of_parts.items():
            result.part_scores.setdefault(name, {})[method] = scores

    def _filled_renders(self, result: SceneResult, sequence: FrameSequence, start: PointCloud) -> None:
        """The floor of every network: what the depth of the input views gives, as frames and fitted."""
        wanted = [name for name in ("filled_render", "filled_render_splats") if getattr(self.config, name)]
        views = depth_views(self.inputs)
        if views is None:
            result.left_out |= dict.fromkeys(wanted, NO_DEPTH)
            return
        in_clip, other = self.task.views_in_clip, self.task.held_out
        if "filled_render" in wanted:
            with self._stage("warp"):
                filled, holes = filled_frames(views, sequence.cameras if in_clip else self.cameras)
                others = filled_frames(views, other.cameras.to(self.device))[0] if other else None
            self._score(result, "filled_render", filled, others)
            result.filled, result.holes = filled.cpu(), [holes[at] for at in self.task.targets]
        if "filled_render_splats" in wanted:
            with self._stage("warp"):
                frames, _ = filled_frames(views, sequence.cameras)
                given = filled_fit(self.inputs, sequence, frames, start, self.config.scene)
            fitted = self._fit("filled render", given)
            with self._stage("filled render"):
                rendered = self._render(fitted.gaussians, self.cameras)
            self._score(result, "filled_render_splats", rendered, self._render_held_out(fitted.gaussians))

    def _copies(self, result: SceneResult) -> None:
        """The baselines that move pixels of the input views and fit nothing."""
        other, images, cameras = self.task.held_out, self.inputs.images, self.inputs.cameras
        copies = images[nearest_view(self.cameras, cameras)]
        if self.config.nearest_input:
            others = images[nearest_view(other.cameras.to(self.device), cameras)] if other else None
            self._score(result, "nearest_input", copies, others)
        if self.config.depth_warp and not self.task.views_in_clip and "filled_render" not in result.scores:
            with self._stage("warp"):
                known = depth_views(self.inputs) or self.inputs.cloud
                assert known is not None
                warped, result.holes = warped_views(known, self.cameras, copies)
            self._score(result, "depth_warp", warped, None)

    def _ceiling(self, result: SceneResult, start: PointCloud) -> None:
        used, left = ceiling_split(len(self.truth))
        if not left:
            return
        given = FitInput(self.truth[used], self.cameras[used], None, list(range(len(used))), start)
        best = self._fit("ceiling", given)
        with self._stage("ceiling"):
            views = self._render(best.gaussians, self.cameras[left])
        with self._stage("score"):
            self._measure(result, "ceiling", views, left, None)
        result.ceiling_targets = left

    def _refine(self, result: SceneResult) -> None:
        targets, gaussians = self.task.targets, result.gaussians
        given, images = self.cameras[targets], self.truth[targets]
        with self._stage("refine"):
            steps, anchor = self.config.refine_test_poses, self.inputs.cameras[0]
            refined = refined_targets(gaussians, images, given, anchor, steps, self.renderer, self.masks)
            views = self._render(gaussians, refined)
        degrees, units = pose_changes(given, refined)
        result.moved = list(zip(degrees.tolist(), units.tolist(), strict=True))
        with self._stage("score"):
            self._measure(result, "reconx_refined", views, targets, self.masks)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self._report(name, self.done)
        with stopwatch(self.seconds, name, self.device):
            yield
        self.done += self.shares.pop(name, 0.0)
        self._report(name, self.done)

    def _report(self, stage: str, share: float) -> None:
        if self.progress is not None:
            self.progress(f"{self.task.key}: {stage}", min(round(100 * share), 100), 100)

    def _shares(self) -> dict[str, float]:
        """About which part of the scene's time each long stage takes."""
        weights = {
            "generate": float(self.config.diffusion),
            "fit": 1.0,
            self.contexts: float(self.config.two_views),
            "filled render": float(self.config.filled_render_splats and self.inputs.depth is not None),
            "ceiling": float(self.config.ceiling),
            "alignment": float(self.config.pose_policy == "aligned"),
        }
        return {stage: weight / sum(weights.values()) for stage, weight in weights.items()}
