"""SHA-256 of large files: with progress, remembered while a file stays as it is, and as ``sha256sum -c`` reads it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from reconx_pl.errors import BadWeightsError
from reconx_pl.files.atomic import atomic_write

if TYPE_CHECKING:  # torch takes seconds, and a checksum needs none
    from reconx_pl.types import Progress

log = logging.getLogger(__name__)

SUMS = "SHA256SUMS"  # of a folder: one line a file
SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOCK = 1 << 22  # bytes between two calls of ``progress``


def file_sha256(path: Path, progress: Progress | None = None) -> str:
    """SHA-256 of a file, hexadecimal, which is remembered for ``remembered_sha256``.

    Args:
        path: the file.
        progress: called with the bytes that are done and the bytes of the file.
    """
    before = os.stat(path)
    digest, done = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(f"reading {path.name}", done, before.st_size)
    _remember(path, before, digest.hexdigest())
    return digest.hexdigest()


def remembered_sha256(path: Path) -> str | None:
    """What ``file_sha256`` gave for this file; None if it was never asked or the file was written to since."""
    status = os.stat(path)
    known = _memory().get(_key(status))
    if not isinstance(known, dict) or known.get("stamp") != _stamp(status):
        return None
    return str(known.get("sha256"))


def our_cache() -> Path:
    """Where this package keeps what it can make again: $XDG_CACHE_HOME/reconx_pl, or ~/.cache/reconx_pl."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "reconx_pl"


def write_sums(folder: Path, digests: Mapping[str, str]) -> Path:
    """Write ``folder/SHA256SUMS``: file names and their digests."""
    with atomic_write(folder / SUMS) as partial:
        partial.write_text(sums_text(digests), encoding="utf-8")
    return folder / SUMS


def sums_text(digests: Mapping[str, str]) -> str:
    """Names and digests as ``sha256sum`` reads them."""
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def read_sums(path: Path) -> dict[str, str]:
    """Names and digests of a file that ``sha256sum`` reads.

    Raises:
        BadWeightsError: it cannot be read as that, or names a file of another folder.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadWeightsError(f"{path}: no list of checksums ({error}); remove it or bring it again") from error
    found = {}
    for line in filter(str.strip, lines):
        digest, _, name = line.partition(" ")
        name = name.strip().removeprefix("*")
        if not SHA256.fullmatch(digest) or Path(name).name != name or name in ("", ".", ".."):
            raise BadWeightsError(
                f"{path}: {line!r} is no checksum of a file in that folder; remove the list or bring it again"
            )
        found[name] = digest
    return found


def differing(folder: Path, digests: dict[str, str], measured: Callable[[Path], str] = file_sha256) -> Iterable[str]:
    """Names of ``digests`` whose file in ``folder`` is missing or has another digest, with what is wrong."""
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif (found := measured(path)) != digest:
            yield f"{name} has sha256 {found}, expected {digest}"


def _key(status: os.stat_result) -> str:
    """Names the file and not the path: a download is verified before it gets its name."""
    return f"{status.st_dev}:{status.st_ino}"


def _stamp(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns]


def _memory_file() -> Path:
    return our_cache() / "checksums.json"


def _memory() -> dict[str, object]:
    try:
        content = json.loads(_memory_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _remember(path: Path, status: os.stat_result, digest: str) -> None:
    """A cache: where it cannot be written, the file is read again the next time."""
    if _stamp(os.stat(path)) != _stamp(status):
        return  # somebody wrote to it meanwhile
    entry = {"stamp": _stamp(status), "sha256": digest}
    try:
        with atomic_write(_memory_file()) as partial:
            partial.write_text(json.dumps(_memory() | {_key(status): entry}, indent=1), encoding="utf-8")
    except OSError as error:
        log.debug("%s cannot be written (%s)", _memory_file(), error)
