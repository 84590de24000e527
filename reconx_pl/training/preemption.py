"""A run that is told that it will be taken away saves, asks to be started again, and stops.

Lightning's own requeueing saves inside the signal handler, which can deadlock ranks that are in the middle of a
collective. Here a handler only takes a note; at the end of an optimizer step all ranks agree, save together and stop.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from reconx_pl.errors import ConfigurationError

log = logging.getLogger(__name__)
GRACE = 5.0  # seconds
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class PreemptionCallback(L.Callback):
    """On SIGUSR1 or SIGTERM: a checkpoint at the end of the optimizer step, ``scontrol requeue`` in a Slurm job, stop.

    The run ends with exit code 0. Started again with ``ckpt_path: last`` it goes on with the next step. It needs the
    time of the longest optimizer step and of one checkpoint; a signal in the middle of a validation waits for its end
    too. A SIGTERM that comes more than ``GRACE`` seconds after the first signal, and before the checkpoint is there,
    goes to whoever handled it before (it ends the process); schedulers send one signal several times.

    Outside Slurm it saves and stops, so that ``kill`` loses nothing. Ranks agree by one small reduction a step.

    Args:
        requeue: in a Slurm job ask for another start; False only saves and stops.
    """

    def __init__(self, requeue: bool = True) -> None:
        self.requeue = requeue
        self._noticed: signal.Signals | None = None
        self._since = 0.0
        self._saved = False
        self._previous: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not _checkpointing(trainer):
            raise ConfigurationError("PreemptionCallback needs a ModelCheckpoint with a dirpath to save with")
        self._noticed, self._saved = None, False
        for number in SIGNALS:  # after Lightning has installed its own
            self._previous[number] = signal.signal(number, self._notice)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if self._noticed is None:
            self._noticed, self._since = signal.Signals(number), time.monotonic()
        elif number == signal.SIGTERM and not self._saved and time.monotonic() - self._since > GRACE:
            signal.signal(number, self._previous.get(signal.Signals(number)) or signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # half a step cannot be resumed
        noted = torch.tensor(float(self._noticed is not None), device=pl_module.device)
        if not bool(trainer.strategy.reduce(noted, reduce_op="max")):
            return
        save_now(trainer)
        self._saved = True
        trainer.strategy.barrier("preemption")
        reason = self._noticed.name if self._noticed is not None else "a signal to another rank"
        log.warning("%s: saved at step %d, stopping", reason, trainer.global_step)
        if self.requeue and trainer.is_global_zero:
            requeue_job(os.environ)
        trainer.limit_val_batches = 0  # a run that stops early would validate first, which takes too long here
        trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


def _checkpointing(trainer: L.Trainer) -> ModelCheckpoint | None:
    found = (c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.dirpath)
    return next(found, None)


def save_now(trainer: L.Trainer) -> None:
    """Let the run's ``ModelCheckpoint`` write a checkpoint of this step, with its names and its clearing away."""
    callback = _checkpointing(trainer)
    assert callback is not None
    if callback._last_global_step_saved == trainer.global_step:
        return
    # the public way, trainer.save_checkpoint, would leave files that nobody ever removes
    candidates = callback._monitor_candidates(trainer)
    callback._save_topk_checkpoint(trainer, candidates)
    callback._save_last_checkpoint(trainer, candidates)


def requeue_job(environment: Mapping[str, str]) -> bool:
    """``scontrol requeue`` for the Slurm job of this process; whether it was asked for and accepted."""
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        return False
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    command = ["scontrol", "requeue", job]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        problem = result.stderr.strip() or f"exit code {result.returncode}" if result.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem is None:
        log.warning("asked Slurm to start job %s again", job)
        return True
    log.error("%s failed (%s); the checkpoint is saved: submit the same script again", " ".join(command), problem)
    return False
