"""Arrays and bytes of a clip's members, checked: plain ``.npy``, which nothing unpickles."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reconx_pl.errors import BadDataError, ConfigurationError

REMEDY = "delete the shard and run the same pack command again"


def place_of(source: str, key: object) -> str:
    """A clip of a shard, as messages call it."""
    return source if key is None else f"{source}: clip {key}"


def member_bytes(members: Mapping[str, Any], name: str, where: str) -> bytes:
    """A member that has to be there.

    Raises:
        BadDataError: it is not.
    """
    if name not in members:
        raise BadDataError(f"{where}: member .{name} is missing; {REMEDY}")
    return members[name]


def array_bytes(values: Tensor, shape: tuple[int, ...], where: str, dtype: str = "<f4", *, far: bool = False) -> bytes:
    """The bytes of an array of finite numbers; with ``far`` infinity may be among them.

    Raises:
        ConfigurationError: it has another shape, or other values.
    """
    array = np.ascontiguousarray(values.detach().cpu().numpy())
    if array.dtype != np.uint8:
        with np.errstate(over="ignore"):  # told below, by name
            array = array.astype(dtype, copy=False)
    if array.shape != shape or not _usable(array, far):
        raise ConfigurationError(f"{where} must be {shape} finite numbers, got {array.shape}")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _usable(array: np.ndarray, far: bool) -> bool:
    return bool((np.isfinite(array) | (far & (array == np.inf))).all())


def float_array(
    members: Mapping[str, Any], name: str, where: str, shape: tuple[int | None, ...], *, far: bool = False
) -> Tensor:
    """``plain_array`` of either precision, as float32."""
    return plain_array(members, name, where, ("float32", "float16"), shape, far=far).float()


def plain_array(
    members: Mapping[str, Any],
    name: str,
    where: str,
    dtype: str | tuple[str, ...],
    shape: tuple[int | None, ...],
    *,
    far: bool = False,
) -> Tensor:
    """The array of a member; None in ``shape`` stands for any size, and ``far`` lets infinity be among its numbers.

    Raises:
        BadDataError: it is missing, no plain array of this type and shape, or has other values.
    """
    data = member_bytes(members, name, where)
    try:
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise BadDataError(f"{where}: .{name} is not a plain .npy array ({error}); {REMEDY}") from error
    fits = len(array.shape) == len(shape) and all(
        want in (None, have) for have, want in zip(array.shape, shape, strict=True)
    )
    dtypes = (dtype,) if isinstance(dtype, str) else dtype
    if not fits or array.dtype.name not in dtypes:
        wanted = ", ".join("N" if size is None else str(size) for size in shape)
        raise BadDataError(
            f"{where}: .{name} is {array.dtype} {array.shape}, it must be {' or '.join(dtypes)} ({wanted}); {REMEDY}"
        )
    if not _usable(array, far):
        raise BadDataError(f"{where}: .{name} has NaN or infinite values; {REMEDY}")
    return torch.from_numpy(array)
