"""Shards with more members than before: read a clip, compute its members, write it; many processes, restartable.

Every shard is one piece of work. A process takes those whose number is its rank modulo the number of processes. A
finished shard is renamed into place and then *recorded* in ``OUT/.parts``; the manifest of OUT is written by whichever
process finds a record of every shard after it has written its last one. The last of several that finish together finds
them all, and should two find them at once, both write the same bytes. Nothing waits for another process, nothing is
locked; a killed process loses the shard that it was writing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from reconx_pl.data.shards.caches import CACHES, is_cache
from reconx_pl.data.shards.manifest import MANIFEST, Manifest, Shard
from reconx_pl.data.shards.reader import read_shard
from reconx_pl.data.shards.schema import GEOMETRY, decode_clip, with_geometry
from reconx_pl.data.shards.shard_file import ShardFile
from reconx_pl.errors import BadCameraError, BadDataError, BadSceneError, ConfigurationError
from reconx_pl.files.atomic import own_temporary, write_whole
from reconx_pl.types import Clip, Progress

logger = logging.getLogger(__name__)

PARTS = ".parts"


class Precomputer(Protocol):
    """Makes members from a clip.

    Raises:
        BadSceneError: they cannot be made of this clip; it keeps none of them then.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The members that every clip gets, such as ``moments-0123456789ab.npy``."""
        ...

    def __call__(self, clip: Clip) -> Mapping[str, bytes]:
        """These members of one clip. The same clip has to give the same bytes."""
        ...


@dataclass
class PrecomputeReport:
    """What one process did.

    Attributes:
        out: folder of the new shards.
        shards: written now by this process.
        done: shards of this process that were there.
        clips: precomputed now.
        bad: message for each clip that could not be read and was copied as it is, without new members.
        without: message for each clip of which some members could not be made; it has none of this kind.
        missing: shards that no process has finished yet; at 0 the manifest is written.
    """

    out: Path
    shards: int = 0
    done: int = 0
    clips: int = 0
    bad: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    missing: int = 0


def precompute_shards(
    source: str | Path,
    out: str | Path,
    precomputers: Sequence[Precomputer],
    settings: Mapping[str, Any] | None = None,
    rank: int = 0,
    world: int = 1,
    progress: Progress | None = None,
) -> PrecomputeReport:
    """Copy shards, every clip with the members that the precomputers make of it; run again to go on.

    The new folder has the same shards with the same clips in the same order, so that a training run sees the same
    batches. A clip that cannot be read is copied as it is: training meets it as the same bad clip.

    Args:
        source: folder of shards.
        out: folder of the new shards, on a file system that all processes share.
        precomputers: run in this order; a member that a clip has already is replaced. Depth and cloud that one makes
            are those that the next ones see.
        settings: how the members are made (JSON values); goes into the manifest, and all processes need the same.
        rank, world: this process and their number.
        progress: counts the clips that this process has to do, after each.

    Raises:
        BadDataError: a damaged source.
        ConfigurationError: ``out`` is the source, another folder of shards, or was made with other settings.
    """
    manifest, out = Manifest.load(source), Path(out)
    manifest.verify()
    work = _Work(manifest, out, _settings(manifest, precomputers, settings or {}))
    own = manifest.shards[rank::world]
    report = PrecomputeReport(out)
    left = [shard for shard in own if work.finished(shard) is None]
    report.done = len(own) - len(left)
    total = sum(shard.clips for shard in left)
    for shard in left:
        for _ in work.precompute(shard, precomputers, report):
            report.clips += 1
            if progress is not None:
                progress(f"precomputing {shard.name}", report.clips, total)
        report.shards += 1
    report.missing = work.list_all()
    return report


def _settings(manifest: Manifest, precomputers: Sequence[Precomputer], settings: Mapping[str, Any]) -> dict[str, Any]:
    made = [name for precomputer in precomputers for name in precomputer.names]
    if len(set(made)) < len(made) or not made:
        raise ConfigurationError(f"precomputers have to make members, and each its own; they make {made}")
    caches = sorted({*manifest.settings.get(CACHES, ()), *filter(is_cache, made)})
    annotations = [*manifest.settings.get("annotations", ()), {"members": sorted(made), **settings}]
    return json.loads(json.dumps({**manifest.settings, CACHES: caches, "annotations": annotations}))


class _Work:
    """The folder that is being made."""

    def __init__(self, source: Manifest, out: Path, settings: dict[str, Any]) -> None:
        self.source, self.out, self.settings = source, out, settings
        if out.resolve() == source.folder.resolve():
            raise ConfigurationError(f"{out}: the new shards need a folder of their own")
        self.parts = out / PARTS
        if (out / MANIFEST).exists() and not self.parts.is_dir():
            raise ConfigurationError(f"{out} holds other shards; choose another folder")
        self.parts.mkdir(parents=True, exist_ok=True)

    def finished(self, shard: Shard) -> Shard | None:
        """The record of the new shard of this name, if it is whole and made of this very source.

        Raises:
            ConfigurationError: it was made with other settings.
        """
        path = self._record(shard)
        try:
            record = json.loads(path.read_bytes())
            made = Shard(**{**record["shard"], "keys": tuple(record["shard"]["keys"])})
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise BadDataError(f"{path} is not a record of a shard ({error!r}); delete it and run again") from error
        if record["settings"] != self.settings:
            raise ConfigurationError(
                f"{self.out} was made with other weights or settings: {record['settings'].get('annotations')}, now "
                f"{self.settings['annotations']}. Choose another folder, or delete this one"
            )
        whole = Manifest(self.out).damage(made) is None
        return made if whole and record["source"] == shard.sha256 else None

    def precompute(self, shard: Shard, precomputers: Sequence[Precomputer], report: PrecomputeReport) -> Iterator[str]:
        """Write one shard, put it in place, and record it; gives the key of every clip when it is done."""
        path = self.out / shard.name
        for stale in self.out.glob(f".{shard.name}.*.tmp"):  # of a process that was killed
            stale.unlink(missing_ok=True)
        file = ShardFile(path, own_temporary(path))
        try:
            for raw in read_shard(self.source.folder / shard.name, shard, members=None):
                members = {name: data for name, data in raw.members.items() if not name.startswith("__")}
                try:
                    clip = decode_clip(raw.members, raw.source)
                except (BadDataError, BadCameraError) as error:
                    logger.warning("a bad clip is copied as it is: %s", error)
                    report.bad.append(str(error))
                else:
                    for precomputer in precomputers:
                        members = {name: data for name, data in members.items() if name not in precomputer.names}
                        try:
                            members |= precomputer(clip)
                        except BadSceneError as error:
                            logger.warning("%s", error)
                            report.without.append(str(error))
                        if not GEOMETRY.isdisjoint(precomputer.names):  # those that follow look at it
                            clip = with_geometry(clip, members, raw.source)
                file.add(raw.members["__key__"], members)
                yield raw.members["__key__"]
            made = file.close()
        except BaseException:
            file.discard()
            raise
        try:
            file.place()
        except FileNotFoundError as error:
            raise ConfigurationError(
                f"{path}: another process writes this shard too; give every process its own rank"
            ) from error
        record = {"settings": self.settings, "source": shard.sha256, "shard": asdict(made)}
        write_whole(self._record(shard), json.dumps(record, sort_keys=True).encode())

    def list_all(self) -> int:
        """Write the manifest if every shard is there; the number of those that are not."""
        made = [self.finished(shard) for shard in self.source.shards]
        whole = tuple(shard for shard in made if shard is not None)
        if len(whole) == len(made):
            manifest, path = Manifest(self.out, self.settings, whole), self.out / MANIFEST
            if not path.exists() or path.read_bytes() != manifest.dump():
                manifest.save()
        return len(made) - len(whole)

    def _record(self, shard: Shard) -> Path:
        return self.parts / f"{shard.name}.json"
