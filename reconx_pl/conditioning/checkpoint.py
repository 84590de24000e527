"""Reads weight files without unpickling anything, and loads them so that nothing is missing and nothing left over.

Parts of the official checkpoint of the base model stand under a prefix (``first_stage_model.``,
``embedder.model.``, ...); a file may also hold one part alone, without its prefix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from reconx_pl.errors import BadWeightsError, MissingWeightsError


def read_state(path: str | Path, prefixes: Sequence[str] = ("",)) -> dict[str, Tensor]:
    """The tensors under the first of ``prefixes`` that the file has, prefix removed.

    A safetensors file is read key by key, so that one part of a 10 GB checkpoint costs only its own memory; a torch
    file is mapped, with ``weights_only=True``.

    Args:
        path: ``.safetensors``, or a torch file of tensors (a ``state_dict`` entry is unwrapped).
        prefixes: tried in this order; the empty one matches every key.

    Raises:
        MissingWeightsError: there is no such file.
        BadWeightsError: the file cannot be read, or no key has one of the prefixes.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingWeightsError(
            f"{path}: no such weights file; give the path of a local .safetensors or torch checkpoint"
        )
    try:
        return _read_safetensors(path, prefixes) if path.suffix == ".safetensors" else _read_torch(path, prefixes)
    except BadWeightsError:
        raise
    except UnpicklingError as error:
        raise BadWeightsError(
            f"{path}: holds more than tensors, and nothing here unpickles foreign objects; convert it to .safetensors "
            f"({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # safetensors, zip and torch each have errors of their own
        raise BadWeightsError(f"{path}: not a readable weights file ({error}); fetch it again") from error


def _prefix_of(keys: Sequence[str], prefixes: Sequence[str], source: str) -> str:
    for prefix in prefixes:
        if any(key.startswith(prefix) for key in keys):
            return prefix
    raise BadWeightsError(f"{source}: no key begins with any of {list(prefixes)}; the first keys are {list(keys)[:5]}")


def _read_safetensors(path: Path, prefixes: Sequence[str]) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt", device="cpu") as file:
        keys = list(file.keys())
        prefix = _prefix_of(keys, prefixes, str(path))
        return {key[len(prefix) :]: file.get_tensor(key) for key in keys if key.startswith(prefix)}


def _read_torch(path: Path, prefixes: Sequence[str]) -> dict[str, Tensor]:
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if state is None or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadWeightsError(f"{path}: expected a mapping of names to tensors, alone or under 'state_dict'")
    prefix = _prefix_of(list(state), prefixes, str(path))
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], source: str, assign: bool = False) -> None:
    """Load ``state`` into ``module``; every key and every shape has to match.

    Args:
        module: receives the weights.
        state: names as the module has them.
        source: file named in the error.
        assign: take the tensors themselves instead of copying (for modules on the meta device).

    Raises:
        BadWeightsError: lists missing keys, unexpected keys and shapes that differ.
    """
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{key}: file {tuple(state[key].shape)}, model {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if state[key].shape != own[key].shape
    ]
    if missing or unexpected or shapes:
        parts = [
            f"{len(found)} {what}: {', '.join(sorted(found)[:8])}{' ...' if len(found) > 8 else ''}"
            for what, found in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if found
        ]
        raise BadWeightsError(f"{source}: does not fit {type(module).__name__}; keys " + "; ".join(parts))
    module.load_state_dict(dict(state), strict=True, assign=assign)
