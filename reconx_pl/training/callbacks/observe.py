"""What a training run shows of itself beside loss, learning rate and throughput."""

from __future__ import annotations

import logging
import resource
import time
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.training.module import ReconXModule
from reconx_pl.training.plan.meta_model import build_meta_model
from reconx_pl.training.plan.peaks import peak_flops
from reconx_pl.training.plan.step_flops import count_step

log = logging.getLogger(__name__)


class ObserveCallback(L.Callback):
    """Logs, every ``trainer.log_every_n_steps`` steps, over all ranks:

    - ``loss_by_step/000-099`` ...: mean loss of the diffusion steps in each range since the last time,
    - ``gates/<layer>``: lambda_F = tanh(alpha) of every cross-attention layer (stage with structure),
    - ``memory/peak_gib``: peak memory of rank 0's device since the last time; of its process, ever, on a processor,
    - ``compute/tflops``: floating point operations a second on each rank, in 1e12, forward and backward as the stage
      needs them, frozen encoders included (``step_flops``, counted once for the first batch); recomputation does not
      count as work, waiting for data counts as time,
    - ``compute/utilisation``: their share of the device's peak, where it is known.

    Args:
        ranges: into how many the diffusion steps are divided.
        peak_tflops: of the device in the run's precision, 1e12 operations a second. None takes the data sheet's for
            bfloat16 on a GPU that ``peaks`` knows, and logs no utilisation otherwise.
    """

    def __init__(self, ranges: int = 10, peak_tflops: float | None = None) -> None:
        if ranges < 1:
            raise ConfigurationError(f"ranges is at least 1, got {ranges}")
        if peak_tflops is not None and peak_tflops <= 0:
            raise ConfigurationError(f"peak_tflops is positive, got {peak_tflops}")
        self.ranges, self.peak_tflops = ranges, peak_tflops
        self._peak: float | None = None
        self._sums: Tensor | None = None  # [2, ranges] loss and count
        self._operations: int | None = None  # of a batch; 0 where they cannot be counted
        self._since = 0.0
        self._batches = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._sums = torch.zeros(2, self.ranges, device=pl_module.device)
        self._peak = self._known_peak(pl_module.device, str(trainer.precision))

    def _known_peak(self, device: torch.device, precision: str) -> float | None:
        if self.peak_tflops is not None:
            return self.peak_tflops * 1e12
        return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" and "bf16" in precision else None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._operations is None:
            module = cast(ReconXModule, pl_module)
            self._operations = 0
            try:
                meta_model = build_meta_model(module.network, module.stage)
                self._operations = count_step(meta_model, batch, module.uses_structure).total
            except Exception as error:  # a network of foreign parts trains all the same
                log.warning("what a step computes cannot be counted and is not logged: %s", error)
        if not self._batches:
            self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module = cast(ReconXModule, pl_module)
        assert self._sums is not None
        steps = module.network.schedule.config.steps
        places = outputs["t"] * self.ranges // steps
        self._sums[0].index_add_(0, places, outputs["per_sample"].float())
        self._sums[1].index_add_(0, places, torch.ones_like(places, dtype=torch.float32))
        self._batches += 1
        at_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if at_step and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(trainer, module, steps)

    def _log(self, trainer: L.Trainer, module: ReconXModule, steps: int) -> None:
        assert self._sums is not None
        sums, counts = trainer.strategy.reduce(self._sums, reduce_op="sum").tolist()
        self._sums = torch.zeros_like(self._sums)
        values: dict[str, float] = {}
        for place, (loss, count) in enumerate(zip(sums, counts, strict=True)):
            if count:
                first, last = place * steps // self.ranges, (place + 1) * steps // self.ranges - 1
                values[f"loss_by_step/{first:03d}-{last:03d}"] = loss / count
        if module.uses_structure:
            values |= gates(module.network.unet)
        values["memory/peak_gib"] = peak_memory(module.device) / 2**30
        if self._operations:
            rate = self._operations * self._batches / (time.perf_counter() - self._since)
            values["compute/tflops"] = rate / 1e12
            if self._peak is not None:
                values["compute/utilisation"] = rate / self._peak
            self._since, self._batches = time.perf_counter(), 0
        # straight to the loggers: what self.log has been given once it writes again at every interval, old or new
        for logger in trainer.loggers:
            logger.log_metrics(values, trainer.global_step - 1)  # beside train/loss, which counts steps from 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since, self._batches = time.perf_counter(), 0  # validation is not training


def gates(unet: torch.nn.Module) -> dict[str, float]:
    """``gates/<layer>``: tanh of every structure gate; of a sharded U-Net every rank has to ask."""
    found = {}
    for name, parameter in unet.named_parameters():
        if name.endswith("structure_gate"):
            value = parameter.detach()
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            layer = name.removesuffix(".attn2.structure_gate").replace(".transformer_blocks", "")
            found[f"gates/{layer}"] = float(torch.tanh(whole))
    return found


def peak_memory(device: torch.device) -> int:
    """Bytes: the device's peak since the last call, or the largest that this process has been."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
