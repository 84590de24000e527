"""Reads protocol files: YAML with the keys of ``protocols.Protocol``, none other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from reconx_pl.errors import ConfigurationError
from reconx_pl.evaluation.protocols.protocol import Protocol
from reconx_pl.files.shipped import shipped
from reconx_pl.renamed import renamed

#: The protocols that come with the package.
FOLDER = shipped("data/protocols")


def protocol_names(folder: Path = FOLDER) -> list[str]:
    """Names of all protocols of a folder of protocol files."""
    names = []
    for file in sorted(folder.glob("*.yaml")):
        counts = _context_counts(_content(file))
        names += [f"{file.stem}-{count}" for count in counts] if counts else [file.stem]
    return names


def load_protocol(name: str | Path, folder: Path = FOLDER) -> Protocol:
    """Read a protocol.

    Args:
        name: of a protocol of ``folder``, or the path of a protocol file (``.yaml``). Where a file lists several
            numbers of context views the name ends with one of them: ``mipnerf360-3``.
        folder: of the protocol files.

    Raises:
        ConfigurationError: no such protocol, or a file with unknown, missing or contradicting keys; names file and
            keys.
    """
    file, count = Path(name), None
    if file.suffix not in (".yaml", ".yml"):
        file = folder / f"{name}.yaml"
        base, _, number = str(name).rpartition("-")
        if not file.is_file() and number.isdigit() and (folder / f"{base}.yaml").is_file():
            file, count = folder / f"{base}.yaml", int(number)
    if not file.is_file():
        if file.parent == folder and not folder.is_dir():
            raise ConfigurationError(
                f"{folder} does not exist, so that no protocol has a name: install the package again, or give the path "
                "of a .yaml file"
            )
        if file.parent != folder:
            raise ConfigurationError(f"{file}: no such protocol file")
        raise ConfigurationError(f"no protocol {str(name)!r}; there are {', '.join(protocol_names(folder))}")
    content = _content(file)
    counts = _context_counts(content)
    if content.get("name") != file.stem:
        raise ConfigurationError(f"{file}: its name is {content.get('name')!r}; it has to be that of the file")
    if (count is None) != (counts is None) or (counts is not None and count not in counts):
        several = ", ".join(f"{file.stem}-{number}" for number in counts or ()) or f"only {file.stem}"
        raise ConfigurationError(f"{file}: there is no protocol {str(name)!r} in it; there are {several}")
    if count is not None:
        content = {**content, "name": f"{file.stem}-{count}", "views": {**content["views"], "contexts": count}}
        rows = content.get("published") or []
        content["published"] = [row for row in rows if row.get("contexts", count) == count]
    return parse_protocol(content, str(file))


def _content(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{file}: cannot read this protocol ({error})") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{file}: holds no protocol; see docs/protocols.md for the keys")
    return content


def _context_counts(content: Mapping[str, Any]) -> list[int] | None:
    """The numbers of context views of a file that lists several."""
    views = content.get("views")
    counts = views.get("contexts") if isinstance(views, Mapping) else None
    return counts if isinstance(counts, list) else None


def parse_protocol(content: Mapping[str, Any], source: str) -> Protocol:
    """A protocol from the content of a file; types and keys are checked by jsonargparse, as those of other options.

    Raises:
        ConfigurationError: unknown, missing or contradicting keys; names ``source`` and the keys.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Protocol, "protocol")
    try:
        return parser.instantiate_classes(parser.parse_object({"protocol": renamed(content)})).protocol
    except ConfigurationError as error:
        raise ConfigurationError(f"{source}: {error}") from error
    except Exception as error:  # the library's own, and what it makes of wrong types
        raise ConfigurationError(f"{source}: {' '.join(str(error).split())}") from error
