"""Evaluates many scenes: restartable, spread over ranks, honest about what failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist

from reconx_pl.errors import BadDataError, ConfigurationError, ReconXError
from reconx_pl.evaluation.media import write_media
from reconx_pl.evaluation.metrics import MetricSuite
from reconx_pl.evaluation.painter import HeldOutViews, LazyScene, Painter, RecordedFrames, blind
from reconx_pl.evaluation.ranks import all_or_none
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
from reconx_pl.evaluation.scene import Progress, SceneResult, evaluate_scene, loss_network, stopwatch
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
    gathers = world > 1 and dist.is_available() and dist.is_initialized() and dist.get_world_size() == world
    # Lightning validates in inference mode: networks and clips that are made there could not enter the fit's graph.
    with torch.inference_mode(False), torch.no_grad():
        # a rank that gave up on its own would leave the others waiting for its scores
        with all_or_none() if gathers else nullcontext():
            device = torch.device(device)
            suite = suite or MetricSuite(config.metrics, device)
            renderer = renderer or default_renderer(device)
            perceptual = perceptual or loss_network(config, device)
            tally = _Tally(config, model, suite.absent, Path(out))
            next_save = 0.0
            for index, scene in enumerate(_guarded(clips, tally)):
                if scene.key in tally.expected:
                    raise ConfigurationError(
                        f"two scenes have the key {scene.key!r}; keys must be unique in an evaluation"
                    )
                tally.expected.append(scene.key)
                if index % world != rank:
                    continue
                folder = scene_folder(tally.out, scene.key)
                try:
                    record = _one(scene, folder, painter, config, model, suite, renderer, perceptual, device, progress)
                    tally.records.append(record)
                    (folder / ERROR).unlink(missing_ok=True)
                except Exception as error:
                    tally.failed[scene.key] = why = f"{type(error).__name__}: {error}"
                    log.error("scene %s failed: %s", scene.key, error, exc_info=not isinstance(error, ReconXError))
                    (folder / RESULT).unlink(missing_ok=True)
                    write_json(folder / ERROR, {"key": scene.key, "error": why, "config_hash": config.hash})
                if world == 1 and time.monotonic() >= next_save:
                    start = time.monotonic()
                    tally.write(final=False)
                    next_save = time.monotonic() + 50 * (time.monotonic() - start)  # at most 2 % of the time
        if gathers:
            return tally.gather(rank)
        return tally.write(final=True) if world == 1 else tally.read_back()


@dataclass
class _Tally:
    """What one process knows of an evaluation so far, and the summary of it."""

    config: EvaluationConfig
    model: str
    absent: dict[str, str]
    out: Path
    records: list[Record] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)  # keys, also of the scenes of other ranks
    failed: dict[str, str] = field(default_factory=dict)

    def write(self, final: bool) -> Record:
        """Write the summary of what is here; it is not complete before the evaluation is at its end."""
        content = self._summary(self._means())
        content["complete"] = content["complete"] and final
        write_json(self.out / SUMMARY, content)
        return content

    def gather(self, rank: int) -> Record:
        """The summary over the process group; rank 0 writes it."""
        nccl = dist.get_backend() == "nccl"  # gathers on its own device only
        table = self._means(torch.device("cuda", torch.cuda.current_device()) if nccl else None)
        parts: list[_Tally] = [self] * dist.get_world_size()
        dist.all_gather_object(parts, self)
        whole = replace(
            self,
            records=[record for part in parts for record in part.records],
            failed={key: error for part in parts for key, error in part.failed.items()},
            absent={name: why for part in parts for name, why in part.absent.items()},
        )
        content = whole._summary(table)
        if rank == 0:
            write_json(self.out / SUMMARY, content)
        return content

    def read_back(self) -> Record:
        """The summary of what all processes left in the shared folder so far."""
        unread = {place: error for place, error in self.failed.items() if place not in self.expected}
        while True:
            found = self._found()
            content = replace(self, records=found[0], failed=found[1] | unread).write(final=True)
            # Another process may have finished, and written its summary, between our reading and our writing.
            if self._found() == found:
                return content

    def _found(self) -> tuple[list[Record], dict[str, str]]:
        records, failed = [], {}
        for key in self.expected:
            folder = scene_folder(self.out, key)
            record = finished_record(folder, self.config, self.model)
            error = read_json(folder / ERROR)
            if record is not None:
                records.append(record)
            elif error is not None and error.get("config_hash") == self.config.hash:
                failed[key] = error["error"]
        return records, failed

    def _means(self, device: torch.device | None = None) -> dict[str, dict[str, dict[str, float]]]:
        """See ``records.means``: every rank of a process group must call it."""
        metrics = make_metrics(self.config.metrics)
        for record in self.records:
            fill(metrics, record)
        for metric in metrics.values() if device is not None else ():
            metric.to(device)
        return means(metrics)

    def _summary(self, table: dict[str, dict[str, dict[str, float]]]) -> Record:
        return summary(self.records, table, self.expected, self.failed, self.config, self.model, self.absent)


def _guarded(clips: Iterable[Clip | LazyScene], tally: _Tally) -> Iterator[LazyScene]:
    """Clips as lazy scenes; a source that breaks off is a failure with a name, not the loss of what was done."""
    source = iter(clips)
    while True:
        try:
            item = next(source)
        except StopIteration:
            return
        except ReconXError as error:
            after = f"after {tally.expected[-1]}" if tally.expected else "at the first clip"
            tally.failed[f"(reading clips, {after})"] = f"{type(error).__name__}: {error}"
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
