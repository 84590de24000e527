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

from reconx_pl.errors import CheckpointError, ConfigurationError
from reconx_pl.training.checkpointing.safe_checkpoint import SafeModelCheckpoint

log = logging.getLogger(__name__)
GRACE = 5.0  # seconds
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class SignalNote:
    """Takes a note of a scheduler's signals, and does nothing else, from ``listen`` to ``restore``.

    A SIGTERM that comes more than ``GRACE`` seconds after the first signal, and before ``answered``, goes to whoever
    handled it before (it ends the process); schedulers send one signal several times.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.answered = False
        self._since = 0.0
        self._previous: dict[int, Any] = {}

    def listen(self) -> None:
        """Become the handler; also where another one was installed meanwhile."""
        for number in SIGNALS:
            present = signal.signal(number, self.take)
            if number not in self._previous:
                self._previous[number] = present

    def take(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()
        elif number == signal.SIGTERM and not self.answered and time.monotonic() - self._since > GRACE:
            signal.signal(number, self._previous.get(number) or signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def restore(self) -> None:
        """Give the signals back to those who had them, and forget."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        self.signal, self.answered = None, False


NOTE = SignalNote()  # signals belong to the process


class PreemptionCallback(L.Callback):
    """On SIGUSR1 or SIGTERM: a checkpoint at the end of the optimizer step, stop, ``scontrol requeue`` in a Slurm job.

    The run ends with exit code 0. Started again with ``ckpt_path: last`` it goes on with the next step. It needs the
    time of the longest optimizer step and of one checkpoint; a signal in the middle of a validation waits for its end
    too. A signal that comes before the first step (``train.py`` listens from its start) waits for that step.
    See ``SignalNote`` for a second SIGTERM.

    Slurm ends a job when it requeues it, so that is asked for last, when the loop is over and the logs are written.
    Where the checkpoint cannot be written the job is requeued all the same, and goes on from the one before.

    Outside Slurm it saves and stops, so that ``kill`` loses nothing. Ranks agree by one small reduction a step.

    Args:
        requeue: in a Slurm job ask for another start; False only saves and stops.
    """

    def __init__(self, requeue: bool = True) -> None:
        self.requeue = requeue
        self._stopped = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if _checkpoints(trainer) is None:
            raise ConfigurationError("PreemptionCallback needs a SafeModelCheckpoint to save with")
        self._stopped = False
        NOTE.listen()

    # Lightning installs handlers of its own after ``setup``, which talk to other ranks from inside the handler
    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        NOTE.listen()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        NOTE.listen()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches or self._stopped:
            return  # half a step cannot be resumed
        noted = torch.tensor(float(NOTE.signal is not None), device=pl_module.device)
        if not bool(trainer.strategy.reduce(noted, reduce_op="max")):
            return
        checkpoints = _checkpoints(trainer)
        assert checkpoints is not None
        reason = NOTE.signal.name if NOTE.signal is not None else "a signal to another rank"
        try:
            checkpoints.save_now(trainer)
            log.warning("%s: saved at step %d, stopping", reason, trainer.global_step)
        except CheckpointError as error:
            log.error("%s: stopping at step %d without a checkpoint of it: %s", reason, trainer.global_step, error)
        NOTE.answered = self._stopped = True
        trainer.strategy.barrier("preemption")
        trainer.limit_val_batches = 0  # a run that stops early would validate first, which takes too long here
        trainer.should_stop = True

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        for logger in trainer.loggers if self._stopped else ():
            logger.save()
        if not (self._stopped and self.requeue and trainer.is_global_zero and requeue_job(os.environ)):
            NOTE.restore()  # Slurm now sends SIGTERM, and this process is about to end by itself

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        NOTE.restore()


def _checkpoints(trainer: L.Trainer) -> SafeModelCheckpoint | None:
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, SafeModelCheckpoint)), None)


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
