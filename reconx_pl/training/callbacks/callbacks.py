"""Callbacks: throughput, generated clips in TensorBoard, and the evaluation of held-out clips."""

from __future__ import annotations

import io
import logging
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor
from torch.nn import functional

from reconx_pl.data.datamodule import ShardDataModule
from reconx_pl.errors import ConfigurationError, ReconXError
from reconx_pl.evaluation.coverage import HALVES
from reconx_pl.evaluation.records import scene_folder
from reconx_pl.evaluation.runner import EvaluationConfig, evaluate_scenes
from reconx_pl.files.ranks import all_or_none
from reconx_pl.reconstruction.view_generator import RecordedFrames, ViewGenerator, blind, seeded_generator
from reconx_pl.training.callbacks.tolerance import tolerated
from reconx_pl.training.checkpointing.network_weights import save_network
from reconx_pl.training.checkpointing.resume import run_folder
from reconx_pl.training.models import live_identity
from reconx_pl.training.module import ReconXModule
from reconx_pl.training.sharding import is_sharded
from reconx_pl.types import Clip
from reconx_pl.visualization.video import write_mp4

log = logging.getLogger(__name__)


class ThroughputCallback(L.Callback):
    """Logs clips a second over all ranks and the share of time spent waiting for data.

    Args:
        every_n_steps: window of the measurement, in batches.
    """

    def __init__(self, every_n_steps: int = 20) -> None:
        if every_n_steps < 1:
            raise ConfigurationError(f"every_n_steps is at least 1, got {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._clips, self._waited, self._seconds = 0, 0.0, 0.0
        self._ended: float | None = None
        self._started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ended = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._started = time.perf_counter()
        if self._ended is not None:
            self._waited += self._started - self._ended

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        since = self._ended if self._ended is not None else self._started
        self._seconds += now - since
        self._clips += len(batch["key"]) * trainer.world_size
        self._ended = now
        if (batch_idx + 1) % self.every_n_steps == 0:
            values = {
                "throughput/clips_per_second": self._clips / self._seconds,
                "throughput/data_wait_share": self._waited / self._seconds,
            }
            # straight to the loggers: what self.log has been given once it writes again at every interval, old or new
            for logger in trainer.loggers:
                logger.log_metrics(values, max(trainer.global_step - 1, 0))  # beside train/loss, counted from 0
            self._clips, self._waited, self._seconds = 0, 0.0, 0.0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._ended = None  # validation is not waiting for data


class MediaCallback(L.Callback):
    """Writes generated clips beside the truth into TensorBoard as animations, after each validation.

    Args:
        clips: how many validation clips to generate.
        frames: of an animation at most; of longer clips every second, third ... frame is shown.
        side: of an animation at most, pixels, truth and generation side by side. Each is a whole GIF in the event file,
            at every validation.
    """

    def __init__(self, clips: int = 1, frames: int = 16, side: int = 512) -> None:
        if min(clips, frames, side) < 1:
            raise ConfigurationError(f"clips, frames and side are at least 1, got {clips}, {frames}, {side}")
        self.clips, self.frames, self.side = clips, frames, side

    @tolerated("generating clips for the log")
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module, data = cast(ReconXModule, pl_module), _data(trainer)
        # the parts of a sharded model are useless without each other: its ranks generate together, and rank 0 writes
        generates = trainer.is_global_zero or is_sharded(module.network)
        if trainer.sanity_checking or not generates or not isinstance(trainer.logger, TensorBoardLogger):
            return
        with all_or_none() if is_sharded(module.network) else nullcontext():
            clips = list(data.clips("val", self.clips))
        with module.averaged():
            view_generator = module.view_generator()
            generated = [view_generator.generate(clip, torch.Generator(module.device).manual_seed(0)) for clip in clips]
        # nothing that rank 0 does alone comes between two clips: if it failed there the others would wait for it
        for clip, frames in zip(clips, generated, strict=True) if trainer.is_global_zero else ():
            both = torch.cat([clip.images, frames], dim=-1)  # [T, 3, H, 2 W]: truth | generated
            shown, fps = limited(both, clip.fps, self.frames, self.side)
            add_animation(trainer.logger, f"generated/{clip.key}", shown, fps, trainer.global_step)


def _data(trainer: L.Trainer) -> ShardDataModule:
    data: Any = trainer  # Lightning declares the attribute on no class
    return cast(ShardDataModule, data.datamodule)


def limited(frames: Tensor, fps: float, count: int, side: int) -> tuple[Tensor, float]:
    """Frames [T, 3, H, W] and their rate, thinned out to ``count`` and shrunk to a longest ``side`` of pixels."""
    every = -(-len(frames) // count)
    frames = frames[::every]
    share = side / max(frames.shape[-2:])
    if share < 1:
        sides = [max(round(share * length), 1) for length in frames.shape[-2:]]
        frames = functional.interpolate(frames, size=sides, mode="bilinear", antialias=True)
    return frames, fps / every


def add_animation(logger: TensorBoardLogger, tag: str, frames: Tensor, fps: float, step: int) -> None:
    """Log frames [T, 3, H, W] in [0, 1] as an animated GIF; ``SummaryWriter.add_video`` would need moviepy."""
    pixels = (frames.permute(0, 2, 3, 1) * 255).round().clamp(0, 255).byte().cpu().numpy()
    first, *others = [Image.fromarray(frame) for frame in pixels]
    encoded = io.BytesIO()
    first.save(encoded, format="GIF", save_all=True, append_images=others, duration=round(1000 / max(fps, 1)), loop=0)
    add_image(logger, tag, encoded.getvalue(), first.size, step)


def add_image(logger: TensorBoardLogger, tag: str, encoded: bytes, size: tuple[int, int], step: int) -> None:
    """Log a PNG or GIF of ``size`` (columns, rows) as it is."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    image = Summary.Image(height=size[1], width=size[0], colorspace=3, encoded_image_string=encoded)
    writer = logger.experiment._get_file_writer()
    writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


class EvaluationCallback(L.Callback):
    """Generates, fits and scores held-out clips in ``validate`` and ``test``, through the runner of ``evaluate.py``.

    Scores become scalars of the log, whole and of covered and uncovered pixels; contact sheets become images of it, if
    ``config.media`` has them made.

    Args:
        out: folder of results, with a sub-folder for each step; None takes ``evaluation`` in the run's folder.
        config: fit, targets, metrics, baselines.
        clips: how many held-out clips; None takes all.
        during_fit: also in a training run, after some of its validations (the fit takes its time).
        every_n_validations: which: every n-th, and the one after the last step.
    """

    def __init__(
        self,
        out: Path | None = None,
        config: EvaluationConfig | None = None,
        clips: int | None = None,
        during_fit: bool = False,
        every_n_validations: int = 1,
    ) -> None:
        if every_n_validations < 1:
            raise ConfigurationError(f"every_n_validations is at least 1, got {every_n_validations}")
        self.out = out
        self.config = config or EvaluationConfig()
        self.clips = clips
        self.during_fit = during_fit
        self.every_n_validations = every_n_validations

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "fit":
            last = 0 < trainer.max_steps <= trainer.global_step
            if not self.during_fit or (validations_so_far(trainer) % self.every_n_validations and not last):
                return
        self._after_validation(trainer, pl_module)

    @tolerated("the evaluation of held-out clips")
    def _after_validation(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluate(trainer, cast(ReconXModule, pl_module), "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluate(trainer, cast(ReconXModule, pl_module), "test")

    def _evaluate(self, trainer: L.Trainer, module: ReconXModule, split: Literal["val", "test"]) -> None:
        clips: Iterable[Clip] = _data(trainer).clips(split, self.clips)
        training = module.training
        out = (self.out or Path(trainer.log_dir or ".") / "evaluation") / f"{split}-step{module.step:07d}"
        with module.averaged():
            own = module.view_generator()
            model = live_identity(own)
            view_generator: ViewGenerator = own
            if is_sharded(module.network):
                with all_or_none():
                    clips = list(clips)
                view_generator = generate_together(clips, own, self.config, module.device)
            results = evaluate_scenes(
                clips,
                view_generator,
                self.config,
                out,
                rank=trainer.global_rank,
                world=trainer.world_size,
                model=model,
                device=module.device,
            )
        module.train(training)
        if trainer.is_global_zero and trainer.logger is not None:
            trainer.logger.log_metrics(flatten_scores(results, split), module.step)
            if isinstance(trainer.logger, TensorBoardLogger):
                add_sheets(trainer.logger, results, out, module.step)


def validations_so_far(trainer: L.Trainer) -> int:
    """How many validations a training run has had, this one included, also before it was started again.

    Counted from batches and epochs: the checkpoint that a run goes on from may be older than its last validation.
    """
    every, batches = trainer.check_val_every_n_epoch, trainer.val_check_batch
    assert batches is not None  # a validation is over
    if every is None:
        return (trainer.fit_loop.total_batch_idx + 1) // int(batches)
    if math.isinf(batches):
        return (trainer.current_epoch + 1) // every
    in_epoch = max(1, int(trainer.num_training_batches // batches))
    return trainer.current_epoch // every * in_epoch + (trainer.fit_loop.batch_idx + 1) // int(batches)


def generate_together(
    clips: Iterable[Clip], view_generator: ViewGenerator, config: EvaluationConfig, device: torch.device
) -> RecordedFrames:
    """Generate every clip with a sharded model, all ranks the same one at the same time, as an evaluation would.

    Frames are asked for at the cameras at which it would ask for them (``config.pose_policy``). A clip that cannot be
    generated is left out, and fails when its turn in the evaluation comes.
    """
    frames: dict[str, Tensor] = {}
    for clip in clips:
        try:
            cameras = clip.cameras if config.pose_policy == "dataset" else None
            frames[clip.key] = view_generator.generate(
                blind(clip, cameras), seeded_generator(config.seed, clip.key, "generate", device)
            )
        except ReconXError as error:  # about the clip, and thus the same on every rank
            log.error("clip %s cannot be generated: %s", clip.key, error)
    return RecordedFrames(frames)


def flatten_scores(results: Mapping[str, Any], split: str) -> dict[str, float]:
    """``{"mean": {method: {metric: value}}}`` as ``split/method/metric`` scalars, parts as ``.../metric_covered``."""
    groups = {"": "mean"} | {f"_{half}": f"mean_{half}" for half in HALVES}
    return {
        f"{split}/{method}/{metric}{ending}": float(value)
        for ending, group in groups.items()
        for method, scores in results[group].items()
        for metric, value in scores.items()
    }


def add_sheets(logger: TensorBoardLogger, results: Mapping[str, Any], out: Path, step: int) -> None:
    """Log the contact sheet of every scene as the image ``evaluation/KEY``.

    Args:
        logger: of rank 0.
        results: what ``evaluate_scenes`` returned.
        out: its folder; the sheets of ranks whose folder is another are not there.
        step: of the log.
    """
    for record in results["scenes"]:
        name = record["files"].get("contact_sheet")
        sheet = None if name is None else scene_folder(out, record["key"]) / name
        if sheet is not None and sheet.is_file():
            with Image.open(sheet) as picture:
                size = picture.size
            add_image(logger, f"evaluation/{record['key']}", sheet.read_bytes(), size, step)


class ExportWeights(L.Callback):
    """Writes the network as one ``.safetensors`` file when training has reached its last step.

    Args:
        path: the file; None is ``weights.safetensors`` in the run's folder, which is the next stage's ``init_from`` and
            what ``evaluate.py`` looks for.
        ema: the averaged weights, where the module keeps an average (``model.ema``), as in validation.
    """

    def __init__(self, path: Path | None = None, ema: bool = True) -> None:
        self.path = None if path is None else Path(path)
        self.ema = ema

    # also called where a run that was stopped after its last step is started again, which trains nothing any more
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        done = 0 < trainer.max_steps <= trainer.global_step
        if not done:
            return
        path = self.path or run_folder(trainer) / "weights.safetensors"
        module = cast(ReconXModule, pl_module)
        average = self.ema and module.ema is not None
        facts = {"stage": module.stage.value, "step": str(trainer.global_step), "average": str(average)}
        with module.averaged() if average else nullcontext():
            save_network(module.network, path, facts, writes=trainer.is_global_zero)
        if trainer.is_global_zero:
            log.info("weights of stage %s at step %d: %s", module.stage.value, trainer.global_step, path)


class GeneratedClips(L.Callback):
    """Writes what ``train.py predict`` generated: ``<key>.mp4`` for each clip, given views at both ends included.

    Args:
        out: folder of the videos.
    """

    def __init__(self, out: Path) -> None:
        self.out = Path(out)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for key, fps, generated, given in zip(
            batch["key"], batch["fps"].tolist(), outputs, batch["frames"], strict=True
        ):
            frames = generated.clone()  # [T, 3, H, W]
            frames[[0, -1]] = given[[0, -1]].float().to(frames) / 255.0
            write_mp4(frames, self.out / f"{key}.mp4", fps)
