"""Which scenes of a source are packed: a split by a hash of their names, and none that a protocol tests on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from reconx_pl.data.formats.dtu import dtu_scene_name
from reconx_pl.data.formats.readers import UnreadableScene
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.errors import BadDataError, ConfigurationError

Split = Literal["train", "val", "test"]


@dataclass
class SceneChoice:
    """Chooses scenes by name, and counts what it leaves out.

    A scene's split follows from its name and the seed alone: adding scenes moves no other, and a larger share moves
    scenes in one direction only.

    Args:
        split: the part that is kept; None keeps all.
        val_share: share of the scenes for validation, 0 to 1.
        test_share: share of the scenes for tests, 0 to 1.
        seed: another seed is another split.
        excluded: names of scenes that are never kept, as :func:`listed_scenes` gives them.

    Attributes:
        left_out: names of the scenes left out because of ``excluded``, in the order in which they came.
        other_splits: scenes of the other parts.

    Raises:
        ConfigurationError: shares that are negative or leave nothing to train on.
    """

    split: Split | None = None
    val_share: float = 0.05
    test_share: float = 0.05
    seed: int = 0
    excluded: frozenset[str] = frozenset()
    left_out: list[str] = field(default_factory=list)
    other_splits: int = 0

    def __post_init__(self) -> None:
        if min(self.val_share, self.test_share) < 0 or self.val_share + self.test_share >= 1:
            raise ConfigurationError(
                f"val_share {self.val_share:g} and test_share {self.test_share:g} must not be negative, and leave "
                "something to train on"
            )

    def split_of(self, name: str) -> Split:
        """The part of a scene."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        if position < self.test_share:
            return "test"
        return "val" if position < self.test_share + self.val_share else "train"

    def keep(self, scenes: Iterable[RawScene | UnreadableScene]) -> Iterator[RawScene | UnreadableScene]:
        """Pass on the scenes that are chosen."""
        for scene in scenes:
            if dtu_scene_name(scene.name) in self.excluded:
                self.left_out.append(scene.name)
            elif self.split is not None and self.split_of(scene.name) != self.split:
                self.other_splits += 1
            else:
                yield scene

    @property
    def unmatched(self) -> list[str]:
        """Excluded names that no scene had so far."""
        return sorted(self.excluded - {dtu_scene_name(name) for name in self.left_out})

    @property
    def settings(self) -> dict[str, object]:
        """What of the choice shapes the clips, as JSON values; nothing where all scenes are kept."""
        chosen: dict[str, object] = {}
        if self.split is not None:
            shares = {"val_share": self.val_share, "test_share": self.test_share, "split_seed": self.seed}
            chosen |= {"split": self.split, **shares}
        if self.excluded:
            digest = hashlib.sha256("\n".join(sorted(self.excluded)).encode()).hexdigest()
            chosen["excluded"] = f"{len(self.excluded)} names, SHA-256 {digest[:16]}"
        return chosen


def listed_scenes(files: Iterable[Path]) -> frozenset[str]:
    """Names of scenes in lists and evaluation indices.

    A ``.json`` is an index in pixelSplat's format, whose keys count, whatever they hold, or a list of names; any other
    file has one name a line, ``#`` for remarks. Entries such as ``scan1_train_03`` of MVSplat's index for DTU name the
    scan.

    Raises:
        BadDataError: a file that is missing, holds something else, or no name.
    """
    names: set[str] = set()
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
            content = json.loads(text) if file.suffix == ".json" else None
        except (OSError, ValueError) as error:
            raise BadDataError(f"{file}: cannot read names of scenes from it ({error})") from error
        found = list(content) if isinstance(content, (dict, list)) else []
        if content is None:
            found = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        if not found or not all(isinstance(name, str) for name in found):
            raise BadDataError(
                f"{file}: no names of scenes in it; needed are a JSON object with a key for each scene, a JSON list of "
                "names, or text with one name a line"
            )
        names.update(dtu_scene_name(name) for name in found)
    return frozenset(names)
