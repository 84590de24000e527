"""Finds golden kits (numbers made by the reference models), so that a kit added later is tested without a change."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from golden_weights import complete_kits, lacks_weights

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"
OWN = REPOSITORY / "tests" / "golden"


@cache
def golden_folder() -> Path | None:
    """RECONX_GOLDEN if set, else tests/golden, else the shared folder beside the checkout; None if there is none."""
    named = os.environ.get("RECONX_GOLDEN")
    candidates = [Path(named).resolve()] if named else [OWN, SHARED / "golden"]
    folder = next((folder for folder in candidates if folder.is_dir()), None)
    if folder is not None:
        complete_kits(folder)
    return folder


def golden_kits(pattern: str) -> list[Path]:
    """Every kit of the golden folder whose description matches ``pattern``, such as ``unet_tiny_*.json``."""
    folder = golden_folder()
    return sorted(kit for kit in folder.glob(pattern) if not lacks_weights(kit)) if folder else []
