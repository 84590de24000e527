"""What results follow from: settings and estimators as text and hashes that are equal on every machine."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from reconx_pl.errors import ConfigurationError
from reconx_pl.files.weights import fingerprint


def plain_settings(config: Any) -> dict[str, Any]:
    """A dataclass of settings as plain values, ready for JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def hash_of(config: Any) -> str:
    """SHA-256 of settings as JSON with sorted keys: equal settings, equal hash, on every machine."""
    text = json.dumps(plain_settings(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def identity_of(part: Any) -> str | None:
    """What the results of an estimator, or of another part with options, follow from; None without one.

    Its own word, ``identity``, or else its class and options: the values that its constructor was given, which it keeps
    in attributes of the same names.

    Raises:
        ConfigurationError: an option that it does not keep, or whose value cannot be told apart from another.
    """
    if part is None:
        return None
    own = getattr(part, "identity", None)
    if own is not None:
        return str(own)
    kind = type(part)
    parameters = inspect.signature(kind.__init__).parameters if kind.__init__ is not object.__init__ else {}
    named = [name for name, value in parameters.items() if name != "self" and value.kind not in _COLLECTING]
    options = []
    for name in named:
        if not hasattr(part, name):
            raise ConfigurationError(
                f"{kind.__name__} takes {name!r} and keeps it nowhere, so that results of other options would be taken "
                f"for its own: keep it as self.{name}, or give the class an attribute `identity`"
            )
        options.append(f"{name}={_told(getattr(part, name), f'{kind.__name__}.{name}')}")
    return f"{kind.__module__}.{kind.__qualname__}({', '.join(options)})"


_COLLECTING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _told(value: Any, where: str) -> str:
    """A value as text that tells it from others."""
    if value is None or isinstance(value, bool | int | float | str | bytes | Path | Enum | torch.device | torch.dtype):
        return str(value) if isinstance(value, Path | torch.device | torch.dtype) else repr(value)
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        digest = hashlib.sha256(plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
        return f"tensor {tuple(plain.shape)} {digest.hexdigest()[:16]}"
    if isinstance(value, torch.Generator):
        return f"generator at {_told(value.get_state(), where)}"
    if isinstance(value, nn.Module):
        return f"weights {fingerprint(value, repr(value))[:16]}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = (f"{item.name}={_told(getattr(value, item.name), where)}" for item in dataclasses.fields(value))
        return f"{type(value).__name__}({', '.join(inner)})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_told(key, where)}: {_told(inner, where)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(_told(inner, where) for inner in value) + ")"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(_told(inner, where) for inner in value)) + "}"
    if (inspect.isfunction(value) or inspect.isclass(value)) and "<" not in value.__qualname__:
        return f"{value.__module__}.{value.__qualname__}"
    if not inspect.isfunction(value) and not inspect.isclass(value) and type(value).__module__ != "builtins":
        told = identity_of(value)
        assert told is not None
        return told
    raise ConfigurationError(f"{where} is a {type(value).__name__}, whose content has no name: give it an `identity`")
