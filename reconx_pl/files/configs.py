"""Reads config files: YAML over the files that its key ``base`` names."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from reconx_pl.errors import ConfigurationError
from reconx_pl.files.shipped import shipped
from reconx_pl.renamed import CONFIGS, renamed, tell

log = logging.getLogger(__name__)

BASE = "base"
FOLDER = "configs"


def find_config(name: str | Path) -> Path | None:
    """The file that a command line means by a config's name.

    Args:
        name: path of a file. Where there is none, ``configs/...`` is the one that comes with the package; the log says
            so.

    Returns:
        None if there is no such file.
    """
    if os.path.isfile(name):
        return Path(name)
    found = _of_the_package(str(name))
    if found is not None and str(name) not in CONFIGS:
        log.warning("%s is not here; taken from the package: %s", name, found)
    return found


def read_config(path: str | Path) -> dict[str, Any]:
    """The content of a config file over that of its bases.

    ``base`` names one file or a list of files, relative to the folder of the file that names them; ``configs/...`` may
    also be one that comes with the package. Later bases go over earlier ones, and the file over all. Mappings are
    merged key by key; lists and values are replaced, and so is a mapping whose ``class_path`` changes. ``name+`` adds
    to the list ``name`` of the bases, as on the command line.

    Args:
        path: see ``find_config``.

    Returns:
        The whole content in the names of this version, without ``base``.

    Raises:
        ConfigurationError: a file that is absent, cannot be read or goes in a circle; names it and who asked for it.
    """
    found = find_config(path)
    if found is None:
        raise ConfigurationError(f"{path} does not exist; `{FOLDER}/...` names a config that comes with the package")
    return _whole(found, ())


def has_base(path: Path) -> bool:
    """Whether a config file goes over others.

    Raises:
        ConfigurationError: it cannot be read.
    """
    return BASE in _content(path)


def _of_the_package(name: str) -> Path | None:
    name = name.replace(os.sep, "/")
    new = CONFIGS.get(name, name)
    found = shipped(new) if new.startswith(f"{FOLDER}/") else None
    if found is None or not found.is_file():
        return None
    if new != name:
        tell(name, new)
    return found


def _whole(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """``above``: the files that led to this one, resolved."""
    place = file.resolve()
    if place in above:
        chain = " -> ".join(str(one) for one in (*above[above.index(place) :], place))
        raise ConfigurationError(f"{file}: its bases go in a circle: {chain}")
    content = _content(file)
    named = content.pop(BASE, [])
    bases = [named] if isinstance(named, str) else named
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigurationError(f"{file}: `{BASE}` is the name of a file or a list of names, got {named!r}")
    whole: dict[str, Any] = {}
    for base in bases:
        found = file.parent / base
        if not found.is_file():
            there = _of_the_package(base)
            if there is None:
                raise ConfigurationError(f"{file}: its base {base} does not exist (looked for {found})")
            found = there
        whole = merged(whole, _whole(found, (*above, place)))
    return merged(whole, content)


def _content(file: Path) -> dict[str, Any]:
    try:
        content = get_loader("yaml")(file.read_text(encoding="utf-8"))  # the command line's: 1e-4 is a number
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{file}: cannot read this config ({error})") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{file}: a config is a mapping of options to values")
    return renamed(content)


def merged(below: Any, above: Any) -> Any:
    """``above`` merged over ``below``."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    if above.get("class_path", below.get("class_path")) != below.get("class_path"):
        return above
    whole = dict(below)
    for key, value in above.items():
        longer = key.removesuffix("+")
        if key != longer:
            place = longer if longer in whole else key  # of a list that is not here the parser knows
            whole[place] = [*(whole.get(place) or []), *(value if isinstance(value, list) else [value])]
            continue
        whole.pop(f"{key}+", None)
        whole[key] = merged(below[key], value) if key in below else value
    return whole
