"""The folder of a training run: its weights, and its module built again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from jsonargparse import ArgumentParser

from reconx_pl.errors import MissingWeightsError
from reconx_pl.renamed import renamed
from reconx_pl.training.checkpointing.network_weights import load_weights

if TYPE_CHECKING:
    from reconx_pl.training.module import ReconXModule

RUN_CONFIG = "config.yaml"  # what ``train.py`` writes into the folder of a run


def weights_of(run: Path, weights: Path | None = None) -> Path:
    """The weights that stand for a run: those given, else what the run exported, else its newest checkpoint.

    Raises:
        MissingWeightsError: none of them is there.
    """
    exported = Path(weights) if weights else run / "weights.safetensors"
    if exported.exists():
        return exported
    from reconx_pl.training.checkpointing.resume import newest_checkpoint  # brings Lightning along

    found = None if weights else newest_checkpoint(run / "checkpoints")
    if found is None:
        where = exported if weights else f"{exported} or in {run / 'checkpoints'}"
        raise MissingWeightsError(f"no weights at {where}; let the run in {run} write a checkpoint first")
    return found


def load_run(run: Path, weights: Path | None = None) -> ReconXModule:
    """Rebuild the module of a training run from its ``config.yaml`` and load its weights.

    Args:
        run: folder that ``train.py`` wrote: ``config.yaml`` and ``weights.safetensors`` or ``checkpoints``. Of a
            checkpoint with an average of the weights (``model.ema``) the average is taken, as in validation.
        weights: a checkpoint (file or folder), a ``.safetensors`` file or a converted folder to take instead of the
            run's own.

    Raises:
        MissingWeightsError: no such run, or it has no weights yet.
        BadWeightsError: weights that do not fit the run's model.
    """
    from reconx_pl.training.module import ReconXModule  # brings Lightning along, which takes its time

    run = Path(run)
    config = run / RUN_CONFIG
    if not config.is_file():
        raise MissingWeightsError(
            f"{config} does not exist; train first, for instance: python train.py fit -c configs/stage2.yaml"
        )
    found = weights_of(run, weights)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ReconXModule, "model")
    parsed = parser.parse_object({"model": renamed(yaml.safe_load(config.read_text())["model"], ["model"])})
    module: ReconXModule = parser.instantiate_classes(parsed).model
    load_weights(module.network, found, average=module.ema_config is not None and ".ckpt" in found.name)
    return module.eval()
