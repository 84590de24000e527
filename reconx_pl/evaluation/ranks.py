"""Work that the ranks of a process group finish together or give up together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from reconx_pl.errors import OtherRankError


@contextmanager
def all_or_none() -> Iterator[None]:
    """Leave with an error on every rank if there was one on any, so that none waits for a rank that has given up.

    Every rank of the process group has to enter, and there must be no collective inside: a rank that fails would leave
    the others in it. Without a process group it does nothing.

    Raises:
        OtherRankError: this rank succeeded and another did not; that one raises its own error.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        failures: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(failures, None if failure is None else f"{type(failure).__name__}: {failure}")
        found = next((f"rank {rank}: {text}" for rank, text in enumerate(failures) if text is not None), None)
        if failure is None and found is not None:
            raise OtherRankError(found)
    if failure is not None:
        raise failure
