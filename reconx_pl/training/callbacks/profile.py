"""Where a training step spends its time: a trace of a few steps in the run's folder."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.profilers import PyTorchProfiler
from torch.profiler import schedule

from reconx_pl.errors import ConfigurationError


class TraceProfiler(PyTorchProfiler):
    """Traces a few steps of ``fit`` once, as ``fit-profile-*.pt.trace.json`` for TensorBoard, Perfetto or Chrome.

    A traced step is slower than others, and its trace takes tens of megabytes at full size.

    Args:
        wait: batches before: the first ones allocate, compile and load.
        warmup: batches that are traced and thrown away.
        active: batches that are kept.
        memory: trace allocations as well.
        shapes: note the shapes of the inputs of every operation.
        folder: of the traces; None takes the run's folder.
    """

    def __init__(
        self,
        wait: int = 10,
        warmup: int = 2,
        active: int = 3,
        memory: bool = False,
        shapes: bool = False,
        folder: Path | None = None,
    ) -> None:
        if wait < 0 or warmup < 0 or active < 1:
            raise ConfigurationError(
                f"wait and warmup are 0 or more and active 1 or more, got {wait}, {warmup}, {active}"
            )
        super().__init__(
            folder,
            "profile",
            schedule=schedule(wait=wait, warmup=warmup, active=active, repeat=1),
            profile_memory=memory,
            record_shapes=shapes,
        )
