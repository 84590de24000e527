"""What a training run shows of itself beside loss, learning rate and throughput."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.flop_counter import FlopCounterMode

from reconx_pl.diffusion.unet import UNet
from reconx_pl.errors import ConfigurationError
from reconx_pl.training.module import ReconXModule

MATRIX = 2048  # side of the matrices whose product stands for what the device can do


class ObserveCallback(L.Callback):
    """Logs, every ``trainer.log_every_n_steps`` steps, over all ranks:

    - ``loss_by_step/000-099`` ...: mean loss of the diffusion steps in each range since the last time,
    - ``gates/<layer>``: lambda_F = tanh(alpha) of every cross-attention layer (stage with structure),
    - ``memory/peak_gib``: peak memory of rank 0's device since the last time; of its process, ever, on a processor,
    - ``compute/tflops``: floating point operations of the U-Net a second on each rank, in 1e12, forward and backward
      as this stage needs them; recomputation and frozen towers do not count as work. Waiting for data counts as time.
    - ``compute/utilisation``: share of what a product of 2048 x 2048 matrices in the run's precision reached on the
      same device when the run began.

    Args:
        ranges: into how many the diffusion steps are divided.
    """

    def __init__(self, ranges: int = 10) -> None:
        if ranges < 1:
            raise ConfigurationError(f"ranges is at least 1, got {ranges}")
        self.ranges = ranges
        self._sums: Tensor | None = None  # [2, ranges] loss and count
        self._operations = self._peak = self._since = 0.0
        self._batches = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._sums = torch.zeros(2, self.ranges, device=pl_module.device)
        half = "bf16" in str(trainer.precision)
        self._peak = matrix_rate(pl_module.device, torch.bfloat16 if half else torch.float32)
        unet = cast(ReconXModule, pl_module).network.unet

        def look(module: torch.nn.Module, args: tuple[Tensor, ...], given: dict[str, Tensor | None]) -> None:
            seen.remove()
            # counted on a twin without values: a counter around a real step would change its rounding, and a run
            # that is resumed would no longer be the run that was never stopped
            self._operations = unet_operations(unet, args, given)
            self._since, self._batches = time.perf_counter(), 0

        seen = unet.register_forward_pre_hook(look, with_kwargs=True)

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
            values |= {"compute/tflops": rate / 1e12, "compute/utilisation": rate / self._peak}
            self._since, self._batches = time.perf_counter(), 0
        # straight to the loggers: what self.log has been given once it writes again at every interval, old or new
        for logger in trainer.loggers:
            logger.log_metrics(values, trainer.global_step - 1)  # beside train/loss, which counts steps from 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since, self._batches = time.perf_counter(), 0  # validation is not training


def unet_operations(unet: UNet, args: tuple[Tensor, ...], given: Mapping[str, Tensor | None]) -> float:
    """Floating point operations of a training step: forward, and backward to what is trained.

    Args:
        unet: whose parameters say whether they are trained.
        args, given: of a call of ``forward``; their values do not matter.
    """
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    with torch.device("meta"):
        twin = UNet(replace(unet.config, activation_checkpointing=False, compile=False))
        for name, parameter in twin.named_parameters():
            parameter.requires_grad_(name in trained)
        inputs = [_hollow(value) for value in args]
        options = {name: None if value is None else _hollow(value) for name, value in given.items()}
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            twin(*inputs, **options).sum().backward()
    return float(counter.get_total_flops())


def _hollow(value: Tensor) -> Tensor:
    dtype = torch.float32 if value.is_floating_point() else value.dtype  # as the twin's weights
    return torch.empty(value.shape, dtype=dtype, device="meta", requires_grad=value.requires_grad)


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


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of a product of two matrices, the best of three."""
    a = torch.ones(MATRIX, MATRIX, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        _wait(device)
        start = time.perf_counter()
        torch.mm(a, a)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * MATRIX**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
