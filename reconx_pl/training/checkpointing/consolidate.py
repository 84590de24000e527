"""The weights of a checkpoint, a file or a folder of parts, as one ``.safetensors`` file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from reconx_pl.errors import BadWeightsError

NETWORK, AVERAGE = "network.", "ema."  # names within ReconXModule


def checkpoint_weights(path: Path, average: bool = False) -> dict[str, Tensor]:
    """The network's weights out of a checkpoint under the names of ``ReconXDiffusion``; nothing else is read.

    Args:
        path: a checkpoint file, or a folder that sharded training wrote.
        average: the moving averages in the place of the weights that they belong to.

    Raises:
        MissingWeightsError, BadWeightsError: no complete checkpoint, a damaged one, or one without averages.
    """
    from reconx_pl.training.checkpointing.sharded_checkpoint import MODEL, read_file, read_table, read_tensors

    path = Path(path)
    inside = path.is_dir()
    file = {} if inside else read_file(path).get("state_dict", {})
    names = [name.removeprefix(MODEL) for name in read_table(path) if name.startswith(MODEL)] if inside else list(file)
    chosen = {name.removeprefix(NETWORK): name for name in names if name.startswith(NETWORK)}
    if not chosen:
        raise BadWeightsError(f"{path} is no checkpoint of a run: it has no tensor under '{NETWORK}'")
    if average:
        averages = {name.removeprefix(AVERAGE): name for name in names if name.startswith(AVERAGE)}
        if not averages:
            raise BadWeightsError(f"{path} holds no average of the weights: its run had model.ema set to null")
        chosen |= averages
    found = read_tensors(path, [f"{MODEL}{name}" for name in chosen.values()]) if inside else {}
    return {own: found[f"{MODEL}{name}"] if inside else file[name] for own, name in chosen.items()}


def write_weights(weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as ``.safetensors``, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial, dict(metadata or {}))
    partial.replace(path)


def consolidate(checkpoint: Path, out: Path, ema: bool = False) -> None:
    """Write the network's weights out of a checkpoint into one file, for ``init_from`` and ``evaluate.py``.

    Args:
        checkpoint: folder that sharded training wrote, or a ``.ckpt`` file.
        out: the ``.safetensors`` file.
        ema: the moving averages in the place of the weights that they belong to.

    Raises:
        MissingWeightsError, BadWeightsError: no complete checkpoint, a damaged one, or one without averages.
    """
    write_weights(checkpoint_weights(checkpoint, ema), out, {"source": str(checkpoint), "average": str(ema)})
