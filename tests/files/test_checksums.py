"""Checksums of files: right, remembered only while the file is the same, and lists that name nothing elsewhere."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from reconx_pl.errors import BadWeightsError
from reconx_pl.files import checksums
from reconx_pl.files.checksums import SUMS, differing, file_sha256, read_sums, remembered_sha256, write_sums


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reconx_pl"


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 250])
def test_every_byte_counts_and_progress_ends_at_the_size(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "_BLOCK", 100)
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    seen: list[tuple[str, int, int | None]] = []
    assert file_sha256(tmp_path / "file", lambda *now: seen.append(now)) == hashlib.sha256(content).hexdigest()
    assert [done for _, done, _ in seen] == [min(100 * (n + 1), size) for n in range(-(-size // 100))]
    assert all((what, total) == ("reading file", size) for what, _, total in seen)


def test_a_checksum_is_remembered_until_the_file_changes(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"one")
    assert remembered_sha256(file) is None
    digest = file_sha256(file)
    assert remembered_sha256(file) == digest
    renamed = file.rename(tmp_path / "renamed")  # as a download is, when it is verified
    assert remembered_sha256(renamed) == digest
    stamp = renamed.stat()
    renamed.write_bytes(b"two")
    os.utime(renamed, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert remembered_sha256(renamed) is None
    file_sha256(renamed)
    (cache / "checksums.json").write_text("[not what was written")
    assert remembered_sha256(renamed) is None


def test_without_a_cache_nothing_is_remembered_and_nothing_fails(tmp_path: Path, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder would be")
    (tmp_path / "file").write_bytes(b"one")
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"one").hexdigest()
    assert remembered_sha256(tmp_path / "file") is None


def test_a_list_is_what_sha256sum_reads(tmp_path: Path) -> None:
    for name in ("a file", "b"):
        (tmp_path / name).write_bytes(name.encode())
    digests = {name: file_sha256(tmp_path / name) for name in ("a file", "b")}
    write_sums(tmp_path, digests)
    assert read_sums(tmp_path / SUMS) == digests
    assert list(differing(tmp_path, digests)) == []
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "-c", "--strict", SUMS], cwd=tmp_path, check=True, capture_output=True)
        made = subprocess.run(["sha256sum", "-b", "a file", "b"], cwd=tmp_path, capture_output=True, check=True)
        (tmp_path / SUMS).write_bytes(made.stdout)
        assert read_sums(tmp_path / SUMS) == digests
    (tmp_path / "b").write_bytes(b"c")
    (tmp_path / "a file").unlink()
    first, second = differing(tmp_path, digests)
    assert first == "a file is missing" and second.startswith("b has sha256 2e7d2c03")


@pytest.mark.parametrize("line", ["{}  ../a", "{}  /etc/passwd", "{}  ", "{}  ..", "abc  a", "a"])
def test_a_list_names_files_of_its_folder(line: str, tmp_path: Path) -> None:
    (tmp_path / SUMS).write_text(line.format("0" * 64) + "\n")
    with pytest.raises(BadWeightsError, match="no checksum of a file in that folder"):
        read_sums(tmp_path / SUMS)
