"""Fetches the published index files of the protocols, each whole and with the expected checksum, or not at all."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from reconx_pl.errors import BadDataError
from reconx_pl.evaluation.protocols.protocol import IndexFile
from reconx_pl.files.atomic import atomic_write
from reconx_pl.files.checksums import our_cache

log = logging.getLogger(__name__)

ENVIRONMENT = "RECONX_INDICES"
MOST = 64 * 2**20  # bytes; the largest index has 1.2 MB
TIMEOUT = 30.0  # seconds without an answer


def index_folder(given: Path | None = None) -> Path:
    """Where index files lie: ``given``, else $RECONX_INDICES, else the cache ($XDG_CACHE_HOME or ~/.cache)."""
    if given is not None:
        return Path(given)
    if named := os.environ.get(ENVIRONMENT):
        return Path(named)
    return our_cache() / "indices"


def fetch_indices(indices: Iterable[IndexFile], folder: Path, mirror: str | None = None) -> dict[str, str]:
    """Fetch index files; those that are there and right are left alone, and one that fails does not stop the others.

    Args:
        indices: which; of one file that several protocols use, one is fetched.
        folder: where to.
        mirror: address of a folder that has them under the names of ``IndexFile.file``, in the place of their
            publishers; http, https, or file.

    Returns:
        file -> "fetched" or "was there".

    Raises:
        BadDataError: some could not be fetched, or had other bytes; for each its address, the place to put it by hand,
            and its checksum.
    """
    done, failed = {}, []
    for index in {index.file: index for index in indices}.values():
        try:
            done[index.file] = _fetch(index, Path(folder), mirror)
        except BadDataError as error:
            failed.append(str(error))
    if failed:
        raise BadDataError("\n".join(failed))
    return done


def _fetch(index: IndexFile, folder: Path, mirror: str | None) -> str:
    target = folder / index.file
    if target.is_file() and _sha256(target.read_bytes()) == index.sha256:
        return "was there"
    url = index.url if mirror is None else f"{mirror.rstrip('/')}/{index.file}"
    by_hand = f"to put it there by hand: save {url} as {target}, sha256 {index.sha256}"
    log.info("fetching %s", url)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            data = answer.read(MOST + 1)
            length = answer.headers.get("Content-Length")
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no address at all
        raise BadDataError(f"{index.file}: {url} cannot be reached ({error}); {by_hand}") from error
    if length is not None and length.isdigit() and len(data) < min(int(length), MOST):
        raise BadDataError(f"{index.file}: {url} broke off at {len(data)} of {length} bytes; run the command again")
    if (found := _sha256(data)) != index.sha256:
        raise BadDataError(
            f"{index.file}: {url} has sha256 {found}; the protocol was defined with {index.sha256}, and nothing was "
            f"written. The publisher may have changed the file; {by_hand}"
        )
    with atomic_write(target) as unfinished:
        unfinished.write_bytes(data)
    return "fetched"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
