"""Weights of Depth-Anything-3: the hub's file or folder, and our own file; strictly, nothing unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from reconx_pl.errors import BadWeightsError, ConfigurationError
from reconx_pl.files.weights import FOLDER_FILE, check_fit, read_tensors, stated_config
from reconx_pl.geometry.da3.config import Da3Config
from reconx_pl.geometry.da3.model import DepthAnything3
from reconx_pl.geometry.da3.names import PREFIX, one_name_each, to_official_name
from reconx_pl.geometry.da3.released import ELSEWHERE, config_of_folder, config_of_width

CONFIG_FILE = "config.json"
METADATA_KEY = "reconx_da3"  # of our own files: the configuration, as JSON
_CAMERA_TOKEN = "backbone.pretrained.camera_token"


def read_weights(path: str | Path) -> tuple[Da3Config | None, dict[str, Tensor]]:
    """The configuration that a file states and its tensors under the released names, mapped and not copied.

    Args:
        path: a folder in the hub's form, ``config.json`` and ``model.safetensors``; or a ``.safetensors`` file: one
            that ``save_weights`` wrote states its configuration, the hub's does not (None).

    Raises:
        MissingWeightsError: there is no such file.
        BadWeightsError: it is empty, cut short, of another network, or no ``.safetensors``.
    """
    path = Path(path)
    if path.is_dir():
        return config_of_folder(path / CONFIG_FILE), read_tensors(path / FOLDER_FILE)
    if path.suffix != ".safetensors" and path.exists():
        raise BadWeightsError(f"{path}: Depth-Anything-3 is released as .safetensors, and nothing else is read")
    state = read_tensors(path)
    return stated_config(path, METADATA_KEY, Da3Config), state


def load_released(path: str | Path, config: Da3Config | None = None) -> DepthAnything3:
    """The network of a released file or of one that ``save_weights`` wrote; strictly, on the CPU.

    Its tensors are mapped from the file: `reconx weights fetch da3-base`.

    Args:
        path: see ``read_weights``.
        config: of the network, for a file that does not say it; None then takes the released one of that width.

    Raises:
        MissingWeightsError: there is no such file.
        BadWeightsError: it cannot be read, or does not fit.
        ConfigurationError: ``config`` is not what the file states.
    """
    stated, state = read_weights(path)
    if config is not None and stated is not None and config != stated:
        raise ConfigurationError(f"{path} states {stated}, which is not the given {config}; leave out the latter")
    with torch.device("meta"):
        model = DepthAnything3(stated or config or _config_of(state, str(path)))
    load_state(model, state, str(path), assign=True)
    return model.eval()


def _config_of(state: Mapping[str, Tensor], source: str) -> Da3Config:
    token = state.get(PREFIX + _CAMERA_TOKEN, state.get(_CAMERA_TOKEN))
    if token is None:
        raise BadWeightsError(f"{source}: has no {PREFIX}{_CAMERA_TOKEN}, which every network here has. {ELSEWHERE}")
    return config_of_width(token.shape[-1], source)


def load_state(model: DepthAnything3, state: Mapping[str, Tensor], source: str, assign: bool = False) -> None:
    """Give ``model`` the tensors of ``state``; every one has to have its place, and every place its tensor.

    Args:
        model: receives them.
        state: under the released names, with or without ``model.`` in front; of the LayerNorm that four stacks share,
            one name or several that agree; what nothing uses may be there or not.
        source: file named in the error.
        assign: take the tensors themselves instead of copying (for a model on the meta device).

    Raises:
        BadWeightsError: lists missing and unexpected names, as released, and shapes that differ.
    """
    own = model.state_dict()
    official = {to_official_name(name): name for name in own}
    found = one_name_each(state, source)
    check_fit(
        {theirs: own[ours] for theirs, ours in official.items()}, found, source, "Depth-Anything-3", remedy=ELSEWHERE
    )
    model.load_state_dict({official[name]: value for name, value in found.items()}, assign=assign)


def save_weights(model: DepthAnything3, path: str | Path) -> None:
    """Write a ``.safetensors`` file under the released names, with the configuration in its metadata.

    Released tensors that nothing uses are not in it. Released weights stay under their licence in this file too.
    """
    from safetensors.torch import save_file

    state = {PREFIX + to_official_name(name): value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, Path(path), metadata={METADATA_KEY: json.dumps(asdict(model.config)), "format": "pt"})
