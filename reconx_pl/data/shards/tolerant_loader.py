"""A validation pass whose data may fail while training goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import cast

from torch.utils.data import DataLoader

from reconx_pl.types import ClipBatch

log = logging.getLogger(__name__)
FAILED = cast(ClipBatch, {})  # in the place of a batch that could not be read


class TolerantLoader:
    """Iterates a loader; if reading fails half-way it logs the error and yields ``FAILED`` for each batch that is left.

    The number of batches stays, so that ranks which wait for each other at each of them still do.

    Args:
        loader: of known length.
        tolerates: asked when reading has failed; False passes the error on.
    """

    def __init__(self, loader: DataLoader[ClipBatch], tolerates: Callable[[], bool]) -> None:
        self.loader, self.tolerates = loader, tolerates

    def __len__(self) -> int:
        """Batches."""
        return len(self.loader)

    def __iter__(self) -> Iterator[ClipBatch]:
        given = 0
        try:
            for batch in self.loader:
                yield batch
                given += 1
        except Exception:
            if not self.tolerates():
                raise
            log.exception("reading held-out clips failed after %d of %d batches; training goes on", given, len(self))
            for _ in range(len(self) - given):
                yield FAILED
