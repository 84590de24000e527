"""Fetches released checkpoints from the Hugging Face hub: resumable, verified, recorded.

The library's own ``hf_hub_download`` starts a file anew after an interruption (huggingface_hub 2.4) and is given no
checksum; its parts are used here: the metadata of a file, and the download of one stream with retries.
"""

from __future__ import annotations

import errno
import logging
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from reconx_pl.diffusion.weights.releases import HubFile
from reconx_pl.errors import BadWeightsError, ConfigurationError, MissingWeightsError
from reconx_pl.files.checksums import SHA256, file_sha256

log = logging.getLogger(__name__)
_GB = 1e9


def fetch_release(
    release: HubFile,
    folder: Path = Path("weights"),
    sha256: str | None = None,
    revision: str = "main",
    endpoint: str | None = None,
) -> Path:
    """Fetch a released checkpoint; an interrupted download goes on where it stopped.

    A checkpoint that is there already is verified against the record beside it and not fetched.

    Args:
        release: which one.
        folder: where to write ``release.saved_as`` and, beside it, its checksum (``.sha256``, as sha256sum writes).
        sha256: expected checksum, hexadecimal; None takes the one that the hub states.
        revision: branch, tag or commit on the hub.
        endpoint: address of the hub; None takes HF_ENDPOINT, else huggingface.co.

    Returns:
        The file.

    Raises:
        ConfigurationError: ``sha256`` is no such checksum.
        MissingWeightsError: it cannot be fetched: no network, no such file, no permission, no space.
        BadWeightsError: what is there, or what arrived, has another checksum.
    """
    wanted = sha256.lower() if sha256 is not None else None
    if wanted is not None and not SHA256.fullmatch(wanted):
        raise ConfigurationError(f"sha256 is 64 hexadecimal digits, got {sha256!r}")
    from huggingface_hub import hf_hub_url

    target = Path(folder) / release.saved_as
    recorded = recorded_sha256(target)
    if target.is_file() and (known := wanted or recorded):
        return _verified(target, known)
    url = hf_hub_url(release.repository, release.file, revision=revision, endpoint=endpoint)
    metadata = _metadata(release, target, url)
    stated = (metadata.etag or "").lower()
    stated = stated if SHA256.fullmatch(stated) else ""
    if wanted and stated and wanted != stated:
        raise BadWeightsError(
            f"{release.repository} at {revision} states sha256 {stated} for {release.file}, not {wanted}; nothing was "
            "fetched. Name the revision that you mean"
        )
    if not wanted:
        _check_recorded(release, revision, stated, metadata.size)
    expected = wanted or stated
    if not expected:
        raise BadWeightsError(
            f"{release.repository}: the hub states no SHA-256 for {release.file} (etag {metadata.etag!r}), and a file "
            "that cannot be verified is not fetched; give its checksum with --sha256"
        )
    if target.is_file():
        return _verified(target, expected)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{expected[:12]}.partial")
    _download(release, metadata, url, partial, target)
    log.info("verifying %s", target.name)
    found = file_sha256(partial)
    if found != expected:
        partial.unlink()
        raise BadWeightsError(
            f"{target}: what arrived has sha256 {found}, expected {expected}; it was removed, fetch it again"
        )
    partial.replace(target)
    record_sha256(target, expected)
    return target


def _check_recorded(release: HubFile, revision: str, stated: str, size: int | None) -> None:
    """Compare what the hub states with what others have recorded of the file.

    Raises:
        BadWeightsError: it is another file.
    """
    begin, end = release.sha256_ends
    as_recorded = release.bytes in (None, size) and stated.startswith(begin) and stated.endswith(end)
    if stated and not as_recorded:
        raise BadWeightsError(
            f"{release.repository} at {revision} states {size} bytes and sha256 {stated} for {release.file}; known is "
            f"a file of {release.bytes} bytes and sha256 {begin}...{end}. Nothing was fetched. If you trust the new "
            "one, give its checksum with --sha256"
        )


def _record_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def recorded_sha256(target: Path) -> str | None:
    """The checksum that was written beside a file when it was fetched and verified; None if there is none."""
    path = _record_path(target)
    words = path.read_text().split() if path.is_file() else []
    return words[0] if words and SHA256.fullmatch(words[0]) else None


def record_sha256(target: Path, digest: str) -> None:
    """Write a checksum beside its file, as ``sha256sum`` does."""
    _record_path(target).write_text(f"{digest}  {target.name}\n")


def _verified(target: Path, expected: str) -> Path:
    found = file_sha256(target)
    if found != expected:
        raise BadWeightsError(
            f"{target} is there and has sha256 {found}, expected {expected}; it is damaged or another file. Move it "
            "away and fetch it again"
        )
    record_sha256(target, expected)
    return target


def _metadata(release: HubFile, target: Path, url: str) -> Any:
    """What the hub says about the file: checksum, size, where the bytes are."""
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return get_hf_file_metadata(url)
    except GatedRepoError as error:
        raise MissingWeightsError(_no_permission(release)) from error
    except (EntryNotFoundError, RevisionNotFoundError) as error:
        raise MissingWeightsError(f"{url}: no such file or revision on the hub; check --revision") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise MissingWeightsError(_no_permission(release)) from error
        if isinstance(error, RepositoryNotFoundError) or status == 404:
            raise MissingWeightsError(f"{url}: no such repository or file on the hub") from error
        raise MissingWeightsError(_unreachable(url, error, target, release)) from error
    except Exception as error:  # no network; versions of the library differ in what they raise
        raise MissingWeightsError(_unreachable(url, error, target, release)) from error


def _no_permission(release: HubFile) -> str:
    return (
        f"the hub does not give {release.repository} to this account: it is gated, private or gone. Open "
        f"https://huggingface.co/{release.repository}, accept its terms, and log in with `hf auth login` or set "
        "HF_TOKEN"
    )


def _unreachable(url: str, error: Exception, target: Path, release: HubFile) -> str:
    return (
        f"{url} cannot be reached ({type(error).__name__}: {error}). Set HF_ENDPOINT to a mirror of the hub, or fetch "
        f"{release.file} of https://huggingface.co/{release.repository} on another machine, put it here as {target} "
        "and run this command again with --sha256, which verifies it"
    )


def _download(release: HubFile, metadata: Any, url: str, partial: Path, target: Path) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    done = partial.stat().st_size if partial.is_file() else 0
    size: int | None = metadata.size
    if size is not None and done > size:
        partial.unlink()
        done = 0
    free = shutil.disk_usage(target.parent).free
    if size is not None and size - done > free:
        raise MissingWeightsError(
            f"{target.parent}: {(size - done) / _GB:.1f} GB are needed for {target.name} and {free / _GB:.1f} GB are "
            "free; make space or name another --folder"
        )
    headers = build_hf_headers()
    headers["Accept-Encoding"] = "identity"  # a compressed answer cannot be resumed
    if urlparse(metadata.location).netloc != urlparse(url).netloc:
        headers.pop("authorization", None)  # the token is for the hub alone, not for where it keeps its files
    if done:
        log.info("%s: going on at %.1f of %.1f GB", target.name, done / _GB, (size or 0) / _GB)
    try:
        with partial.open("ab") as file:
            http_get(
                metadata.location, file, resume_size=done, headers=headers, expected_size=size,
                displayed_filename=target.name,
            )  # fmt: skip
    except Exception as error:  # versions of the library differ in what they raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise MissingWeightsError(
                f"{target.parent}: the disk is full; make space and run the command again to go on"
            ) from error
        have = partial.stat().st_size if partial.is_file() else 0
        raise MissingWeightsError(
            f"{release.repository}: the download stopped at {have} of {size} bytes ({type(error).__name__}: {error}); "
            "run the command again to go on from there"
        ) from error
