"""Weights of the network in and out of files, strictly and without unpickling."""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reconx_pl.diffusion.painter import DiffusionPainter
from reconx_pl.errors import BadWeightsError, MissingWeightsError
from reconx_pl.training.stages import GROUPS, frozen_names

log = logging.getLogger(__name__)
PREFIX = "network."  # of ReconXDiffusion inside ReconXModule


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a Lightning checkpoint (``.ckpt``) or a ``.safetensors`` file under the network's own names.

    Raises:
        MissingWeightsError: no such file.
        BadWeightsError: not a checkpoint of this package, or a damaged one.
    """
    path = Path(path)
    if path.is_dir():
        raise BadWeightsError(f"{path} is a folder; name a .ckpt or .safetensors file in it")
    if not path.is_file():
        raise MissingWeightsError(f"no weights at {path}; train the stage before this one, or correct the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    except (SafetensorError, RuntimeError, KeyError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise BadWeightsError(
            f"{path} cannot be read as a checkpoint of this package ({error}); make it anew"
        ) from error
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}


def load_network(network: nn.Module, path: Path) -> None:
    """Load weights into the network, strict both ways.

    One exception: a file without any structure parameter (a base model that was never trained with one) leaves the
    structure branch as it was born.

    Raises:
        MissingWeightsError, BadWeightsError: as ``read_weights``; or keys or shapes that do not fit, which are listed.
    """
    state = read_weights(path)
    own = own_weights(network)
    towers = frozen_names(network)
    state = {name: tensor for name, tensor in state.items() if name not in towers}
    born = {name for name in own if GROUPS["structure"].search(name)}
    if born and not born & state.keys():
        log.info("%s has no structure branch: its %d tensors start from their initial values", path, len(born))
        state |= {name: own[name] for name in born}
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        raise BadWeightsError(f"{path} does not fit the model. {_differences(missing, unexpected, shapes)}")
    network.load_state_dict(state, strict=False)  # strict already, but for the towers
    log.info("loaded %d tensors from %s", len(state), path)


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


def _differences(missing: list[str], unexpected: list[str], shapes: list[str], most: int = 8) -> str:
    parts = []
    for title, names in (("Missing", missing), ("Unexpected", unexpected), ("Of another shape", shapes)):
        if names:
            more = f" and {len(names) - most} more" if len(names) > most else ""
            parts.append(f"{title} ({len(names)}): {', '.join(names[:most])}{more}.")
    return " ".join(parts)
