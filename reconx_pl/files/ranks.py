"""Work that the ranks of a process group finish together or give up together."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch.distributed as dist
from torch import Tensor, nn

from reconx_pl.errors import ConfigurationError, OtherRankError


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


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is spread over the ranks of a process group."""
    # who made such a tensor has imported this, which takes half as long as torch
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def built_class(module: nn.Module) -> type:
    """The class that a module was built with: a sharded one has a class of its own over it, made on the spot."""
    sharding = sys.modules.get("torch.distributed.fsdp")
    if sharding is None:
        return type(module)
    return next(kind for kind in type(module).__mro__ if not issubclass(kind, sharding.FSDPModule))


def process_place(
    rank: int | None = None, world_size: int | None = None, environment: Mapping[str, str] | None = None
) -> tuple[int, int]:
    """Number of this process and of all: as given, else of a Slurm array, else of torchrun, else (0, 1).

    Raises:
        ConfigurationError: one of the two alone, or a rank that is out of range.
    """
    found = os.environ if environment is None else environment
    if (rank is None) != (world_size is None):
        raise ConfigurationError("give both rank and world_size, or neither")
    if rank is None or world_size is None:
        if "SLURM_ARRAY_TASK_ID" in found and "SLURM_ARRAY_TASK_COUNT" in found:
            step = int(found.get("SLURM_ARRAY_TASK_STEP", 1))
            first = int(found.get("SLURM_ARRAY_TASK_MIN", 0))
            rank, world_size = (int(found["SLURM_ARRAY_TASK_ID"]) - first) // step, int(found["SLURM_ARRAY_TASK_COUNT"])
        elif "RANK" in found and "WORLD_SIZE" in found:
            rank, world_size = int(found["RANK"]), int(found["WORLD_SIZE"])
        else:
            rank, world_size = 0, 1
    if not 0 <= rank < world_size:
        raise ConfigurationError(
            f"process {rank} of {world_size}: the rank lies in 0..world_size-1; with an array of irregular numbers "
            "give rank and world_size"
        )
    return rank, world_size
