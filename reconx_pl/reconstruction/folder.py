"""The folder of results: whose it is, that no other run works there, and what is said where it cannot be written."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from reconx_pl.errors import ConfigurationError, StorageError
from reconx_pl.files.json_files import read_json
from reconx_pl.reconstruction import files, fitting, generation
from reconx_pl.reconstruction.files import GIVEN, STAGE_FOLDER, SUMMARY

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
RESULTS = (
    *(files.IMAGES, files.MODEL, files.CLOUD, files.ARCHIVE, files.CAMERAS),
    *(generation.VIDEO, fitting.SCENE, fitting.PAGE, fitting.VIDEO, fitting.DEPTH_VIDEO),
)  # what a run puts into its folder, over what is there


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keep other runs out of a folder during the block; a run that is killed frees it.

    Nothing is locked where the system, or the file system, has no such locks (Windows, some network folders).

    Raises:
        ConfigurationError: another run works there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w", encoding="utf-8") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    f"another run works in {out}; wait for its end, or name another folder"
                ) from None
            except OSError as error:
                log.warning("%s cannot be locked (%s): let no other run work there", out, error.strerror)
        yield


def spare(out: Path, photographs: Sequence[Path]) -> None:
    """Refuse photographs that stand where results go, which are removed first, --overwrite or not.

    Raises:
        ConfigurationError: names the first of them.
    """
    taken = {(out / name).resolve() for name in (*RESULTS, STAGE_FOLDER)}
    for path in photographs:
        if taken & {path.resolve(), *path.resolve().parents}:
            raise ConfigurationError(
                f"{path} stands where results in {out} go and would be lost: name another folder for the results"
            )


def claim(out: Path, photographs: list[dict[str, str]], overwrite: bool) -> None:
    """Make the folder ours, or refuse.

    Raises:
        ConfigurationError: it holds something else.
    """
    out.mkdir(parents=True, exist_ok=True)
    before = read_json(out / SUMMARY)
    if before is None:
        foreign = sorted(
            {path.name for path in out.iterdir() if not path.name.startswith(".")} - {SUMMARY, STAGE_FOLDER, GIVEN}
        )
        if foreign and not overwrite:
            raise ConfigurationError(
                f"{out} holds files and no reconstruction of ours ({', '.join(foreign[:5])}); name another folder, or "
                "say --overwrite"
            )
    elif before.get("complete") and _digests(before["photographs"]) != _digests(photographs) and not overwrite:
        raise ConfigurationError(
            f"{out} holds the reconstruction of other photographs; name another folder, or say --overwrite (stages of "
            "the same photographs are kept in any case)"
        )


def _digests(photographs: list[dict[str, str]]) -> set[str]:
    return {entry["sha256"] for entry in photographs}


@contextmanager
def storage(out: Path) -> Iterator[None]:
    """Say plainly what keeps the block from writing to ``out``.

    Raises:
        StorageError: in the place of errors of the file system.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number, text = getattr(error, "errno", None), str(error)
        where = getattr(error, "filename", None) or out
        if number in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in text or "No space left" in text:
            free = shutil.disk_usage(out if out.exists() else ".").free
            raise StorageError(
                f"{out}: the disk is full, this takes more than the {free / 1e6:.0f} MB that are free; make room and "
                "give the same command again, finished stages are kept"
            ) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(f"{where}: no permission to write ({error.strerror}); name a folder of yours") from error  # type: ignore[union-attr]
        if number in (errno.ENOTDIR, errno.EEXIST, errno.ENOENT):
            raise StorageError(f"{where}: no folder, and none can be made; name another one for the results") from error
        raise
