"""Free disk, and whether one may write, where data, runs, weights and caches go."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from reconx_pl.cli.doctor.findings import Finding, Status
from reconx_pl.files.checksums import our_cache

TOPIC = "disk"
_GB = 1e9
NEARLY_FULL = 1.0  # GB


def storage(weights: Path, to_fetch: int = 0) -> Iterator[Finding]:
    """One line a place.

    Args:
        weights: folder of fetched and converted weights.
        to_fetch: bytes of the weights that have yet to be fetched into it.
    """
    yield place("data", Path("data"), "name another folder where you pack")
    yield place("runs", Path("runs"), "set trainer.logger and the callbacks' folders to another disk")
    yield place("weights", weights, "--folder of `reconx weights fetch` names another", to_fetch)
    yield place("cache", our_cache(), "set XDG_CACHE_HOME to a folder of another disk")
    yield place("hub cache", _hub_cache(), "set HF_HOME to a folder of another disk")
    yield place("torch hub cache", _torch_home() / "hub", "set TORCH_HOME to a folder of another disk")
    yield place("torch extensions", _extensions(), "set TORCH_EXTENSIONS_DIR to a folder of another disk")
    yield place("temporary files", Path(tempfile.gettempdir()), "set TMPDIR to a folder of another disk")


def place(name: str, folder: Path, otherwise: str, needed: int = 0) -> Finding:
    """Whether files can be written to a folder, which need not be there yet, and how much is free.

    Args:
        name: of the line.
        folder: looked at; where it is not there, the folder in which it would be made.
        otherwise: how to name another one.
        needed: bytes that will be written.
    """
    folder = folder.absolute()
    nearest = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
    free = shutil.disk_usage(nearest).free
    text = f"{folder}: {free / _GB:.1f} GB free"
    if (why := _refusal(nearest)) is not None:
        return Finding(TOPIC, name, "missing", f"{text}; not writable ({why})", f"chmod u+w {nearest}, or {otherwise}")
    if free >= max(needed, NEARLY_FULL * _GB):
        return Finding(TOPIC, name, "ok", text)
    status: Status = "missing" if free < needed else "warning"
    if needed:
        text += f", {needed / _GB:.1f} GB are yet to be fetched"
    return Finding(TOPIC, name, status, text, f"make space, or {otherwise}")


def _refusal(folder: Path) -> str | None:
    """Why a file cannot be written there; permissions alone do not tell on a full or read-only disk."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        return error.strerror or str(error)
    return None


def _hub_cache() -> Path:
    """Where the hub library keeps what ``from_pretrained`` fetches."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return Path.home() / ".cache" / "huggingface" / "hub"
    return Path(HF_HUB_CACHE)


def _torch_home() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TORCH_HOME") or f"{cache}/torch").expanduser()


def _extensions() -> Path:
    """Where torch compiles gsplat's kernels to."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or f"{cache}/torch_extensions").expanduser()
