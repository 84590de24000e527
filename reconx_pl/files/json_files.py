"""JSON files, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reconx_pl.errors import BadDataError
from reconx_pl.files.atomic import atomic_write

Record = dict[str, Any]  # what a JSON file holds


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON so that the file is always complete: a partial one never carries its name."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Record | None:
    """The content of a JSON file, or None where there is none or it is damaged (it is then made again)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_object(path: Path) -> Record:
    """The content of a JSON file that must be there: an object.

    Raises:
        BadDataError: no such file, broken JSON, or something else than an object; names the file.
    """
    if not path.is_file():
        raise BadDataError(f"{path}: no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"{path}: broken JSON ({error})") from error
    if not isinstance(content, dict):
        raise BadDataError(f"{path}: the top level is not an object")
    return content
