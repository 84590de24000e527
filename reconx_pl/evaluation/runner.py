"""Evaluates many scenes: restartable, spread over ranks, honest about what failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from reconx_pl.errors import BadDataError, ConfigurationError, ReconXError
from reconx_pl.evaluation.media import write_media
from reconx_pl.evaluation.metrics import MetricSuite
from reconx_pl.evaluation.painter import HeldOutViews, LazyScene, Painter, RecordedFrames, blind
from reconx_pl.evaluation.records import (
    ERROR,
    RESULT,
    SUMMARY,
    Record,
    clip_digest,
    fill,
    finished_record,
    make_metrics,
    means,
    read_json,
    scene_folder,
    scene_record,
    summary,
    write_json,
)
from reconx_pl.evaluation.scene import Progress, SceneResult, evaluate_scene, stopwatch
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.splatting.perceptual import LpipsDistance
from reconx_pl.splatting.renderer import Renderer, default_renderer
from reconx_pl.types import Clip

__all__ = [
    "EvaluationConfig",
    "HeldOutViews",
    "LazyScene",
    "Painter",
    "RecordedFrames",
    "SceneResult",
    "blind",
    "evaluate_scene",
    "evaluate_scenes",
]
log = logging.getLogger(__name__)


def evaluate_scenes(
    clips: Iterable[Clip | LazyScene],
    painter: Painter,
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
    device: torch.device | str = "cpu",
) -> Record:
    """Evaluate scenes: write ``out/scenes/<key>/result.json`` as soon as one is done, and ``out/results.json``.

    A scene that is there already, from the same settings, model and data, is not done again; an interrupted
    evaluation is started again by the same call. A scene that fails is logged, named in ``failed`` with its error,
    and makes ``complete`` false: the exit code is the caller's.

    Ranks: scene i is evaluated by rank i mod ``world``. Where torch.distributed runs with ``world`` processes the
    scores are gathered through it and every rank must make this call; else ``out`` must be a shared folder, in which
    the last process to finish finds the results of all. The painter is called for a rank's own scenes only, so a
    model sharded over ranks paints first, all ranks together, and hands the frames over in ``RecordedFrames``.

    Args:
        clips: the same on every rank, in the same order, keys unique.
        painter: paints the frames between the input views.
        config: settings; their hash goes into every result.
        out: folder of the results.
        rank: of this process.
        world: number of processes.
        progress: called with what is done now ("key: stage") and the share of this scene that is done.
        model: who painted, precisely: what changes the frames must change this string (checkpoint and its hash,
            sampling).
        suite: metrics, if they are loaded already.
        renderer: None takes the default of the device.
        perceptual: LPIPS network of the fit's loss; None makes it if the loss uses it.
        device: of fit and metrics.

    Returns:
        the content of results.json.

    Raises:
        ConfigurationError: two scenes of one key, a rank outside the world.
        MissingWeightsError: the fit's loss uses LPIPS and its weights are not there (no scene would succeed).
    """
    if not 0 <= rank < world:
        raise ConfigurationError(f"rank {rank} is not one of {world} processes")
    out, device = Path(out), torch.device(device)
    suite = suite or MetricSuite(config.metrics, device)
    renderer = renderer or default_renderer(device)
    if perceptual is None and config.fit.loss.lpips > 0:
        perceptual = LpipsDistance(config.fit.lpips_net).to(device)
    records: list[Record] = []
    expected: list[str] = []
    failed: dict[str, str] = {}

    next_save = 0.0
    for index, scene in enumerate(_guarded(clips, failed, expected)):
        if scene.key in expected:
            raise ConfigurationError(f"two scenes have the key {scene.key!r}; keys must be unique in an evaluation")
        expected.append(scene.key)
        if index % world != rank:
            continue
        folder = scene_folder(out, scene.key)
        try:
            records.append(_one(scene, folder, painter, config, model, suite, renderer, perceptual, device, progress))
            (folder / ERROR).unlink(missing_ok=True)
        except Exception as error:
            failed[scene.key] = f"{type(error).__name__}: {error}"
            log.error("scene %s failed: %s", scene.key, error, exc_info=not isinstance(error, ReconXError))
            (folder / RESULT).unlink(missing_ok=True)
            write_json(folder / ERROR, {"key": scene.key, "error": failed[scene.key], "config_hash": config.hash})
        if world == 1 and time.monotonic() >= next_save:
            start = time.monotonic()
            _write_summary(records, expected, failed, config, model, suite, out, final=False)
            next_save = time.monotonic() + 50 * (time.monotonic() - start)  # at most 2 % of the time
    if _in_group(world):
        return _gathered(records, expected, failed, config, model, suite, out, rank)
    if world > 1:
        return _from_folder(expected, config, model, suite, out)
    return _write_summary(records, expected, failed, config, model, suite, out, final=True)


def _guarded(clips: Iterable[Clip | LazyScene], failed: dict[str, str], expected: list[str]) -> Iterator[LazyScene]:
    """Clips as lazy scenes; a source that breaks off is a failure with a name, not the loss of what was done."""
    source = iter(clips)
    while True:
        try:
            item = next(source)
        except StopIteration:
            return
        except ReconXError as error:
            after = f"after {expected[-1]}" if expected else "at the first clip"
            failed[f"(reading clips, {after})"] = f"{type(error).__name__}: {error}"
            log.error("the clips could not be read on, %s: %s", after, error)
            return
        yield item if isinstance(item, LazyScene) else LazyScene(item.key, _constant(item))


def _constant(clip: Clip) -> Callable[[], Clip]:
    return lambda: clip


def _one(
    scene: LazyScene,
    folder: Path,
    painter: Painter,
    config: EvaluationConfig,
    model: str,
    suite: MetricSuite,
    renderer: Renderer,
    perceptual: LpipsDistance | None,
    device: torch.device,
    progress: Progress | None,
) -> Record:
    """Evaluate a scene, or find it done."""
    clip = scene.load()
    if clip.key != scene.key:
        raise BadDataError(f"scene {scene.key} loaded a clip with the key {clip.key}")
    clip.cameras.check(f"clip {clip.key}")
    held_out = scene.held_out() if scene.held_out is not None else None
    digest = clip_digest(clip, None if held_out is None else held_out)
    record = finished_record(folder, config, model, digest)
    if record is not None and set(record["absent"]) == set(suite.absent):
        log.info("scene %s is done already", clip.key)
        return record
    result = evaluate_scene(
        clip,
        painter,
        config,
        suite=suite,
        renderer=renderer,
        perceptual=perceptual,
        held_out=held_out,
        device=device,
        progress=progress,
    )
    files: dict[str, str] = {}
    if config.media:
        with stopwatch(result.seconds, "media", device):
            files = write_media(result, config, renderer, folder)
    record = scene_record(result, config, model, digest, files)
    write_json(folder / RESULT, record)
    return record


def _write_summary(
    records: list[Record],
    expected: list[str],
    failed: dict[str, str],
    config: EvaluationConfig,
    model: str,
    suite: MetricSuite,
    out: Path,
    final: bool,
) -> Record:
    metrics = make_metrics(config.metrics)
    for record in records:
        fill(metrics, record)
    content = summary(records, means(metrics), expected, failed, config, model, suite.absent)
    content["complete"] = content["complete"] and final
    write_json(out / SUMMARY, content)
    return content


def _in_group(world: int) -> bool:
    return world > 1 and dist.is_available() and dist.is_initialized() and dist.get_world_size() == world


def _gathered(
    records: list[Record],
    expected: list[str],
    failed: dict[str, str],
    config: EvaluationConfig,
    model: str,
    suite: MetricSuite,
    out: Path,
    rank: int,
) -> Record:
    """The summary over the process group; rank 0 writes it."""
    metrics = make_metrics(config.metrics)
    for record in records:
        fill(metrics, record)
    if dist.get_backend() == "nccl":  # gathers on its own device only
        for metric in metrics.values():
            metric.to(torch.device("cuda", torch.cuda.current_device()))
    table = means(metrics)
    parts: list[tuple[list[Record], dict[str, str], dict[str, str]]] = [([], {}, {})] * dist.get_world_size()
    dist.all_gather_object(parts, (records, failed, suite.absent))
    everything = [record for part in parts for record in part[0]]
    failures = {key: error for part in parts for key, error in part[1].items()}
    absent = {name: why for part in parts for name, why in part[2].items()}
    content = summary(everything, table, expected, failures, config, model, absent)
    if rank == 0:
        write_json(out / SUMMARY, content)
    return content


def _from_folder(expected: list[str], config: EvaluationConfig, model: str, suite: MetricSuite, out: Path) -> Record:
    """The summary of what all processes left in the shared folder so far."""
    while True:
        found = _found(expected, config, model, out)
        content = _write_summary(found[0], expected, found[1], config, model, suite, out, final=True)
        # Another process may have finished, and written its summary, between our reading and our writing.
        if _found(expected, config, model, out) == found:
            return content


def _found(expected: list[str], config: EvaluationConfig, model: str, out: Path) -> tuple[list[Record], dict[str, str]]:
    records, failed = [], {}
    for key in expected:
        folder = scene_folder(out, key)
        record = finished_record(folder, config, model)
        error = read_json(folder / ERROR)
        if record is not None:
            records.append(record)
        elif error is not None and error.get("config_hash") == config.hash:
            failed[key] = error["error"]
    return records, failed
