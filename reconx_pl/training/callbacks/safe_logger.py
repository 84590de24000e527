"""Lightning's TensorBoard logger for disks that may be full."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

log = logging.getLogger(__name__)


class SafeTensorBoardLogger(TensorBoardLogger):
    """As Lightning's ``TensorBoardLogger``, with its options; curves that cannot be written do not end a run.

    The curves then have a gap, which the log mentions once, and go on in another file when there is room again.
    """

    _failing = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self._going_on():
            super().log_metrics(metrics, step)

    def save(self) -> None:
        with self._going_on():
            super().save()
            self._failing = False

    def finalize(self, status: str) -> None:
        with self._going_on():
            super().finalize(status)

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._failing:
                log.error("curves cannot be written to %s (%s); training goes on without them", self.log_dir, error)
            experiment: Any = None  # its thread has ended: the next value opens another file
            self._experiment, self._failing = experiment, True
