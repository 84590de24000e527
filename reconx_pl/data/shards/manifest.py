"""The list beside the shards: which there are, how many clips each holds, and their checksums."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reconx_pl.data.shards.schema import SCHEMA_VERSION
from reconx_pl.errors import BadDataError, SchemaVersionError
from reconx_pl.files.atomic import write_whole

MANIFEST = "manifest.json"
HOW_TO_PACK = "make shards with `reconx pack` (your own scenes) or `reconx procedural` (synthetic ones)"
SHARD_NAME = re.compile(r"shard-\d{6,}\.tar")


@dataclass(frozen=True)
class Shard:
    """One tar file: ``bytes`` is its size, ``keys`` are its clips in the order in which they stand in it."""

    name: str
    clips: int
    bytes: int
    sha256: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """The shards of one folder.

    Args:
        folder: where the shards lie.
        settings: how they were packed; packing goes on only under the same settings.
        shards: in the order of their names.
        schema: version of the clip schema.
    """

    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    shards: tuple[Shard, ...] = ()
    schema: int = SCHEMA_VERSION

    @property
    def clips(self) -> int:
        return sum(shard.clips for shard in self.shards)

    @property
    def keys(self) -> list[str]:
        """Keys of all clips in the order of the shards."""
        return [key for shard in self.shards for key in shard.keys]

    @property
    def order_digest(self) -> str:
        """A digest of the names of shards and clips: what the order of training follows from, and not their content."""
        names = [[shard.name, *shard.keys] for shard in self.shards]
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()

    @classmethod
    def load(cls, folder: str | Path) -> Manifest:
        """Read ``folder/manifest.json``.

        Raises:
            SchemaVersionError: the shards have a newer schema than this version reads.
            BadDataError: no such folder, nothing in it, no manifest, no clips, or a manifest that contradicts itself.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not folder.is_dir():
            raise BadDataError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}; {HOW_TO_PACK}")
        if not path.is_file():
            reason = f"has no {MANIFEST}" if any(folder.iterdir()) else "is empty"
            raise BadDataError(f"{folder} {reason}; {HOW_TO_PACK}")
        manifest = cls.parse(folder, path.read_bytes())
        if not manifest.clips:
            raise BadDataError(f"{path} lists no clips; {HOW_TO_PACK}")
        return manifest

    @classmethod
    def parse(cls, folder: Path, text: bytes) -> Manifest:
        """A manifest from the bytes of its file; raises as :meth:`load`."""
        path = folder / MANIFEST
        try:
            data = json.loads(text)
            schema = int(data["schema"])
            if schema > SCHEMA_VERSION:
                raise SchemaVersionError(
                    f"{path}: the shards have schema {schema}, this reconx_pl reads up to {SCHEMA_VERSION}; "
                    "upgrade reconx_pl"
                )
            shards = tuple(
                Shard(str(s["name"]), int(s["clips"]), int(s["bytes"]), str(s["sha256"]), tuple(map(str, s["keys"])))
                for s in data["shards"]
            )
            manifest = cls(folder, dict(data["settings"]), shards, schema)
        except SchemaVersionError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise BadDataError(f"{path} is not a manifest ({error!r}); delete the folder and pack again") from error
        names, keys = [shard.name for shard in shards], manifest.keys
        wrong = [s.name for s in shards if not SHARD_NAME.fullmatch(s.name) or s.clips != len(s.keys) or s.clips < 1]
        if wrong or len(set(names)) < len(names) or len(set(keys)) < len(keys):
            reason = f"cannot be right about {', '.join(wrong)}" if wrong else "names a shard or a clip twice"
            raise BadDataError(f"{path} {reason}; delete the folder and pack again")
        return manifest

    def dump(self) -> bytes:
        """The bytes of the file."""
        data = {"schema": self.schema, "settings": dict(self.settings), "shards": [asdict(s) for s in self.shards]}
        return (json.dumps(data, sort_keys=True, indent=1) + "\n").encode()

    def save(self) -> None:
        """Write ``manifest.json`` so that a crash leaves the old one or the new one."""
        write_whole(self.folder / MANIFEST, self.dump())

    def damage(self, shard: Shard, checksums: bool = False) -> str | None:
        """What is wrong with the file of a shard, or None."""
        path = self.folder / shard.name
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if size != shard.bytes:
            return f"has {size} bytes instead of {shard.bytes}" + (", it is truncated" if size < shard.bytes else "")
        if checksums:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != shard.sha256:
                return f"has the checksum {digest[:12]} instead of {shard.sha256[:12]}"
        return None

    def verify(self, checksums: bool = False) -> None:
        """Compare the files with the list: sizes always, contents on demand (reads everything).

        Raises:
            BadDataError: names every damaged shard (the first ten) and the remedy.
        """
        found = [(shard, self.damage(shard, checksums)) for shard in self.shards]
        bad = [f"{self.folder / shard.name} {damage}" for shard, damage in found if damage]
        if bad:
            more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
            raise BadDataError(
                f"{'; '.join(bad[:10])}{more}. Delete the damaged shards and run the same pack command again: "
                "it packs only what is missing (or copy the folder again)"
            )
