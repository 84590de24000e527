"""Where a run goes on: its newest complete checkpoint, whatever strategy wrote it."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from reconx_pl.training.checkpointing.checkpoint_places import give_up, is_complete, partial_of
from reconx_pl.training.checkpointing.sharded_checkpoint import read_file, read_rest, read_whole

log = logging.getLogger(__name__)
STEP = re.compile(r"step=(\d+)")


def run_folder(trainer: L.Trainer) -> Path:
    """The folder of a run: its logger's, where ``config.yaml`` is. Every rank has to ask."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def checkpoint_folder(trainer: L.Trainer) -> Path:
    """Where a run's checkpoints are unless its configuration says otherwise. Every rank has to ask."""
    return run_folder(trainer) / "checkpoints"


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step in a folder, None where there is none.

    Complete is a folder with the table of its tensors and the rest beside them, or a whole ``.ckpt`` file; one that
    was being written when its run was killed is passed over, with a line in the log. A link is taken before what it
    leads to: Lightning never removes the checkpoint whose path it was given, and links cost nothing.
    """
    best: tuple[tuple[int, float, bool], Path] | None = None
    # a folder also counts on its way into its place or out of it, as .ckpt.partial or .ckpt.old
    for path in sorted(path for path in folder.glob("*.ckpt*") if path.is_dir() or path.suffix == ".ckpt"):
        # the table of contents of a file is written last, and is what is_zipfile looks for
        if not (is_complete(path) if path.is_dir() else zipfile.is_zipfile(path)):
            log.warning("%s is not a complete checkpoint and is passed over", path)
            continue
        rank = (_step(path), path.stat().st_mtime, path.is_symlink())
        if best is None or rank > best[0]:
            best = rank, path
    return None if best is None else best[1]


def _step(path: Path) -> int:
    """Optimizer steps behind a checkpoint: of its name, or else of its content."""
    named = STEP.search(path.resolve().name)
    if named:
        return int(named[1])
    return int((read_rest(path) if path.is_dir() else read_file(path))["global_step"])


class EitherCheckpointIO(TorchCheckpointIO):
    """Checkpoint files that are whole or not there at all; reads the folders of sharded runs as well.

    Nothing is unpickled.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write beside the place, read back what it says of itself, and move it there.

        An older checkpoint of this name, and those that ``ModelCheckpoint`` removes afterwards, stay until then.

        Raises:
            CheckpointError: it could not be written, for want of room or another reason.
        """
        if "://" in str(path):  # an object store puts whole objects in place by itself
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        partial = partial_of(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(checkpoint, partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            written = torch.load(partial, map_location="cpu", weights_only=True, mmap=True)
            if written["global_step"] != checkpoint["global_step"]:
                raise OSError(f"it reads back as step {written['global_step']}; check the disk")
            partial.replace(path)
        except (OSError, RuntimeError) as error:  # torch turns a failed write into a RuntimeError
            raise give_up(path, error) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint on the processor.

        Raises:
            MissingWeightsError: no such file, or a folder that was not written to its end.
            BadWeightsError: damaged, or with more than tensors and plain values.
        """
        path = Path(path)
        return read_whole(path) if path.is_dir() else read_file(path)
