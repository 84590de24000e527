"""A callback that sends its own process a signal at a chosen step, for tests of what a run survives."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L


class SignalAt(L.Callback):
    """Reads ``folder/signal.json``, ``[rank, step, name]``, and removes it when the signal is sent.

    The signal comes in the middle of the step, before its optimizer step is over; at step -1, when callbacks are made.
    """

    def __init__(self, folder: str) -> None:
        self.order = Path(folder) / "signal.json"
        if self.order.is_file() and json.loads(self.order.read_text())[1] == -1:
            name = json.loads(self.order.read_text())[2]
            self.order.unlink()
            os.kill(os.getpid(), signal.Signals[name])

    def on_before_zero_grad(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        if not self.order.is_file():
            return
        rank, step, name = json.loads(self.order.read_text())
        if trainer.global_rank == rank and trainer.global_step == step:
            self.order.unlink()
            os.kill(os.getpid(), signal.Signals[name])


def order(folder: Path, rank: int, step: int, name: str) -> None:
    (folder / "signal.json").write_text(json.dumps([rank, step, name]))
