"""Who renders: numba kernels on the CPU, plain torch on every device.

The kernels run in Python's threads, not in numba's: a data loader's worker, forked from a process that has used OpenMP,
may not use it again, and rendering conditions is a worker's task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import ModuleType
from typing import Any, Literal

import torch

from reconx_pl.errors import BackendUnavailableError, ConfigurationError

Backend = Literal["auto", "numba", "torch"]


def chosen_backend(backend: Backend, device: torch.device) -> Literal["numba", "torch"]:
    """ "auto" is numba for tensors on the CPU, else torch.

    Raises:
        ConfigurationError: there is no such backend.
        BackendUnavailableError: numba is asked for, and the tensors are not on the CPU.
    """
    if backend not in ("auto", "numba", "torch"):
        raise ConfigurationError(f'a backend is "auto", "numba" or "torch", not {backend!r}')
    if backend == "numba" and device.type != "cpu":
        raise BackendUnavailableError(f'numba cannot render tensors on {device}; move them to the CPU, or take "torch"')
    if backend == "auto":
        return "numba" if device.type == "cpu" else "torch"
    return backend


@cache
def kernels() -> ModuleType:
    """The module of the kernels: numba loads or compiles each (some seconds, once) at its first call.

    Raises:
        BackendUnavailableError: numba finds no folder that it may write its cache into.
    """
    try:
        from reconx_pl.geometry.rendering import numba_kernels
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        raise BackendUnavailableError(
            f"numba cannot cache the kernels of rendering ({error}): set NUMBA_CACHE_DIR to a folder that is writable"
        ) from error
    return numba_kernels


def in_threads(call: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> None:
    """Call with each of ``arguments``, in as many threads as torch uses."""
    threads = torch.get_num_threads()
    if threads == 1:
        for each in arguments:
            call(*each)
        return
    with ThreadPoolExecutor(threads) as pool:
        for result in [pool.submit(call, *each) for each in arguments]:
            result.result()
