"""Packing clips into shards that are either complete or not there."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from reconx_pl.data.shards.manifest import MANIFEST, SHARD_NAME, Manifest, Shard
from reconx_pl.data.shards.schema import encode_clip
from reconx_pl.data.shards.shard_file import ShardFile
from reconx_pl.errors import BadDataError, ConfigurationError
from reconx_pl.types import Clip

logger = logging.getLogger(__name__)


class ShardWriter:
    """Writes ``shard-000000.tar``, ``shard-000001.tar``, ... and ``manifest.json`` into a folder.

    A shard is written under a temporary name and renamed when it is complete; the manifest follows at once. Whatever
    interrupts packing costs at most the shard that was being written. Opening the folder again goes on where it
    stopped: skip the clips in :attr:`done`. Shards of the manifest that have vanished or been truncated are dropped
    from it, so that their clips are packed anew. The same clips in the same order give the same bytes, with or
    without interruptions. One process at a time writes into a folder.

    Use as a context manager: an exception inside discards the shard being written, a normal end finishes it.

    Args:
        folder: made if it is not there.
        clips_per_shard: a training run needs at least as many shards as ranks x workers.
        settings: how the clips are made (JSON values); compared with those of a folder that already holds shards.
        quality: JPEG quality of the frames.

    Raises:
        ConfigurationError: other settings than the folder was packed with; shards that the manifest does not know.
    """

    def __init__(
        self,
        folder: str | Path,
        clips_per_shard: int = 64,
        settings: Mapping[str, Any] | None = None,
        quality: int = 95,
    ) -> None:
        if clips_per_shard < 1:
            raise ConfigurationError(f"clips_per_shard must be positive, got {clips_per_shard}")
        self.folder = Path(folder)
        self.clips_per_shard = clips_per_shard
        self.quality = quality
        self._file: ShardFile | None = None  # being written
        own = {"clips_per_shard": clips_per_shard, "jpeg_quality": quality}
        self._manifest = self._open(json.loads(json.dumps({**(settings or {}), **own})))
        self.done: set[str] = set(self._manifest.keys)

    @property
    def manifest(self) -> Manifest:
        """The shards that are complete so far."""
        return self._manifest

    def write(self, clip: Clip) -> None:
        """Add a clip.

        Raises:
            BadDataError: a clip of this key is already packed.
            BadCameraError, ConfigurationError: a clip that cannot be stored; nothing of it is written, go on at will.
        """
        self._refuse_duplicate(clip.key)
        self.write_members(clip.key, encode_clip(clip, self.quality))

    def write_members(self, key: str, members: Mapping[str, bytes]) -> None:
        """Add a clip that :func:`encode_clip` has already encoded, perhaps in another process; raises as ``write``."""
        self._refuse_duplicate(key)
        try:
            if self._file is None:
                self._file = self._begin()
            self._file.add(key, members)
        except BaseException:
            self.discard()
            raise
        self.done.add(key)
        if len(self._file.keys) == self.clips_per_shard:
            self.finish_shard()

    def finish_shard(self) -> None:
        """Put the shard being written in its place, however few clips it has, and list it."""
        if self._file is None:
            return
        shard = self._file.close()
        path = self.folder / MANIFEST
        if (path.read_bytes() if path.exists() else None) != self._on_disk:
            self.discard()
            raise ConfigurationError(
                f"{path} was changed by another process while this one was packing; "
                "let one process at a time pack into a folder"
            )
        self._file.place()
        self._file = None
        self._store((*self._manifest.shards, shard))

    def discard(self) -> None:
        """Give up the shard being written; its clips are no longer ``done``."""
        if self._file is None:
            return
        self._file.discard()
        self.done.difference_update(self._file.keys)
        self._file = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish_shard()
        else:
            self.discard()

    def _open(self, settings: dict[str, Any]) -> Manifest:
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob(".shard-*.tar.tmp"):
            stale.unlink()
        path = self.folder / MANIFEST
        self._on_disk = path.read_bytes() if path.exists() else None
        manifest = Manifest(self.folder, settings)
        if self._on_disk is not None:
            manifest = Manifest.parse(self.folder, self._on_disk)
            self._compare(dict(manifest.settings), settings)
        listed = {shard.name for shard in manifest.shards}
        unlisted = sorted(p.name for p in self.folder.glob("shard-*.tar") if SHARD_NAME.fullmatch(p.name))
        unlisted = [name for name in unlisted if name not in listed]
        if len(unlisted) > 1:  # one may be left by a crash between the two renames
            raise ConfigurationError(
                f"{self.folder} holds {len(unlisted)} shards that its manifest does not list ({unlisted[0]}, ...); "
                "pack into another folder, or delete them"
            )
        whole = [shard for shard in manifest.shards if not manifest.damage(shard)]
        for shard in manifest.shards:
            if shard not in whole:
                logger.warning("%s %s; packing it again", self.folder / shard.name, manifest.damage(shard))
        return Manifest(self.folder, manifest.settings, tuple(whole))

    def _compare(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        unset = "(not set)"
        differences = [
            f"{name} was {old.get(name, unset)!r} and is now {new.get(name, unset)!r}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name, unset) != new.get(name, unset)
        ]
        if differences:
            raise ConfigurationError(
                f"{self.folder} was packed with other settings: {'; '.join(differences)}. "
                "Repeat the old settings, choose another folder, or delete this one to pack afresh"
            )

    def _begin(self) -> ShardFile:
        used = {shard.name for shard in self._manifest.shards}
        number = next(n for n in range(len(used) + 1) if f"shard-{n:06d}.tar" not in used)
        name = f"shard-{number:06d}.tar"
        return ShardFile(self.folder / name, self.folder / f".{name}.tmp")

    def _refuse_duplicate(self, key: str) -> None:
        if key in self.done:
            raise BadDataError(f"{self.folder}: clip {key} is already packed; skip the keys in `done`, or rename it")

    def _store(self, shards: tuple[Shard, ...]) -> None:
        ordered = tuple(sorted(shards, key=lambda shard: shard.name))
        self._manifest = Manifest(self.folder, self._manifest.settings, ordered)
        self._manifest.save()
        self._on_disk = self._manifest.dump()
