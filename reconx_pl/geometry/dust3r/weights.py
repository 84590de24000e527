"""Weights of DUSt3R: the released ``.pth``, the hub's folder or file, and our own file; strictly, nothing unpickled.

**The released weights are under CC BY-NC-SA 4.0: not for commercial use.**
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reconx_pl.errors import BadWeightsError, ConfigurationError
from reconx_pl.files.weights import FOLDER_FILE, check_fit, read_tensors, readable, stated_config
from reconx_pl.geometry.dust3r.config import Dust3rConfig
from reconx_pl.geometry.dust3r.model import Dust3r
from reconx_pl.geometry.dust3r.names import one_name_each, to_official_name
from reconx_pl.geometry.dust3r.released_config import config_of, parse_model_string, read_hub_config

CONFIG_FILE = "config.json"
METADATA_KEY = "reconx_dust3r"  # of our own files: the configuration, as JSON


def read_weights(path: str | Path) -> tuple[Dust3rConfig | None, dict[str, Tensor]]:
    """The configuration that a file states and its tensors under the released names, mapped and not copied.

    Args:
        path: a released ``.pth``, which holds ``args`` (an ``argparse.Namespace``, the one class that is let through)
            and ``model``; a folder in the hub's form, ``config.json`` and ``model.safetensors``; or a
            ``.safetensors`` file: one that ``save_weights`` wrote states its configuration, the hub's does not (None).

    Raises:
        MissingWeightsError: there is no such file.
        BadWeightsError: it is empty, cut short, of another model, or would have to be unpickled.
    """
    path = Path(path)
    if path.is_dir():
        state = read_tensors(path / FOLDER_FILE)
        return config_of(read_hub_config(path / CONFIG_FILE), str(path / CONFIG_FILE)), state
    if path.suffix == ".safetensors":
        state = read_tensors(path)
        return stated_config(path, METADATA_KEY, Dust3rConfig), state
    with readable(path), torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return _from_pth(content, path)


def _from_pth(content: Any, path: Path) -> tuple[Dust3rConfig, dict[str, Tensor]]:
    content = content if isinstance(content, Mapping) else {}
    state, args = content.get("model"), content.get("args")
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadWeightsError(
            f"{path}: a released DUSt3R checkpoint holds its tensors under 'model' and its settings under 'args'; this "
            f"file has {sorted(map(str, content)) or 'neither'}"
        )
    text = vars(args).get("model") if isinstance(args, argparse.Namespace) else None
    if not isinstance(text, str):
        raise BadWeightsError(f"{path}: 'args' has no model string, which says what network the tensors are of")
    return config_of(parse_model_string(text, str(path)), str(path)), dict(state)


def load_released(path: str | Path, config: Dust3rConfig | None = None) -> Dust3r:
    """The network of a released checkpoint or of a file that ``save_weights`` wrote; strictly, on the CPU.

    Its tensors are mapped from the file. **The released weights are non-commercial (CC BY-NC-SA 4.0)**:
    `reconx weights fetch dust3r-512-dpt`.

    Args:
        path: see ``read_weights``.
        config: of the network, for a file that does not say it; None is then the released 512 DPT model.

    Raises:
        MissingWeightsError: there is no such file.
        BadWeightsError: it cannot be read, or does not fit.
    """
    stated, state = read_weights(path)
    if config is not None and stated is not None and config != stated:
        raise ConfigurationError(f"{path} states {stated}, which is not the given {config}; leave out the latter")
    with torch.device("meta"):
        model = Dust3r(stated or config or Dust3rConfig())
    load_state(model, state, str(path), assign=True)
    return model.eval()


def load_state(model: Dust3r, state: Mapping[str, Tensor], source: str, assign: bool = False) -> None:
    """Give ``model`` the tensors of ``state``; every one has to have its place, and every place its tensor.

    Args:
        model: receives them.
        state: under the released names; of those with two names either or both; those of ``unused_names`` may be
            there or not.
        source: file named in the error.
        assign: take the tensors themselves instead of copying (for a model on the meta device).

    Raises:
        BadWeightsError: lists missing and unexpected names, as released, and shapes that differ.
    """
    own = model.state_dict()
    official = {to_official_name(name): name for name in own}
    found = one_name_each(state, model.config, source)
    check_fit(
        {theirs: own[ours] for theirs, ours in official.items()}, found, source, "DUSt3R",
        remedy="A file without a configuration is taken for the 512 DPT model: give the Dust3rConfig of another",
    )  # fmt: skip
    model.load_state_dict({official[name]: value for name, value in found.items()}, assign=assign)


def save_weights(model: Dust3r, path: str | Path) -> None:
    """Write a ``.safetensors`` file under the released names, with the configuration in its metadata.

    The unused tensors of the release are not in it. Released weights stay under their licence in this file too.
    """
    from safetensors.torch import save_file

    state = {to_official_name(name): value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, Path(path), metadata={METADATA_KEY: json.dumps(asdict(model.config)), "format": "pt"})
