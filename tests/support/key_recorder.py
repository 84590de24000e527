"""A callback that writes down what each rank trained on and how, and a hash of the weights it ended with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L

from reconx_pl.training.models import live_identity


class KeyRecorder(L.Callback):
    """Appends ``[step, keys]`` a batch to ``folder/rank<r>.jsonl`` and ``[step, [loss, rate]]`` to
    ``folder/rank<r>.curves.jsonl``; writes ``folder/rank<r>.weights`` at the end.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with (self.folder / f"rank{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([trainer.global_step, list(batch["key"])]) + "\n")
        curve = [float(outputs["loss"].detach()), trainer.optimizers[0].param_groups[0]["lr"]]
        with (self.folder / f"rank{trainer.global_rank}.curves.jsonl").open("a") as file:
            file.write(json.dumps([trainer.global_step, curve]) + "\n")

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        (self.folder / f"rank{trainer.global_rank}.weights").write_text(live_identity(pl_module.view_generator()))
