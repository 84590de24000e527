"""A whole model in one file: safetensors with a header that says which network it is and how it generates.

Models that come with the package have this form, and are found by name (``files.weights.SHIPPED``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from reconx_pl.diffusion.weights.building import build_network, network_config
from reconx_pl.diffusion.weights.generation import GenerationDefaults, parse_generation
from reconx_pl.diffusion.weights.load import load_network
from reconx_pl.diffusion.weights.writing import PRECISIONS, Precision, write_safetensors
from reconx_pl.errors import BadWeightsError
from reconx_pl.files.weights import readable

if TYPE_CHECKING:
    from reconx_pl.diffusion.model import ReconXDiffusion

NETWORK, GENERATION = "network", "generation"  # of the header's metadata, both JSON


def is_model_file(path: Path) -> bool:
    """Whether a file is of this form; one that cannot be read is not."""
    try:
        return path.suffix == ".safetensors" and path.is_file() and NETWORK in _header(path)
    except BadWeightsError:
        return False


def write_model_file(
    network: ReconXDiffusion, generation: GenerationDefaults, path: Path, dtype: Precision = "16"
) -> None:
    """Write a network, frozen encoders included.

    Args:
        network: on any device.
        generation: how it generates unless told otherwise.
        path: the file; replaced whole or not at all.
        dtype: of the floating tensors.

    Raises:
        ConfigurationError: a part of the network cannot say how it was built.
    """
    header = {NETWORK: json.dumps(network_config(network)), GENERATION: generation.text()}
    write_safetensors(network.state_dict(), path, PRECISIONS[dtype], header)


def described_network(path: Path) -> Mapping[str, Any]:
    """``class_path`` and ``init_args`` of the network in the file.

    Raises:
        MissingWeightsError: no such file.
        BadWeightsError: it is of another form.
    """
    header = _header(path)
    try:
        described = json.loads(header[NETWORK])
        if not isinstance(described, dict):
            raise TypeError(f"a network is described by a mapping, not by {type(described).__name__}")
    except (KeyError, TypeError, ValueError) as error:
        raise BadWeightsError(
            f"{path}: its header does not say which network it is ({error}); `reconx weights export` writes such files"
        ) from error
    return described


def described_generation(path: Path) -> GenerationDefaults:
    """How the model in the file generates unless told otherwise.

    Raises:
        MissingWeightsError: no such file.
        BadWeightsError: it cannot be read.
    """
    stated = _header(path).get(GENERATION)
    return GenerationDefaults() if stated is None else parse_generation(stated, path)


def load_model_file(
    path: Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> ReconXDiffusion:
    """The network of the file, in eval mode.

    Args:
        path: as ``write_model_file`` writes it.
        device: where the network goes.
        dtype: of its floating parameters; None is float32: the file's half precision is for storage.

    Raises:
        MissingWeightsError: no such file.
        BadWeightsError: a configuration that reaches out of this package, or weights that do not fit it.
    """
    network = build_network(described_network(path), str(path))
    load_network(network, path, with_frozen_encoders=True, assign=True)
    return network.to(device=device, dtype=dtype or torch.float32).eval()


def _header(path: Path) -> Mapping[str, str]:
    from safetensors import safe_open

    with readable(path), safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})
