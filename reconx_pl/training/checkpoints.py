"""What a training run writes of its network, and who painted. Loading is ``reconx_pl.diffusion.weights``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from reconx_pl.diffusion.painter import DiffusionPainter
from reconx_pl.training.stages import frozen_names


def own_weights(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that belong to this model: all but those of pretrained towers, which keep their own files."""
    towers = frozen_names(network)
    return {name: tensor for name, tensor in network.state_dict().items() if name not in towers}


def painter_identity(painter: DiffusionPainter) -> str:
    """Who painted: a hash of the weights, and the sampling settings. Other weights never inherit these results."""
    digest = hashlib.sha256()
    for name, tensor in sorted(own_weights(painter.network).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"weights {digest.hexdigest()[:16]}, {painter.config}"


def save_network(network: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the network's weights as ``.safetensors``, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(
        {name: tensor.contiguous() for name, tensor in own_weights(network).items()}, partial, dict(metadata or {})
    )
    partial.replace(path)
