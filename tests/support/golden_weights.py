"""Draws the weights of those golden kits that are stored without them: what the networks are given, not what they give.

The weights of the reference models' small networks are random numbers, drawn in the order of the parameters. Such a kit
has its recorded numbers in ``NAME_stored.safetensors`` and in ``NAME.json``, under "drawn", seeds and a checksum; the
whole ``NAME.safetensors`` is written beside them when it is first asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SHARPER = ("to_q.weight", "to_k.weight", "to_k_ip.weight")  # so that attention is far from uniform
STORED = "_stored.safetensors"


def complete_kits(folder: Path) -> None:
    """Write the kits of a folder whose weights are drawn and not yet there; a warning names those that cannot be."""
    for stored in sorted(folder.glob(f"*{STORED}")):
        whole = folder / f"{stored.name.removesuffix(STORED)}.safetensors"
        if whole.exists():
            continue
        description = json.loads(whole.with_suffix(".json").read_text(encoding="utf-8"))
        weights = drawn_weights(description)
        if checksum(weights) != description["drawn"]["sha256"]:
            warnings.warn(
                f"torch {torch.__version__} draws other numbers than the weights of {whole.stem}: its tests are "
                "skipped. Set RECONX_GOLDEN to a folder of whole kits",
                stacklevel=2,
            )
            continue
        unfinished = whole.with_suffix(f".{os.getpid()}.partial")
        save_file(weights | load_file(stored), unfinished)
        unfinished.replace(whole)


def lacks_weights(description: Path) -> bool:
    """Whether a kit is stored without its weights, and they could not be drawn."""
    stored = description.with_name(f"{description.stem}{STORED}")
    return stored.exists() and not description.with_suffix(".safetensors").exists()


def drawn_weights(description: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a kit, by official name, float32.

    Args:
        description: content of its ``.json``. "drawn" has "parts", each a "seed" and an "order" of name prefixes; what
            belongs to a prefix that begins with "-" is drawn and thrown away (parts that the reference deletes).
    """
    shapes = {name: entry["shape"] for name, entry in description["tensors"].items() if "shape" in entry}
    weights: dict[str, Tensor] = {}
    for part in description["drawn"]["parts"]:
        generator = torch.Generator().manual_seed(part["seed"])
        for prefix in part["order"]:
            for name in _under(prefix.removeprefix("-"), shapes):
                value = _scaled(name, torch.randn(shapes[name], generator=generator))
                if not prefix.startswith("-"):
                    weights[name] = value
    return weights


def checksum(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].numpy().tobytes())
    return digest.hexdigest()


def _under(prefix: str, names: Mapping[str, Sequence[int]]) -> list[str]:
    return [name for name in names if name.startswith(prefix)]


def _scaled(name: str, normal: Tensor) -> Tensor:
    if normal.ndim >= 2:
        return normal * (1.4 if name.endswith(SHARPER) else 1.0) / math.sqrt(normal[0].numel())
    if name.endswith(".alpha"):  # gate of the image attention
        return normal * 0.6
    if name.endswith(".weight"):  # gain of a norm
        return 1 + 0.2 * normal
    return normal * 0.1
