"""Finds golden kits (numbers made by the reference models), so that a kit added later is tested without a change."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


def golden_folder() -> Path | None:
    """RECONX_GOLDEN if set, else tests/golden, else the shared folder beside the checkout; None if there is none."""
    named = os.environ.get("RECONX_GOLDEN")
    candidates = [Path(named)] if named else [REPOSITORY / "tests" / "golden", SHARED / "golden"]
    return next((folder for folder in candidates if folder.is_dir()), None)


def golden_kits(pattern: str) -> list[Path]:
    """Every kit of the golden folder whose description matches ``pattern``, such as ``unet_tiny_*.json``."""
    folder = golden_folder()
    return sorted(folder.glob(pattern)) if folder else []
