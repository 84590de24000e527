"""JSON files, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
