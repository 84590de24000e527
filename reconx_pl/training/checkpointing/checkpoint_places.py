"""Where checkpoints lie and are written first, and errors of writing that say what to do."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from reconx_pl.errors import CheckpointError

PARTIAL = ".partial"
TABLE, REST = ".metadata", "meta.pt"  # of a folder that sharded training wrote
LITTLE = 2**20  # bytes; a disk with less is full


def is_complete(folder: Path) -> bool:
    """Whether a folder is a checkpoint that was written to its end."""
    return (folder / TABLE).is_file() and (folder / REST).is_file()


def is_folder(path: Path) -> bool:
    """Whether a path is a checkpoint of a sharded run, complete or not, and not a folder of another kind."""
    return (path / TABLE).is_file() or (path / REST).is_file()


def partial_of(path: Path) -> Path:
    """Where a checkpoint is written before it is moved to ``path``."""
    return path.with_name(f"{path.name}{PARTIAL}")


def remove(path: Path) -> None:
    """Remove a checkpoint, file or folder; nothing if there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def give_up(path: Path, error: BaseException, removes: bool = True) -> CheckpointError:
    """The error of a checkpoint that could not be written; what was written of it is removed, by one rank."""
    partial = partial_of(path)
    written = 0
    if removes:
        parts = list(partial.rglob("*")) if partial.is_dir() else [partial]
        written = sum(part.stat().st_size for part in parts if part.is_file())
        remove(partial)
    existing = next(folder for folder in path.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(existing).free
    full = getattr(error, "errno", None) == errno.ENOSPC or free < 2 * written + LITTLE
    reason = "the disk is full" if full else (str(error) or type(error).__name__).splitlines()[0]
    return CheckpointError(
        f"{path} could not be written: {reason} ({free / 2**30:.1f} GiB are free). "
        "The checkpoints before it are kept; make room there, or set dirpath of the checkpoint callback to another disk"
    )
