"""Lightning's ModelCheckpoint for runs that may be stopped, and disks that may be full."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy

from reconx_pl.errors import CheckpointError
from reconx_pl.training.checkpointing.checkpoint_places import PARTIAL, remove
from reconx_pl.training.checkpointing.resume import checkpoint_folder, newest_checkpoint

log = logging.getLogger(__name__)


class SafeModelCheckpoint(ModelCheckpoint):
    """As Lightning's ``ModelCheckpoint``, with its options; but a checkpoint that cannot be written stops no run.

    A checkpoint is written beside its place, read back, and moved there; only then is the one before it removed. Where
    that fails (a full disk) nothing is removed, all ranks know of it, the error is logged, and training goes on as long
    as there is a complete checkpoint in the folder. At the end of training it is tried once more, and an error then is
    one. What killed runs left half written in the folder is removed when training starts.

    Args:
        dirpath: folder of the checkpoints; None is ``checkpoints`` in the run's folder.
        filename: of a checkpoint, without its ending.
        every_n_train_steps: optimizer steps between checkpoints; None, with no other interval given, takes the number
            of ``trainer.val_check_interval``.
        train_time_interval, every_n_epochs: other intervals.
        options: the other options of ``ModelCheckpoint``.
    """

    failure: CheckpointError | None = None

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        *,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        **options: Any,
    ) -> None:
        intervals = (every_n_train_steps, train_time_interval, every_n_epochs)
        super().__init__(
            dirpath,
            filename,
            every_n_train_steps=every_n_train_steps,
            train_time_interval=train_time_interval,
            every_n_epochs=every_n_epochs,
            **options,
        )
        self._as_often_as_validation = all(interval is None for interval in intervals)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.dirpath is None:  # absolute, as a given one: a resumed run compares it with the checkpoint's
            self.dirpath = os.path.realpath(checkpoint_folder(trainer))
        if self._as_often_as_validation and isinstance(trainer.val_check_interval, int):
            self._every_n_train_steps, self._every_n_epochs = trainer.val_check_interval, 0
        super().setup(trainer, pl_module, stage)

    def save_now(self, trainer: L.Trainer) -> None:
        """Save at this step, on all ranks together, under the usual name; ``last`` follows. Nothing if that is done.

        A checkpoint that a monitored metric would not have chosen is kept beside the chosen ones.

        Raises:
            CheckpointError: on every rank.
        """
        if self._last_global_step_saved == trainer.global_step:
            return
        candidates = self._monitor_candidates(trainer)
        # the public way, trainer.save_checkpoint, would leave files that nobody ever removes
        if self.monitor is None:
            self._save_topk_checkpoint(trainer, candidates)
        else:
            self._save_checkpoint(trainer, self.format_checkpoint_name(candidates))
        self._save_last_checkpoint(trainer, candidates)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero and self.dirpath:  # the run has read its checkpoint by now
            for left in Path(self.dirpath).glob(f"*.ckpt{PARTIAL}"):
                remove(left)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with self._going_on(trainer):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with self._going_on(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with self._going_on(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.failure is not None:
            self.save_now(trainer)
        super().on_train_end(trainer, pl_module)

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        failure: CheckpointError | None = None
        try:
            super()._save_checkpoint(trainer, filepath)
        except CheckpointError as error:
            failure = error
            if not isinstance(trainer.strategy, ModelParallelStrategy):
                # rank 0 alone writes here, and the others wait where it would have come to; sharded ranks fail together
                trainer.strategy.barrier()
        if trainer.strategy.reduce_boolean_decision(failure is not None, all=False):
            raise failure or CheckpointError(f"{filepath} could not be written by rank 0")
        self.failure = None

    @contextmanager
    def _going_on(self, trainer: L.Trainer) -> Iterator[None]:
        known = {name: dict(value) if isinstance(value, dict) else value for name, value in vars(self).items()}
        try:
            yield
        except CheckpointError as error:
            known["_last_time_checked"] = self._last_time_checked  # the next try is due after the usual time
            vars(self).update(known)  # what is not there must be neither linked nor removed for another
            earlier = newest_checkpoint(Path(str(self.dirpath))) if trainer.is_global_zero else None
            earlier = trainer.strategy.broadcast(earlier)
            if earlier is None:
                raise
            self.failure = error
            log.error("%s. Training goes on; its newest checkpoint is %s", error, earlier)
