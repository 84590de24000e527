"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from reconx_pl.errors import ConfigurationError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write a file or a folder to; it gets the name ``path`` when the block ends well.

    The folder is made. A file of that name is replaced, see ``refuse_existing``; after an error nothing is left.
    The ending stays, since writers of videos and pictures go by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)


def refuse_existing(path: Path, overwrite: bool = False) -> None:
    """Raise ConfigurationError, naming the remedy, if ``path`` is there and may not be overwritten."""
    if path.exists() and not overwrite:
        raise ConfigurationError(f"{path} is there already; remove it, choose another name, or say --overwrite")


def own_temporary(path: Path) -> Path:
    """A hidden name beside ``path`` that no other process uses, on this machine or another."""
    return path.parent / f".{path.name}.{uuid4().hex[:12]}.tmp"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that readers, and a crash, find the old one or the new one; processes may write it at once."""
    temporary = own_temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
