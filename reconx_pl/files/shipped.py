"""Where the files that come with the package are: configs and protocols."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped(name: str) -> Path:
    """The path of a file or folder that comes with the package.

    A wheel has it inside the package, a checkout (an editable install too) beside it.

    Args:
        name: as in a checkout, such as ``configs/stage1.yaml`` or ``data/protocols``.

    Returns:
        Its path; the one beside the package where neither place has it.
    """
    inside = PACKAGE / name
    return inside if inside.exists() else PACKAGE.parent / name
