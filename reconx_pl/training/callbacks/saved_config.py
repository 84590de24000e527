"""What describes a run in its folder: its configuration, never replaced in silence, and the clips it generates."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, cast

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from reconx_pl.data.datamodule import ShardDataModule
from reconx_pl.diffusion.weights.generation import GENERATION, ClipDefaults, GenerationDefaults
from reconx_pl.files.atomic import write_whole
from reconx_pl.renamed import renamed
from reconx_pl.training.module import ReconXModule

log = logging.getLogger(__name__)


class RunConfig(SaveConfigCallback):
    """Saves ``config.yaml`` into the run's folder; a run that is started again with the same one leaves it alone.

    With another one the differences are logged, the former file becomes ``config.<n>.yaml``, and the new one is
    written. Only ``fit`` replaces a configuration that is there. ``generation.json`` beside it says the size of the
    clips that the run trains on, which are what its model generates where nothing else is said.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = trainer.log_dir  # asks all ranks
        stays = False
        if trainer.is_global_zero and folder is not None and not self.already_saved:
            path = Path(folder) / self.config_filename
            stays = path.is_file() and (stage != "fit" or not self._set_aside(path))
        if trainer.strategy.broadcast(stays):
            self.already_saved = True
        super().setup(trainer, pl_module, stage)
        if trainer.is_global_zero and folder is not None and stage == "fit":
            shape = cast(ShardDataModule, cast(Any, trainer).datamodule).clip_shape()
            sampling = cast(ReconXModule, pl_module).sampling
            write_whole(
                Path(folder) / GENERATION, GenerationDefaults(None, ClipDefaults(*shape), sampling).text().encode()
            )

    def _set_aside(self, path: Path) -> bool:
        """Rename the file if it says something else than the present configuration; returns whether it does."""
        new = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        try:
            old = renamed(yaml.safe_load(path.read_text()))
        except yaml.YAMLError:
            old = None  # half of a file
        changes = list(differences(old, new))
        if not changes:
            return False
        former = next(name for n in count(1) if not (name := path.with_name(f"{path.stem}.{n}{path.suffix}")).exists())
        path.rename(former)
        log.warning("%s differs from the present configuration and is now %s: %s", path, former, "; ".join(changes))
        return True


def differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    """What differs between two nested configurations, as ``data.batch_size: 4 -> 2``."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys(), key=str):
            yield from differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from differences(before, after, f"{name}[{number}]")
    elif old != new:
        yield f"{name}: {old} -> {new}"
