"""Steps whose loss or gradients are not finite are left out, counted and written down."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from reconx_pl.errors import BadDataError, ConfigurationError
from reconx_pl.training.gradients import gradient_norm

log = logging.getLogger(__name__)


class FiniteGuard(L.Callback):
    """Logs ``train/grad_norm``; leaves out optimizer steps whose loss or gradients are not finite.

    A step that is left out counts as a step: the learning rate, the stream of clips and the random draws go on, so that
    a run stays resumable, and weights, moments and averages stay as they were. The clips of its batch are written to
    ``nonfinite/step<step>-rank<rank>.json`` in the run's folder.

    Args:
        patience: so many such steps in a row end the run.

    Raises:
        BadDataError: ``patience`` steps in a row; names the folder with the clips.
    """

    def __init__(self, patience: int = 10) -> None:
        if patience < 1:
            raise ConfigurationError(f"patience is at least 1, got {patience}")
        self.patience = patience
        self.in_a_row = self.total = 0
        self._keys: list[str] = []
        self._loss = torch.zeros(())

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self.in_a_row, "total": self.total}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.in_a_row, self.total = state_dict["in_a_row"], state_dict["total"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._keys, self._loss = [], torch.zeros((), device=pl_module.device)
        self._keys += batch["key"]

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._loss = self._loss + loss.detach()  # of the batches of a step

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        norm = gradient_norm(optimizer)  # gradients are averaged over ranks by now: all see the same
        losses = trainer.strategy.reduce(self._loss.clone(), reduce_op="sum")
        if bool(torch.isfinite(norm) & torch.isfinite(losses)):
            self.in_a_row = 0
            pl_module.log("train/grad_norm", norm)
            return
        self.in_a_row, self.total = self.in_a_row + 1, self.total + 1
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None  # the optimizer passes over such parameters, moments and decay included
        for logger in trainer.loggers:
            logger.log_metrics({"train/nonfinite_steps": self.total}, trainer.global_step)
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "nonfinite"
        log.warning(
            "step %d is left out: loss or gradients are not finite (%g, gradient norm %g); its clips, in %s: %s",
            trainer.global_step, self._loss, norm, folder, ", ".join(self._keys),
        )  # fmt: skip
        self._write_down(folder, trainer, norm)
        if self.in_a_row >= self.patience:
            raise BadDataError(
                f"{self.in_a_row} steps in a row had a loss or gradients that are not finite; none of them touched the "
                f"weights. Look at the clips in {folder}, lower optimizer.lr, or train in float32"
            )

    def _write_down(self, folder: Path, trainer: L.Trainer, norm: Tensor) -> None:
        facts = {"step": trainer.global_step, "loss": str(self._loss), "norm": str(float(norm)), "clips": self._keys}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"step{trainer.global_step:07d}-rank{trainer.global_rank}.json"
            path.write_text(json.dumps(facts))
        except OSError as error:
            log.error("the clips of this step cannot be written down: %s", error)
