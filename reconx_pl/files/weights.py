"""Reads weight files without unpickling anything, and loads them so that nothing is missing and nothing left over.

The one reader (``read_tensors``) and the one comparison (``check_fit``) of the package. Parts of the official
checkpoint of the base model stand under a prefix (``first_stage_model.``, ``embedder.model.``, ...), those of a folder
of ours under another (``autoencoder.vae.``, ...); a file may also hold one part alone, without its prefix.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

import torch
from torch import Tensor, nn

from reconx_pl.errors import BadWeightsError, MissingWeightsError
from reconx_pl.renamed import first_class_name, renamed_tensor

Config = TypeVar("Config")

ASSETS = Path(__file__).parents[1] / "assets"
MINI = "reconx-mini"
SHIPPED = {MINI: ASSETS / f"{MINI}.safetensors"}  # models that come with the package
FOLDER_FILE = "model.safetensors"  # the weights in a folder that ``reconx weights convert`` wrote
DEEPSPEED_PREFIX = "_forward_module."
#: Part of every fingerprint. Raise it when code changes what a part of the same weights gives.
REVISION = 1
SHOWN_KEYS = 20  # an error lists this many keys of a kind, then counts


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file of weights under the names that they have there, those of earlier versions renamed.

    Tensors are views of the mapped file: reading one part of a 10 GB checkpoint costs its own memory only.

    Args:
        path: ``.safetensors``; a torch file of tensors, alone, under ``state_dict``, or in DeepSpeed's form (under
            ``module``, every name behind ``_forward_module.``); a folder with ``model.safetensors`` in it; or the
            name of a model that comes with the package (``SHIPPED``).

    Raises:
        MissingWeightsError: there is no such file.
        BadWeightsError: the file is empty, damaged, no mapping of names to tensors, or would have to be unpickled.
    """
    path = shipped(path)
    if path.is_dir():
        path = path / FOLDER_FILE
    with readable(path):
        state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    return {renamed_tensor(name): value for name, value in state.items()}


def shipped(place: str | Path) -> Path:
    """The file of a model that comes with the package; any other place, and a path that exists, as it is."""
    path = Path(place)
    return SHIPPED[str(place)] if str(place) in SHIPPED and not path.exists() else path


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise what goes wrong while the block reads ``path`` as ``MissingWeightsError`` or ``BadWeightsError``."""
    if not path.is_file():
        raise MissingWeightsError(
            f"{path}: no such weights file; give the path of a local .safetensors or torch checkpoint, or get one "
            "with `reconx weights fetch`"
        )
    if path.stat().st_size == 0:
        raise BadWeightsError(f"{path}: the file is empty; fetch it again")
    try:
        yield
    except BadWeightsError:
        raise
    except UnpicklingError as error:
        raise BadWeightsError(
            f"{path}: holds more than tensors, and nothing here unpickles foreign objects; convert it to .safetensors "
            f"({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # safetensors, zip and torch each have errors of their own
        raise BadWeightsError(
            f"{path}: not a readable weights file, cut short or of another format ({error}); fetch it again"
        ) from error


def read_state(path: str | Path, prefixes: Sequence[str] = ("",)) -> dict[str, Tensor]:
    """The tensors under the first of ``prefixes`` that the file has, prefix removed.

    Args:
        path: as for ``read_tensors``.
        prefixes: tried in this order; the empty one matches every key.

    Raises:
        MissingWeightsError: there is no such file.
        BadWeightsError: the file cannot be read, or no key has one of the prefixes.
    """
    state = read_tensors(path)
    for prefix in prefixes:
        if any(key.startswith(prefix) for key in state):
            return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    raise BadWeightsError(f"{path}: no key begins with any of {list(prefixes)}; the first keys are {list(state)[:5]}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt", device="cpu") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)


def _read_torch(path: Path) -> dict[str, Tensor]:
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    state, deepspeed = content, False
    if isinstance(content, Mapping):
        deepspeed = "state_dict" not in content and isinstance(content.get("module"), Mapping)
        state = content["module"] if deepspeed else content.get("state_dict", content)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BadWeightsError(
            f"{path}: expected a mapping of names to tensors, alone, under 'state_dict' or under 'module'"
        )
    if not deepspeed:
        return dict(state)
    if foreign := [key for key in state if not key.startswith(DEEPSPEED_PREFIX)]:
        raise BadWeightsError(
            f"{path}: names under 'module' begin with '{DEEPSPEED_PREFIX}' in DeepSpeed's form; these do not: "
            f"{listing(foreign)}"
        )
    return {key[len(DEEPSPEED_PREFIX) :]: value for key, value in state.items()}


def check_fit(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    source: str,
    model: str,
    absent: AbstractSet[str] = frozenset(),
    remedy: str = "",
) -> None:
    """Compare names and shapes of a file with those of a model, both ways.

    Args:
        own: the model's tensors.
        state: the file's, under the model's names.
        source: file named in the error.
        model: what the error calls the model.
        absent: names that the file need not have.
        remedy: sentence at the end of the error.

    Raises:
        BadWeightsError: lists missing names, unexpected names and shapes that differ.
    """
    kinds = {
        "missing": sorted(own.keys() - state.keys() - absent),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": [
            f"{key}: file {tuple(state[key].shape)}, model {tuple(own[key].shape)}"
            for key in sorted(own.keys() & state.keys())
            if state[key].shape != own[key].shape
        ],
    }
    found = "; ".join(f"{len(keys)} {kind}: {listing(keys)}" for kind, keys in kinds.items() if keys)
    if found:
        raise BadWeightsError(f"{source} does not fit {model}; keys {found}{'. ' + remedy if remedy else ''}")


def listing(keys: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    keys = list(keys)
    rest = f" and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return ", ".join(keys[:SHOWN_KEYS]) + rest


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
    check_fit(module.state_dict(), state, source, type(module).__name__)
    module.load_state_dict(dict(state), strict=True, assign=assign)


def fingerprint(module: nn.Module, settings: object) -> str:
    """SHA-256 over class, settings and the name, type, shape and bytes of every tensor, in the order of the names.

    The device does not matter, the number type does.

    Args:
        module: the part, which is not trained.
        settings: what else decides about its output; its ``repr`` is hashed.
    """
    digest = hashlib.sha256(f"{REVISION} {first_class_name(type(module))} {settings!r}".encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(memoryview(values.view(torch.uint8).numpy()))
    return digest.hexdigest()


def stated_config(path: Path, key: str, kind: type[Config]) -> Config | None:
    """The configuration that a ``.safetensors`` file states in its metadata; None if it states none.

    Args:
        path: the file.
        key: of the metadata.
        kind: class of the configuration, made of the JSON under the key.

    Raises:
        BadWeightsError: it cannot be made of that.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        stated = (file.metadata() or {}).get(key)
    if stated is None:
        return None
    try:
        return kind(**json.loads(stated))
    except (ValueError, TypeError) as error:  # a ConfigurationError is a ValueError
        raise BadWeightsError(f"{path}: the configuration in its metadata cannot be used ({error})") from error
