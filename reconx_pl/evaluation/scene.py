"""Evaluates one scene: generate, fit, render, score, and the same for the baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from reconx_pl.evaluation.baselines import ceiling_split, nearest_view, warped_views
from reconx_pl.evaluation.scene_result import SceneResult, stopwatch
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.evaluation.target_poses import refined_targets
from reconx_pl.evaluation.task import HeldOutViews, SceneTask, check_estimator, clip_task, sequence_cameras
from reconx_pl.geometry.estimators.base import PointMapEstimator, Reconstruction
from reconx_pl.geometry.point_maps import point_map_from_depth
from reconx_pl.metrics.image import MetricSuite
from reconx_pl.metrics.lpips import LpipsDistance
from reconx_pl.reconstruction.alignment import AligningEstimator, aligned_frames
from reconx_pl.reconstruction.frame_confidence import frame_confidence
from reconx_pl.reconstruction.view_generator import ViewGenerator, generated_frames, scene_generator
from reconx_pl.splatting.fit import FitResult, fit, loss_network
from reconx_pl.splatting.points import points_from_maps, select_points
from reconx_pl.splatting.pose_refinement import pose_changes
from reconx_pl.splatting.random_points import random_points
from reconx_pl.splatting.renderers.base import Renderer
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.types import Cameras, Clip, Gaussians, PointCloud, PointMap

Progress = Callable[[str, float], None]  # what is done now ("key: stage"), share of this scene that is done
NEUTRAL_CONFIDENCE = 2.0  # 1 + exp(0)


def _on(cloud: PointCloud, device: torch.device) -> PointCloud:
    return PointCloud(
        *(part.detach().clone().float().to(device) for part in (cloud.points, cloud.colors, cloud.confidence))
    )


def _cameras_on(cameras: Cameras, device: torch.device) -> Cameras:
    """A copy: cameras that were made in inference mode could not enter the fit's graph."""
    return replace(
        cameras,
        world_to_camera=cameras.world_to_camera.detach().clone().float().to(device),
        intrinsics=cameras.intrinsics.detach().clone().float().to(device),
    )


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
    """Evaluate one clip by PAPER section 8 and "Protocols".

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
        progress: called with what is done now ("key: stage") and the share of this scene that is done.

    Raises:
        BadSceneError: nothing to score, no cloud, frames that cannot be used.
        ConfigurationError: the pose policy "aligned" and no estimator that can do it.
        MissingWeightsError: the fit's loss uses LPIPS and its weights are not there.
    """
    check_estimator(config, estimator)
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
        self.contexts = (
            "two views" if task.views_in_clip else "contexts"
        )  # the stage, and so the seed, of this baseline
        self.shares = self._shares()
        self.cloud = _on(task.cloud, self.device)
        self.inputs = task.images.detach().clone().float().to(self.device)  # [C, 3, H, W]
        self.input_cameras = _cameras_on(task.cameras, self.device)
        self.truth = task.views.to(self.device)  # [M, 3, H, W]
        self.cameras = _cameras_on(task.view_cameras, self.device)
        self.masks = None if task.masks is None else task.masks[task.targets].to(self.device)

    def run(self) -> SceneResult:
        input_places = self.task.input_places
        with self._stage("generate"):
            generated = self._generate()
        found = self._aligned(generated)
        with self._stage("confidence"):
            poses = self._generated_cameras(found)
            confidence = self._confidence(generated, poses, found)
        with self._stage("geometry"):
            start = self._start(generated, found)
        used = list(range(len(generated))) if self.config.diffusion else input_places  # of all frames
        places = [index for index, frame in enumerate(used) if frame in input_places]
        fitted = self._fit("fit", generated[used], poses[used], confidence[used], start, places)
        with self._stage("render"):
            rendered = self._render(fitted.gaussians, self.cameras)
        result = SceneResult(
            task=self.task,
            generated=generated.cpu(),
            cameras=poses.to("cpu"),
            rendered=rendered.cpu(),
            confidence=confidence.cpu(),
            gaussians=fitted.gaussians,
            final_loss=fitted.final_loss,
            absent=dict(self.suite.absent),
            seconds=self.seconds,
        )
        self._score(result, "reconx", rendered, self._render_held_out(fitted.gaussians))
        if self.task.views_in_clip and self.config.diffusion:
            self._score(result, "generated", generated, None)
        if self.config.two_views:
            alone = self._fit(
                self.contexts,
                generated[input_places],
                self.input_cameras,
                confidence[input_places],
                start,
                range(len(input_places)),
            )
            with self._stage(self.contexts):
                views = self._render(alone.gaussians, self.cameras)
            self._score(result, self.contexts.replace(" ", "_"), views, self._render_held_out(alone.gaussians))
        self._copies(result)
        if self.config.ceiling:
            self._ceiling(result, start)
        if self.config.refine_test_poses and self.task.targets:
            self._refine(result)
        return result

    def _generate(self) -> Tensor:  # [S, 3, H, W]
        if not self.config.diffusion:  # black, and never looked at
            frames = self.inputs.new_zeros(self.task.input_places[-1] + 1, *self.inputs.shape[1:])
            frames[self.task.input_places] = self.inputs
            return frames
        parts = [generated_frames(clip, self.view_generator, self.config.seed, self.device) for clip in self.task.clips]
        frames = torch.cat([parts[0], *(part[1:] for part in parts[1:])])
        frames[self.task.input_places] = self.inputs  # not rounded to 8 bits, and each of them once
        return frames

    def _aligned(self, generated: Tensor) -> Reconstruction | None:
        if self.config.pose_policy != "aligned" or not self.config.diffusion:
            return None
        with self._stage("alignment"):
            cameras, estimator = sequence_cameras(self.task), cast(AligningEstimator, self.estimator)
            return aligned_frames(self.task.key, generated, cameras, self.task.input_places, estimator)

    def _generated_cameras(self, found: Reconstruction | None) -> Cameras:
        if self.config.pose_policy == "dataset":
            return self.cameras
        cameras = _cameras_on(sequence_cameras(self.task) if found is None else found.cameras, self.device)
        # to the last bit, whatever an estimator makes of what it holds
        cameras.world_to_camera[self.task.input_places] = self.input_cameras.world_to_camera
        cameras.intrinsics[self.task.input_places] = self.input_cameras.intrinsics
        return cameras

    def _confidence(self, generated: Tensor, poses: Cameras, found: Reconstruction | None) -> Tensor:
        """[S, H, W] on DUSt3R's scale: the task's own for input views, by agreement with their cloud for others."""
        if self.config.confidence == "uniform":
            return torch.full_like(generated[:, 0], NEUTRAL_CONFIDENCE)
        if found is not None and self.config.confidence == "alignment":
            return found.point_map.confidence.detach().clone().to(generated)
        return frame_confidence(generated, poses, self.cloud, self.task.input_places, self.task.confidence)

    def _start(self, generated: Tensor, found: Reconstruction | None) -> PointCloud:
        """The points that the fits start from (ReconX, section 4: of the first and the last frame)."""
        generator = scene_generator(self.config.seed, self.task.key, "points")
        start = self._geometric_start(generated, found, generator)
        return random_points(self.input_cameras, len(start), generator) if self.config.points.random else start

    def _geometric_start(
        self, generated: Tensor, found: Reconstruction | None, generator: torch.Generator
    ) -> PointCloud:
        task = self.task
        every = replace(self.config.points, views="all")  # of the maps that are handed over
        if found is not None and (self.config.points.views == "all" or task.depth is None or not task.measured):
            chosen = list(range(len(generated))) if self.config.points.views == "all" else task.input_places
            parts = found.point_map.points, found.point_map.confidence, found.point_map.valid
            maps = PointMap(*(part[chosen].detach().clone().to(self.device) for part in parts))
            return points_from_maps(maps, generated[chosen], every, generator)
        if task.depth is None:
            return select_points(self.cloud, self.config.points, generator)
        return points_from_maps(self._input_maps(), self.inputs, every, generator)

    def _input_maps(self) -> PointMap:
        depth, confidence = (
            None if part is None else part.float().to(self.device) for part in (self.task.depth, self.task.confidence)
        )
        assert depth is not None
        return point_map_from_depth(depth, self.input_cameras, confidence)

    def _fit(
        self,
        stage: str,
        frames: Tensor,
        cameras: Cameras,
        confidence: Tensor,
        start: PointCloud,
        input_views: Sequence[int],
    ) -> FitResult:
        def step(done: int, steps: int, loss: float) -> None:
            self._report(stage, self.done + self.shares.get(stage, 0.0) * done / steps)

        with self._stage(stage):
            return fit(
                frames,
                cameras,
                confidence,
                start,
                self.config.fit,
                renderer=self.renderer,
                perceptual=self.perceptual,
                progress=step,
                input_views=input_views,
                generator=scene_generator(self.config.seed, self.task.key, stage),
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
                way = self.config.masks
                result.scores[method] = self.suite(frames[targets], self.truth[targets], self.masks, way)
            if other is not None and held_out is not None:
                result.held_out_scores[method] = self.suite(held_out, other.images.to(self.device))

    def _copies(self, result: SceneResult) -> None:
        """The baselines that move pixels of the input views and fit nothing."""
        other = self.task.held_out
        copies = self.inputs[nearest_view(self.cameras, self.input_cameras)]
        if self.config.nearest_input:
            others = self.inputs[nearest_view(other.cameras.to(self.device), self.input_cameras)] if other else None
            self._score(result, "nearest_input", copies, others)
        if self.config.depth_warp and not self.task.views_in_clip:
            with self._stage("warp"):
                cloud, dense = self.cloud, self.task.depth is not None
                if dense:
                    maps = self._input_maps()
                    colors = self.inputs.permute(0, 2, 3, 1)[maps.valid]
                    cloud = PointCloud(maps.points[maps.valid], colors, maps.confidence[maps.valid])
                warped, result.holes = warped_views(cloud, self.cameras, dense, copies)
            self._score(result, "depth_warp", warped, None)

    def _ceiling(self, result: SceneResult, start: PointCloud) -> None:
        used, left = ceiling_split(len(self.truth))
        if not left:
            return
        trust = torch.full_like(self.truth[used, 0], NEUTRAL_CONFIDENCE)
        best = self._fit("ceiling", self.truth[used], self.cameras[used], trust, start, range(len(used)))
        with self._stage("ceiling"):
            views = self._render(best.gaussians, self.cameras[left])
        with self._stage("score"):
            result.scores["ceiling"] = self.suite(views, self.truth[left])
        result.ceiling_targets = left

    def _refine(self, result: SceneResult) -> None:
        targets, gaussians = self.task.targets, result.gaussians
        given, images = self.cameras[targets], self.truth[targets]
        with self._stage("refine"):
            steps, anchor = self.config.refine_test_poses, self.input_cameras[0]
            refined = refined_targets(gaussians, images, given, anchor, steps, self.renderer, self.masks)
            views = self._render(gaussians, refined)
        degrees, units = pose_changes(given, refined)
        result.moved = list(zip(degrees.tolist(), units.tolist(), strict=True))
        with self._stage("score"):
            result.scores["reconx_refined"] = self.suite(views, images, self.masks, self.config.masks)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self._report(name, self.done)
        with stopwatch(self.seconds, name, self.device):
            yield
        self.done += self.shares.pop(name, 0.0)
        self._report(name, self.done)

    def _report(self, stage: str, share: float) -> None:
        if self.progress is not None:
            self.progress(f"{self.task.key}: {stage}", min(share, 1.0))

    def _shares(self) -> dict[str, float]:
        """About which part of the scene's time each long stage takes."""
        weights = {
            "generate": 1.0,
            "fit": 1.0,
            self.contexts: float(self.config.two_views),
            "ceiling": float(self.config.ceiling),
            "alignment": float(self.config.pose_policy == "aligned"),
        }
        return {stage: weight / sum(weights.values()) for stage, weight in weights.items()}
