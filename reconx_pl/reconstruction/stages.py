"""Stages on disk: each in a folder named by the hash of what it is made of, done once its record is there.

A stage that was interrupted keeps its folder, and may find in it what it had finished. Folders of other settings stay
beside each other, so that going back to earlier settings costs nothing; any of them may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from reconx_pl.files.json_files import read_json, write_json
from reconx_pl.reconstruction.memory import peak_memory
from reconx_pl.reconstruction.settings import STAGES
from reconx_pl.types import Progress
from reconx_pl.version import __version__

RECORD = "record.json"
LAYOUT = 1  # part of every key; raise it when code changes what a stage makes of the same input


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        name: one of ``settings.STAGES``.
        key: hash of everything that it is made of.
        folder: its files.
        seconds: wall clock of the making.
        peak_memory: bytes of the process at most; before the first stage is done, with what was loaded before.
        peak_device_memory: bytes of the GPU at most; None without one.
        notes: what a user should know.
        reused: whether it was there already.
    """

    name: str
    key: str
    folder: Path
    seconds: float
    peak_memory: int
    peak_device_memory: int | None
    notes: tuple[str, ...]
    reused: bool


class Stages:
    """Makes stages, or finds them made.

    Args:
        folder: where their folders are.
        device: whose memory is measured.
        progress: what is done begins with the number of the stage among all: "5/6 fit, loss 0.012".
    """

    def __init__(self, folder: Path, device: torch.device, progress: Progress | None = None) -> None:
        self.folder = folder
        self.device = device
        self.progress = progress
        self.done: list[Stage] = []

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        make: Callable[[Path, Progress], Sequence[str]],
        after: Sequence[Stage],
    ) -> Stage:
        """The stage, made now or before.

        Args:
            name: of the stage.
            inputs: settings and identities that its result follows from, as plain JSON.
            make: writes into the folder it is given, says how far it is, and returns notes.
            after: the stages whose results it reads.
        """
        assert name in STAGES
        content = {"layout": LAYOUT, "name": name, "inputs": inputs, "after": [stage.key for stage in after]}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        key = hashlib.sha256(text.encode()).hexdigest()
        folder = self.folder / f"{name}-{key[:12]}"
        stage = _found(folder, name, key)
        if stage is None:
            stage = self._make(name, key, folder, make)
        self.done.append(stage)
        return stage

    def _make(self, name: str, key: str, folder: Path, make: Callable[[Path, Progress], Sequence[str]]) -> Stage:
        folder.mkdir(parents=True, exist_ok=True)
        number = f"{STAGES.index(name) + 1}/{len(STAGES)}"
        self._report(f"{number} {name}", 0, None)
        started = time.perf_counter()
        with peak_memory(self.device) as peak:
            notes = tuple(make(folder, lambda what, done, total: self._report(f"{number} {what}", done, total)))
        seconds = time.perf_counter() - started
        stage = Stage(name, key, folder, seconds, peak.host, peak.device, notes, reused=False)
        write_json(folder / RECORD, stage_record(stage))
        self._report(f"{number} {name}", 1, 1)
        return stage

    def _report(self, what: str, done: int, total: int | None) -> None:
        if self.progress is not None:
            self.progress(what, done, total)


def stage_record(stage: Stage) -> dict[str, Any]:
    """What record.json and the summary say about a stage."""
    return {
        **{name: value for name, value in asdict(stage).items() if name not in ("folder", "notes")},
        "seconds": round(stage.seconds, 3),
        "notes": list(stage.notes),
        "folder": stage.folder.name,
        "version": __version__,
    }


def _found(folder: Path, name: str, key: str) -> Stage | None:
    record = read_json(folder / RECORD)
    if record is None or record.get("key") != key:
        return None
    return Stage(
        name,
        key,
        folder,
        record["seconds"],
        record["peak_memory"],
        record["peak_device_memory"],
        tuple(record["notes"]),
        reused=True,
    )
