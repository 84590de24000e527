"""A callback that writes down which clips each rank trained on, and a hash of the weights it ended with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L

from reconx_pl.training.checkpoints import painter_identity


class KeyRecorder(L.Callback):
    """Appends a line ``[step, keys]`` a batch to ``folder/rank<r>.jsonl`` and writes ``folder/rank<r>.weights``."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        with (self.folder / f"rank{trainer.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([trainer.global_step, list(batch["key"])]) + "\n")

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        (self.folder / f"rank{trainer.global_rank}.weights").write_text(painter_identity(pl_module.painter()))
