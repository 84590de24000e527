"""Names in weights and configurations that earlier versions wrote, and what they are called today."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

TENSORS = {"image_tokens.tower.": "image_tokens.encoder."}  # beginnings of the names of a ``ReconXDiffusion``
CLASSES = {"reconx_pl.conditioning.": "reconx_pl.diffusion.conditioning."}


def present_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a ``ReconXDiffusion`` under the names of today."""
    return {_present(name, TENSORS): tensor for name, tensor in state.items()}


def present_class(path: str) -> str:
    """A ``class_path`` of a ``config.json`` as it is today."""
    return _present(path, CLASSES)


def _present(name: str, table: Mapping[str, str]) -> str:
    for before, now in table.items():
        if name.startswith(before):
            return now + name.removeprefix(before)
    return name
