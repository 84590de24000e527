"""Checkpoints in folders, a part for each rank (torch.distributed.checkpoint), read by any number of processes.

A folder is complete when both ``.metadata``, the table of its tensors, and ``meta.pt``, the rest of the checkpoint, are
there. Tensors are named ``model/<name>`` and ``optimizer/<parameter>/<moment>``; there is nothing but tensors in the
parts, and nothing is unpickled: the table is read by an unpickler that knows the classes of such tables alone.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from reconx_pl.errors import BadWeightsError, MissingWeightsError
from reconx_pl.files.ranks import all_or_none
from reconx_pl.training.checkpointing.checkpoint_places import (
    PARTIAL,
    REST,
    TABLE,
    give_up,
    is_complete,
    partial_of,
    remove,
)

if TYPE_CHECKING:  # Lightning takes longer to import than torch
    from lightning.pytorch import LightningModule

MODEL, OPTIMIZER = "model/", "optimizer/"
Names = Mapping[Tensor, str]  # of the optimizer's parameters, in its order


def write_folder(path: Path, checkpoint: dict[str, Any], first: bool) -> None:
    """Write a checkpoint, all ranks together: beside its place, and into it when it is complete.

    Args:
        path: the folder; what is there already stays until the new one is complete.
        checkpoint: of Lightning, with this rank's tensors; its ``state_dict`` and ``optimizer_states`` are taken out.
        first: whether this is rank 0.

    Raises:
        CheckpointError: on every rank, if any could not write.
    """
    tensors = {f"{MODEL}{name}": tensor for name, tensor in checkpoint.pop("state_dict").items()}
    for optimizer in checkpoint.pop("optimizer_states", []):
        for name, state in optimizer["state"].items():
            tensors |= {f"{OPTIMIZER}{name}/{moment}": value for moment, value in state.items()}
        checkpoint["optimizer_groups"] = optimizer["param_groups"]
    try:
        with all_or_none():
            if first:
                remove(partial_of(path))
                partial_of(path).mkdir(parents=True)
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(partial_of(path)))
        with all_or_none():
            if first:
                _finish(path, checkpoint)
    except CheckpointException as error:  # every rank has the errors of all
        raise give_up(path, next(iter(error.failures.values()))[0], removes=first) from error
    except (OSError, RuntimeError) as error:
        raise give_up(path, error, removes=first) from error


def _finish(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write what is no tensor, and move the folder to its place."""
    partial, old = partial_of(path), path.with_name(f"{path.name}.old")
    unfinished = partial / f"{REST}{PARTIAL}"
    torch.save(checkpoint, unfinished)
    unfinished.replace(partial / REST)
    if not is_complete(partial) or read_rest(partial)["global_step"] != checkpoint["global_step"]:
        raise OSError("it does not read back as it was written; check the disk")
    if path.is_dir() and not path.is_symlink():
        remove(old)
        path.rename(old)
    else:
        path.unlink(missing_ok=True)
    partial.rename(path)
    remove(old)


def read_table(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Names, shapes and types of the tensors of a folder.

    Raises:
        MissingWeightsError: no such folder, or one that was not written to its end.
        BadWeightsError: a damaged table, or one that holds something else than tensors.
    """
    if not is_complete(folder):
        raise MissingWeightsError(
            f"{folder} is not a complete checkpoint: a folder of one has {TABLE} and {REST}; take an earlier one"
        )
    table = _Reader(folder).read_metadata().state_dict_metadata
    others = [name for name, entry in table.items() if not isinstance(entry, TensorStorageMetadata)]
    if others:
        raise BadWeightsError(f"{folder} holds more than tensors ({', '.join(others[:8])}); it was not written here")
    return {name: entry for name, entry in table.items() if isinstance(entry, TensorStorageMetadata)}


def read_rest(folder: Path) -> dict[str, Any]:
    """The checkpoint without its tensors: step, loops, callbacks, learning rates."""
    try:
        return torch.load(folder / REST, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise BadWeightsError(f"{folder / REST} cannot be read ({str(error).splitlines()[0]})") from error


def read_tensors(folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """These tensors of a folder, whole, in one process and without the model.

    Raises:
        MissingWeightsError, BadWeightsError: see ``read_table``.
    """
    table = read_table(folder)
    tensors = {name: torch.empty(table[name].size, dtype=table[name].properties.dtype) for name in names}
    _load(folder, tensors, alone=True)
    return tensors


def read_whole(folder: Path) -> dict[str, Any]:
    """A folder as the checkpoint that an unsharded run of the same model would have written."""
    tensors = read_tensors(folder, read_table(folder))
    checkpoint = read_rest(folder)
    groups = checkpoint.pop("optimizer_groups", [])
    numbers = {name: number for number, name in enumerate(name for group in groups for name in group["params"])}
    states: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(OPTIMIZER):
            name, _, moment = key.removeprefix(OPTIMIZER).rpartition("/")
            states.setdefault(numbers[name], {})[moment] = tensor
    numbered = [group | {"params": [numbers[name] for name in group["params"]]} for group in groups]
    checkpoint["optimizer_states"] = [{"state": states, "param_groups": numbered}] if groups else []
    checkpoint["state_dict"] = {k.removeprefix(MODEL): tensor for k, tensor in tensors.items() if k.startswith(MODEL)}
    return checkpoint


def restore_folder(
    folder: Path, module: LightningModule, optimizer: Optimizer | None, names: Names | None
) -> dict[str, Any]:
    """Load a folder into this rank's parts of module and optimizer, all ranks together; returns the rest.

    Raises:
        MissingWeightsError, BadWeightsError: see ``read_table``; or tensors and parameters that do not fit.
    """
    table, rest = read_table(folder), read_rest(folder)
    own = module.state_dict()
    _require_fit(
        folder,
        {name.removeprefix(MODEL): entry.size for name, entry in table.items() if name.startswith(MODEL)},
        {name: tensor.shape for name, tensor in own.items()},
    )
    tensors = {f"{MODEL}{name}": tensor for name, tensor in own.items()}
    states: dict[Tensor, dict[str, Tensor]] = {}
    if optimizer is not None and names is not None:
        by_name = {name: parameter for parameter, name in names.items()}
        _take_groups(folder, optimizer, rest.pop("optimizer_groups", []), names)
        for key, entry in table.items():
            if key.startswith(OPTIMIZER):
                name, _, moment = key.removeprefix(OPTIMIZER).rpartition("/")
                parameter = by_name[name]  # groups fit, so that every name is known
                dtype = entry.properties.dtype
                like = parameter.shape == entry.size
                value = torch.zeros_like(parameter, dtype=dtype) if like else torch.zeros(entry.size, dtype=dtype)
                tensors[key] = states.setdefault(parameter, {})[moment] = value
    _load(folder, tensors, alone=False)
    for parameter, state in states.items():
        assert optimizer is not None
        optimizer.state[parameter] = state
    return rest


def restore_file(
    path: Path, module: LightningModule, optimizer: Optimizer | None, names: Names | None
) -> dict[str, Any]:
    """As ``restore_folder`` for a checkpoint file that was written without sharding.

    Raises:
        MissingWeightsError, BadWeightsError: no such file, one that would have to be unpickled, one that does not fit.
    """
    checkpoint = read_file(path)
    own, saved = module.state_dict(), checkpoint.pop("state_dict")
    _require_fit(path, {name: t.shape for name, t in saved.items()}, {name: t.shape for name, t in own.items()})
    for name, tensor in own.items():
        _spread(saved[name], tensor)
    states = checkpoint.pop("optimizer_states", [])
    if optimizer is not None and names is not None and states:
        order = list(names.values())
        groups = [group | {"params": [order[n] for n in group["params"]]} for group in states[0]["param_groups"]]
        _take_groups(path, optimizer, groups, names)
        for number, parameter in enumerate(names):
            for moment, value in states[0]["state"].get(number, {}).items():
                own_part = torch.zeros_like(parameter if value.shape == parameter.shape else value, dtype=value.dtype)
                _spread(value, own_part)
                optimizer.state[parameter][moment] = own_part
    return checkpoint


def read_file(path: Path) -> dict[str, Any]:
    """A checkpoint file, mapped, without unpickling.

    Raises:
        MissingWeightsError: no such file.
        BadWeightsError: it cannot be read as what it claims to be.
    """
    if not path.is_file():
        raise MissingWeightsError(f"{path}: no such checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise BadWeightsError(
            f"{path} cannot be read, or holds more than tensors and plain values ({str(error).splitlines()[0]})"
        ) from error


def _spread(whole: Tensor, target: Tensor) -> None:
    """Copy into ``target`` this rank's part of a tensor that every rank has."""
    if isinstance(target, DTensor):
        local = target.to_local()
        whole = whole.to(local.device)
        part = distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)
        local.copy_(part.to_local())
    else:
        target.copy_(whole)


def _take_groups(path: Path, optimizer: Optimizer, saved: list[dict[str, Any]], names: Names) -> None:
    own = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
    if own != [group["params"] for group in saved]:
        raise BadWeightsError(
            f"{path}: its optimizer trained other parameters than this run does; to start a stage from these weights, "
            "give them as model.init_from, not as ckpt_path"
        )
    for group, values in zip(optimizer.param_groups, saved, strict=True):
        group.update({key: value for key, value in values.items() if key != "params"})


def _require_fit(path: Path, saved: Mapping[str, torch.Size], own: Mapping[str, torch.Size]) -> None:
    complaints = [
        f"{len(found)} {what}: {', '.join(sorted(found)[:8])}{' ...' if len(found) > 8 else ''}"
        for what, found in (
            ("missing", own.keys() - saved.keys()),
            ("unexpected", saved.keys() - own.keys()),
            ("of another shape", {name for name in own.keys() & saved.keys() if own[name] != saved[name]}),
        )
        if found
    ]
    if complaints:
        raise BadWeightsError(f"{path} does not fit the model; tensors {'; '.join(complaints)}")


def _load(folder: Path, tensors: dict[str, Tensor], alone: bool) -> None:
    if tensors:
        dcp.load(tensors, storage_reader=_Reader(folder), planner=_TensorsOnly(), no_dist=alone)


class _TensorsOnly(DefaultLoadPlanner):
    def load_bytes(self, read_item: Any, value: Any) -> None:
        raise BadWeightsError(f"{read_item.dest_index.fqn} is not a tensor; it is not read")


class _Reader(dcp.FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / TABLE
        try:
            with path.open("rb") as file:
                table = _TableOnly(file).load()
        except BadWeightsError:
            raise
        except Exception as error:  # a damaged pickle raises anything
            raise BadWeightsError(f"{path} is damaged ({error})") from error
        if not isinstance(table, Metadata):
            raise BadWeightsError(f"{path} is not the table of a checkpoint")
        if table.storage_meta is None:
            table.storage_meta = StorageMeta()
        table.storage_meta.load_id = self.load_id
        return table


class _TableOnly(pickle.Unpickler):
    """Knows the classes that torch.distributed.checkpoint writes into its table, and no others."""

    CLASSES = {
        "torch.distributed.checkpoint.metadata": {
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        },
        "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
        "torch.serialization": {"_get_layout"},
        "torch": {"Size"},
        "collections": {"OrderedDict"},
        "pathlib": {"PosixPath", "WindowsPath"},
        "pathlib._local": {"PosixPath", "WindowsPath"},  # Python 3.13
    }

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self._source = file.name

    def find_class(self, module: str, name: str) -> Any:
        known = name in self.CLASSES.get(module, ())
        if known or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise BadWeightsError(f"{self._source} asks for {module}.{name}, which no table of a checkpoint needs; refused")
