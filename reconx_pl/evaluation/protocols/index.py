"""Evaluation indices in the JSON format of pixelSplat, MVSplat, DepthSplat, NoPoSplat, MVSplat360 and latentSplat.

A file maps a key to ``{"context": [frame, ...], "target": [frame, ...]}``, or to ``null`` where the publisher found no
such views. Frame numbers count the frames of the scene from 0. Some files hold more in an entry (``overlap``,
``target_quantify``), which is not read, and latentSplat's has a list of entries a key, empty for none. The key is the
name of the scene, except in DTU's, where a scene has four (``scan1_train_00`` to ``scan1_train_03``).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconx_pl.errors import BadDataError


@dataclass(frozen=True)
class ProtocolEntry:
    """One entry of a protocol: views of one scene.

    Args:
        key: unique in the protocol.
        scene: name of the scene in its data set.
        context: frames that a method may see, in the order in which they are visited, counted from 0; empty where a
            rule gives them once the number of the scene's frames is known.
        target: frames that are scored; may repeat a context frame, as published indices do.
    """

    key: str
    scene: str
    context: tuple[int, ...] = ()
    target: tuple[int, ...] = ()

    @property
    def gap(self) -> int:
        """Frames from the first to the last context view."""
        return max(self.context) - min(self.context)


@dataclass(frozen=True)
class EvaluationIndex:
    """An index as it was read.

    Args:
        entries: in the order of the file.
        empty: keys that the publisher left without views.
    """

    entries: tuple[ProtocolEntry, ...]
    empty: tuple[str, ...] = ()


def read_index(file: Path, sha256: str | None = None, scene: str | None = None) -> EvaluationIndex:
    """Read an index file.

    Args:
        file: JSON.
        sha256: expected checksum of the bytes, hexadecimal; None takes any.
        scene: regular expression that matches a whole key, whose first group is the name of the scene; None takes the
            key itself.

    Raises:
        BadDataError: no such file, another checksum, or no index; names the file and the key.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BadDataError(f"{file}: cannot read this index ({error.strerror or error})") from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise BadDataError(
            f"{file}: sha256 is {found}, the protocol was defined with {sha256}; remove the file and fetch it again "
            "with `reconx protocols fetch`"
        )
    try:
        content = json.loads(data, object_pairs_hook=lambda pairs: _unrepeated(pairs, file))
    except ValueError as error:  # BadDataError is one: what a repeated key raises passes through as it is
        raise error if isinstance(error, BadDataError) else BadDataError(f"{file}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise BadDataError(f"{file}: holds a {type(content).__name__}, not scenes with their views")
    return parse_index(content, str(file), scene)


def parse_index(content: Mapping[str, Any], source: str, scene: str | None = None) -> EvaluationIndex:
    """An index from what its JSON holds; see ``read_index``. ``source`` is what errors call it."""
    entries, empty = [], []
    for key, value in content.items():
        name = _scene_of(key, scene, source)
        several = value if isinstance(value, list) else [] if value is None else [value]
        if not several:
            empty.append(key)
        for number, one in enumerate(several):
            unique = key if len(several) == 1 else f"{key}_{number:02d}"
            entries.append(
                ProtocolEntry(unique, name, _frames(one, "context", 2, unique, source),
                               _frames(one, "target", 1, unique, source))
            )  # fmt: skip
    keys = [entry.key for entry in entries]
    if len(set(keys)) < len(keys):
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        raise BadDataError(f"{source}: several entries are called {', '.join(repeated[:5])}")
    return EvaluationIndex(tuple(entries), tuple(empty))


def _unrepeated(pairs: Iterable[tuple[str, Any]], file: Path) -> dict[str, Any]:
    """JSON would silently keep the last of two values of one key."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise BadDataError(f"{file}: the key {key!r} occurs twice")
        content[key] = value
    return content


def _scene_of(key: str, pattern: str | None, source: str) -> str:
    if pattern is None:
        return key
    match = re.fullmatch(pattern, key)
    if match is None:
        raise BadDataError(f"{source}: the key {key!r} does not have the form {pattern}")
    return match[1]


def _frames(entry: Any, name: str, least: int, key: str, source: str) -> tuple[int, ...]:
    frames = entry.get(name) if isinstance(entry, Mapping) else None
    if not isinstance(frames, (list, tuple)) or any(type(frame) is not int or frame < 0 for frame in frames):
        raise BadDataError(f"{source}: {key} has no list of frame numbers under {name!r}")
    if len(set(frames)) < max(least, len(frames)):
        raise BadDataError(
            f"{source}: {key} has {list(frames)} under {name!r}; at least {least} frames are needed, none twice"
        )
    return tuple(frames)
