"""One tar file of clips that is either complete or not there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import webdataset

from reconx_pl.data.shards.manifest import Shard
from reconx_pl.files.atomic import sync_folder


class ShardFile:
    """Writes clips under a temporary name. Equal clips give equal bytes.

    Args:
        path: of the shard.
        temporary: in the same folder.
    """

    def __init__(self, path: Path, temporary: Path) -> None:
        self.path, self._temporary = path, temporary
        self.keys: list[str] = []
        self._file = temporary.open("wb")
        self._hash = hashlib.sha256()
        # Members are sorted by the tar writer; time and owner are fixed.
        self._tar = webdataset.TarWriter(
            self, user="", group="", mtime=0, encoder=False, compress=False, format="PAX_FORMAT"
        )

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Append the members of a clip; after an error only ``discard`` is of use."""
        self._tar.write({"__key__": key, **members})
        self.keys.append(key)

    def write(self, data: bytes) -> int:
        """For the tar writer: what goes into the file goes into the checksum."""
        self._hash.update(data)
        return self._file.write(data)

    def close(self) -> Shard:
        """Bring everything to the disk, still under the temporary name."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        return Shard(self.path.name, len(self.keys), size, self._hash.hexdigest(), tuple(self.keys))

    def place(self) -> None:
        """Give the closed file its name, over an older one if there is one."""
        os.replace(self._temporary, self.path)
        sync_folder(self.path.parent)

    def discard(self) -> None:
        """Remove the temporary file, closed or not."""
        with suppress(OSError):  # a full disk, most likely the reason for giving up
            self._tar.close()
        with suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)
