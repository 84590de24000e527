"""Writes safetensors one tensor after the other, so that a model need not fit into memory in its new type.

The layout is that of the safetensors documentation: header length (8 bytes, little endian), JSON header, data. The
format has no gaps, so odd-sized tensors go last: all others begin at multiples of 64 bytes, as torch's own memory does.
Matrix kernels give results that differ in the last bits for mapped weights that do not.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from reconx_pl.errors import BadWeightsError

Precision = Literal["32", "bf16", "16"]
PRECISIONS: dict[Precision, torch.dtype] = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}
ALIGNMENT = 64  # bytes
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_safetensors(
    tensors: Mapping[str, Tensor],
    path: Path,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write ``tensors`` to ``path``, whole or not at all.

    Args:
        tensors: any device, mapped files included; one at a time is brought into memory.
        path: the file; its folder is made.
        dtype: floating tensors are cast to it; None keeps theirs.
        metadata: of the header.

    Raises:
        BadWeightsError: a tensor of a type that the format does not have here.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0

    def kind_of(tensor: Tensor) -> torch.dtype:
        return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype

    def size_of(tensor: Tensor) -> int:
        return math.prod(tensor.shape) * kind_of(tensor).itemsize

    ordered = dict(sorted(tensors.items(), key=lambda item: size_of(item[1]) % ALIGNMENT != 0))
    for name, tensor in ordered.items():
        kind = kind_of(tensor)
        if kind not in _TYPES:
            raise BadWeightsError(f"{path}: {name} is {kind}, which is not written to safetensors here")
        end = offset + size_of(tensor)
        header[name] = {"dtype": _TYPES[kind], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-(8 + len(encoded)) % ALIGNMENT)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            for tensor in ordered.values():
                data = tensor.detach().to("cpu", kind_of(tensor)).contiguous().reshape(-1).view(torch.uint8)
                file.write(data.numpy().data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
