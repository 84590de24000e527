"""Evaluates many scenes, clips or entries of a protocol: restartable, spread over ranks, honest about what failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from reconx_pl.errors import BadDataError, ConfigurationError, ReconXError
from reconx_pl.evaluation.entry_views import LazyViews
from reconx_pl.evaluation.media import write_media
from reconx_pl.evaluation.records import (
    ERROR,
    RESULT,
    Provenance,
    Record,
    clip_digest,
    finished_record,
    scene_folder,
    scene_record,
    views_digest,
)
from reconx_pl.evaluation.scene import evaluate_scene, evaluate_task
from reconx_pl.evaluation.scene_result import SceneResult, stopwatch
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.evaluation.summary import RunSummary
from reconx_pl.evaluation.task import HeldOutViews, LazyScene, OpenedTask, TaskSource, clip_task, views_task
from reconx_pl.files.identity import identity_of
from reconx_pl.files.json_files import write_json
from reconx_pl.files.ranks import all_or_none
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.metrics.image import MetricSuite
from reconx_pl.metrics.lpips import LpipsDistance
from reconx_pl.reconstruction.view_generator import NoViewGenerator, RecordedFrames, ViewGenerator, blind
from reconx_pl.splatting.fit import loss_network
from reconx_pl.splatting.renderers.base import Renderer
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.types import Clip, Progress

__all__ = [
    "EvaluationConfig",
    "HeldOutViews",
    "LazyScene",
    "LazyViews",
    "ViewGenerator",
    "RecordedFrames",
    "SceneResult",
    "blind",
    "evaluate_scene",
    "evaluate_scenes",
    "evaluate_views",
]
log = logging.getLogger(__name__)


def evaluate_scenes(
    clips: Iterable[Clip | LazyScene],
    view_generator: ViewGenerator,
    config: EvaluationConfig,
    out: str | Path,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
    *,
    model: str,
    suite: MetricSuite | None = None,
    renderer: Renderer | None = None,
    perceptual: LpipsDistance | None = None,
    estimator: PointMapEstimator | None = None,
    device: torch.device | str = "cpu",
) -> Record:
    """Evaluate clips: write ``out/scenes/<key>/result.json`` as soon as one is done, and ``out/results.json``.

    A scene that is there already, from the same settings, model and data, is not done again; an interrupted
    evaluation is started again by the same call. A scene that fails is logged, named in ``failed`` with its error,
    and makes ``complete`` false: the exit code is the caller's.

    Ranks: scene i is evaluated by rank i mod ``world``. Where torch.distributed runs with ``world`` processes the
    scores are gathered through it and every rank must make this call; else ``out`` must be a shared folder, in which
    the last process to finish finds the results of all. The view generator is called for a rank's own scenes only, so a
    model sharded over ranks generates first, all ranks together, and hands the frames over in ``RecordedFrames``.

    Args:
        clips: the same on every rank, in the same order, keys unique.
        view_generator: generates the frames between the input views.
        config: settings; their hash goes into every result.
        out: folder of the results.
        rank: of this process.
        world: number of processes.
        progress: counts percent of a scene; what is done is "key: stage".
        model: who generated, precisely: what changes the frames must change this string (checkpoint and its hash,
            sampling).
        suite: metrics, if they are loaded already.
        renderer: None takes the default of the device.
        perceptual: LPIPS network of the fit's loss; None makes it if the loss uses it.
        estimator: aligns generated frames, if ``config.pose_policy`` asks for that.
        device: of fit and metrics.

    Returns:
        the content of results.json.

    Raises:
        ConfigurationError: two scenes of one key, a rank outside the world, the pose policy "aligned" and no estimator
            that can do it.
        MissingWeightsError: the fit's loss uses LPIPS and its weights are not there (no scene would succeed).
    """
    used = estimator if config.pose_policy == "aligned" else None
    provenance = Provenance(config, model, estimator=identity_of(used))
    sources = (_of_clip(clip, config) for clip in clips)
    tools = _Tools(view_generator, suite, renderer, perceptual, used, torch.device(device), progress)
    return _evaluate(sources, provenance, tools, Path(out), rank, world)


def evaluate_views(
    entries: Iterable[LazyViews],
    view_generator: ViewGenerator,
    config: EvaluationConfig,
    out: str | Path,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
    *,
    model: str,
    protocol: Mapping[str, Any] | str,
    suite: MetricSuite | None = None,
    renderer: Renderer | None = None,
    perceptual: LpipsDistance | None = None,
    estimator: PointMapEstimator | None = None,
    device: torch.device | str = "cpu",
) -> Record:
    """Evaluate entries of a protocol; files, restarts, failures and ranks are those of ``evaluate_scenes``.

    The context views of an entry are visited in their order. Each pair of neighbours is generated as one clip of
    ``config.clip_frames`` frames (ReconX, IV-D), one scene is fitted to the frames of all
    pairs and to the context views, each of which counts once, and the targets are rendered at the cameras of the data
    set. Neither the view generator nor any fit sees a target or its camera; ``config.refine_test_poses`` alone looks at
    them, after all else, for a row of its own.

    Args:
        entries: the same on every rank, in the same order, keys unique.
        view_generator: generates one clip for each pair; a model that is sharded over ranks generates the clips of
            ``task.views_task`` of all entries first and hands the frames over in ``RecordedFrames``.
        config: see ``evaluate_scenes``.
        out, rank, world, progress, model, suite, renderer, perceptual, device: see ``evaluate_scenes``.
        protocol: of the protocol, with its "name" and "hash"; it goes into every result, and a result of another
            protocol is done again.
        estimator: finds the points of entries that bring neither depth nor points, in their context views alone; and
            aligns the generated frames, if ``config.pose_policy`` asks for that.

    Returns:
        the content of results.json; the scores of the targets are in "mean".

    Raises:
        ConfigurationError: as ``evaluate_scenes``, and settings that need a clip's true frames.
        MissingWeightsError: the fit's loss uses LPIPS and its weights are not there.
    """
    config.check_for_entries()
    provenance = Provenance(config, model, protocol, identity_of(estimator))
    sources = (TaskSource(entry.key, partial(_open_views, entry, config, estimator)) for entry in entries)
    tools = _Tools(view_generator, suite, renderer, perceptual, estimator, torch.device(device), progress)
    return _evaluate(sources, provenance, tools, Path(out), rank, world)


def evaluate_tasks(
    sources: Iterable[TaskSource],
    config: EvaluationConfig,
    out: str | Path,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
    *,
    estimator: PointMapEstimator | None = None,
    device: torch.device | str = "cpu",
) -> Record:
    """Evaluate tasks in which nothing is generated; files, restarts, failures and ranks as of ``evaluate_scenes``.

    Args:
        sources: the same on every rank, in the same order, keys unique.
        config: settings, with ``diffusion=False``.
        out, rank, world, progress, device: see ``evaluate_scenes``.
        estimator: what the sources use, for the record.

    Raises:
        ConfigurationError, MissingWeightsError: as ``evaluate_scenes``.
    """
    provenance = Provenance(config, NoViewGenerator.identity, estimator=identity_of(estimator))
    tools = _Tools(NoViewGenerator(), None, None, None, estimator, torch.device(device), progress)
    return _evaluate(sources, provenance, tools, Path(out), rank, world)


def _of_clip(item: Clip | LazyScene, config: EvaluationConfig) -> TaskSource:
    scene = item if isinstance(item, LazyScene) else LazyScene(item.key, lambda: item)
    return TaskSource(scene.key, partial(_open_clip, scene, config))


def _open_clip(scene: LazyScene, config: EvaluationConfig) -> OpenedTask:
    clip = scene.load()
    if clip.key != scene.key:
        raise BadDataError(f"scene {scene.key} loaded a clip with the key {clip.key}")
    clip.cameras.check(f"clip {clip.key}")
    held_out = scene.held_out() if scene.held_out is not None else None
    return OpenedTask(clip_digest(clip, held_out), lambda: clip_task(clip, config, held_out))


def _open_views(entry: LazyViews, config: EvaluationConfig, estimator: PointMapEstimator | None) -> OpenedTask:
    views = entry.load()
    if views.key != entry.key:
        raise BadDataError(f"entry {entry.key} loaded views with the key {views.key}")
    views.context_cameras.check(f"context views of {views.key}")
    views.target_cameras.check(f"target views of {views.key}")
    return OpenedTask(views_digest(views), lambda: views_task(views, config, estimator))


@dataclass
class _Tools:
    """What every scene of an evaluation is done with; loaded once."""

    view_generator: ViewGenerator
    suite: MetricSuite | None
    renderer: Renderer | None
    perceptual: LpipsDistance | None
    estimator: PointMapEstimator | None
    device: torch.device
    progress: Progress | None

    def load(self, config: EvaluationConfig) -> MetricSuite:
        self.suite = self.suite or MetricSuite(config.metrics, self.device)
        self.renderer = self.renderer or default_renderer(self.device)
        self.perceptual = self.perceptual or loss_network(config.fit, self.device)
        return self.suite


def _evaluate(
    sources: Iterable[TaskSource], provenance: Provenance, tools: _Tools, out: Path, rank: int, world: int
) -> Record:
    """The work of ``evaluate_scenes`` and ``evaluate_views``."""
    config = provenance.config
    if not 0 <= rank < world:
        raise ConfigurationError(f"rank {rank} is not one of {world} processes")
    config.check(tools.estimator)
    gathers = world > 1 and dist.is_available() and dist.is_initialized() and dist.get_world_size() == world
    # Lightning validates in inference mode: networks and clips that are made there could not enter the fit's graph.
    with torch.inference_mode(False), torch.no_grad():
        # a rank that gave up on its own would leave the others waiting for its scores
        with all_or_none() if gathers else nullcontext():
            run_summary = RunSummary(provenance, tools.load(config).absent, out)
            next_save = 0.0
            for index, source in enumerate(_guarded(sources, run_summary)):
                if source.key in run_summary.expected:
                    raise ConfigurationError(
                        f"two scenes have the key {source.key!r}; keys must be unique in an evaluation"
                    )
                run_summary.expected.append(source.key)
                if index % world != rank:
                    continue
                folder = scene_folder(out, source.key)
                try:
                    run_summary.records.append(_one(source, folder, provenance, tools))
                    (folder / ERROR).unlink(missing_ok=True)
                except Exception as error:
                    run_summary.failed[source.key] = why = f"{type(error).__name__}: {error}"
                    log.error("scene %s failed: %s", source.key, error, exc_info=not isinstance(error, ReconXError))
                    (folder / RESULT).unlink(missing_ok=True)
                    write_json(folder / ERROR, {"key": source.key, "error": why, **provenance.as_record()})
                if world == 1 and time.monotonic() >= next_save:
                    start = time.monotonic()
                    run_summary.write(final=False)
                    next_save = time.monotonic() + 50 * (time.monotonic() - start)  # at most 2 % of the time
        if gathers:
            return run_summary.gather(rank)
        return run_summary.write(final=True) if world == 1 else run_summary.read_back()


def _guarded(sources: Iterable[TaskSource], run_summary: RunSummary) -> Iterator[TaskSource]:
    """A source that breaks off is a failure with a name, not the loss of what was done."""
    iterator = iter(sources)
    while True:
        try:
            source = next(iterator)
        except StopIteration:
            return
        except ReconXError as error:
            after = f"after {run_summary.expected[-1]}" if run_summary.expected else "at the first clip"
            run_summary.failed[f"(reading clips, {after})"] = f"{type(error).__name__}: {error}"
            log.error("the clips could not be read on, %s: %s", after, error)
            return
        yield source


def _one(source: TaskSource, folder: Path, provenance: Provenance, tools: _Tools) -> Record:
    """Evaluate a scene, or find it done."""
    config, device = provenance.config, tools.device
    assert tools.suite is not None and tools.renderer is not None
    before: dict[str, float] = {}

    def report(stage: str) -> None:
        if tools.progress is not None:
            tools.progress(f"{source.key}: {stage}", 0, 100)

    report("load")
    with stopwatch(before, "load", device):
        opened = source.open()
    record = finished_record(folder, provenance, opened.digest)
    if record is not None and set(record["absent"]) == set(tools.suite.absent):
        log.info("scene %s is done already", source.key)
        return record
    report("geometry")
    with stopwatch(before, "geometry", device):
        task = opened.task()
    result = evaluate_task(
        task,
        tools.view_generator,
        config,
        tools.suite,
        tools.renderer,
        tools.perceptual,
        tools.estimator,
        device,
        tools.progress,
    )
    for stage, value in before.items():
        result.seconds[stage] = result.seconds.get(stage, 0.0) + value
    files: dict[str, str] = {}
    if config.media:
        with stopwatch(result.seconds, "media", device):
            files = write_media(result, config, tools.renderer, folder)
    record = scene_record(result, provenance, opened.digest, files)
    write_json(folder / RESULT, record)
    return record
