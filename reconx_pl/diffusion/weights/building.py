"""A network from ``config.json`` and back: ``class_path`` and ``init_args``, as in the YAML of ``train.py``.

A ``config.json`` may come from outside. It builds modules and settings of this package and nothing else: every
``class_path`` has to name one, and no string in it but the caption can be a path or an import.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from reconx_pl.errors import BadWeightsError, ConfigurationError, ReconXError
from reconx_pl.files.ranks import built_class
from reconx_pl.renamed import renamed

if TYPE_CHECKING:
    from reconx_pl.diffusion.model import ReconXDiffusion

PACKAGE = "reconx_pl."
_MODULES = ("autoencoder", "image_tokens", "text_tokens")  # arguments of ReconXDiffusion that are modules
CAPTION = "init_args.caption"  # free text, which nothing but the tokenizer reads
_PLAIN = re.compile(r"\w*", re.ASCII)  # "v", "penultimate": options, no paths and no imports


def build_network(config: Mapping[str, Any], source: str, device: str = "meta") -> ReconXDiffusion:
    """Build the network that ``config`` describes, without weights.

    Args:
        config: ``class_path`` and ``init_args`` of a ``ReconXDiffusion``.
        source: file named in errors.
        device: where parameters are made; on "meta" they take no memory.

    Raises:
        BadWeightsError: the configuration names a class from outside this package, or does not build.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    config = renamed(config, ["network"])
    _refuse_foreign(config, source)
    parts = config.get("init_args")
    if not isinstance(parts, Mapping) or not all(isinstance(parts.get(name), Mapping) for name in _MODULES):
        raise BadWeightsError(
            f"{source}: expected class_path and init_args of ReconXDiffusion, with class_path and init_args for each "
            f"of {', '.join(_MODULES)}"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "network")
    try:
        parsed = parser.parse_object({"network": dict(config)})
        with torch.device(device):
            network = parser.instantiate_classes(parsed).network
    except (ArgumentError, ReconXError, TypeError, ValueError) as error:
        raise BadWeightsError(f"{source}: does not describe a network of this version ({error})") from error
    return cast("ReconXDiffusion", network)


def network_config(network: ReconXDiffusion) -> dict[str, Any]:
    """``class_path`` and ``init_args`` that build ``network`` again, without its weights.

    Raises:
        ConfigurationError: a part of it cannot say how it was built.
    """
    arguments: dict[str, Any] = {"unet": asdict(network.unet.config)}
    for name in _MODULES:
        module = getattr(network, name)
        if not hasattr(module, "init_args"):
            raise ConfigurationError(
                f"{name} ({type(module).__name__}) has no init_args(), which says how to build it again"
            )
        arguments[name] = {"class_path": _path(module), "init_args": module.init_args()}
    if network.structure_encoder is not None:
        arguments["structure"] = asdict(network.structure_encoder.config)
    arguments |= {"schedule": asdict(network.schedule.config), "dropout": asdict(network.dropout)}
    arguments |= {"caption": network.caption, "captions": network.captions, "guidance": network.guidance}
    if network.render is not None:
        arguments["render"] = asdict(network.render)
    return {"class_path": _path(network), "init_args": arguments}


def _path(module: nn.Module) -> str:
    built = built_class(module)
    return f"{built.__module__}.{built.__qualname__}"


def _refuse_foreign(value: Any, source: str, where: str = "") -> None:
    """Walk a configuration and refuse what could reach out of this package."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            place = f"{where}.{key}" if where else str(key)
            if key == "class_path":
                _refuse_foreign_class(inner, source, place)
            else:
                _refuse_foreign(inner, source, place)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _refuse_foreign(inner, source, f"{where}[{index}]")
    elif isinstance(value, str) and where != CAPTION and not _PLAIN.fullmatch(value):
        raise BadWeightsError(f"{source}: {where} is {value!r}; a config.json holds no paths and no expressions")


def _refuse_foreign_class(path: Any, source: str, where: str) -> None:
    refusal = BadWeightsError(
        f"{source}: {where} is {path!r}; a config.json builds modules and settings of {PACKAGE}* and nothing else"
    )
    if not isinstance(path, str) or not path.startswith(PACKAGE):
        raise refusal
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise refusal from error
    if not inspect.isclass(found) or not found.__module__.startswith(PACKAGE):
        raise refusal
    if not (issubclass(found, nn.Module) or is_dataclass(found)):
        raise refusal
