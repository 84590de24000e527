"""What a training run reads and writes of its network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.weights import Queries, load_state, read_network
from reconx_pl.diffusion.weights.released import ReleasedState
from reconx_pl.files.ranks import is_sharded
from reconx_pl.training.checkpointing.checkpoint_places import is_folder
from reconx_pl.training.checkpointing.consolidate import checkpoint_weights, write_weights
from reconx_pl.training.stages import frozen_names


def load_weights(network: ReconXDiffusion, path: Path, queries: Queries = "interpolate", average: bool = False) -> None:
    """Load weights into the network, strict both ways, from anything that holds them.

    Args:
        network: not sharded yet.
        path: what ``reconx_pl.diffusion.weights.read_network`` takes, or a checkpoint folder of sharded training.
        queries: how queries of another number of frames are adapted.
        average: take the moving averages that a checkpoint of ours holds.

    Raises:
        MissingWeightsError: no such file.
        BadWeightsError: not such a file, a damaged one, one that would have to be unpickled; or keys or shapes that
            do not fit, which are listed.
    """
    path = Path(path)
    ours = average or is_folder(path)
    file = ReleasedState(checkpoint_weights(path, average), {}, {}) if ours else read_network(path)
    load_state(network, file, str(path), queries)


def own_weights(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that belong to this model: all but those of frozen encoders, which keep their own files."""
    frozen_encoders = frozen_names(network)
    return {name: tensor for name, tensor in network.state_dict().items() if name not in frozen_encoders}


def whole_tensors(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors with all their parts, gathered one by one: every rank has to take them all, in this order."""
    for name, tensor in state.items():
        yield name, tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def save_network(
    network: nn.Module, path: Path, metadata: Mapping[str, str] | None = None, writes: bool = True
) -> None:
    """Write the network's weights as ``.safetensors``, whole or not at all.

    Args:
        network: where it is sharded every rank has to call.
        path: the file.
        metadata: of the file.
        writes: whether this is the rank that writes.
    """
    whole = whole_tensors(own_weights(network))
    # a rank that does not write takes part in gathering, and forgets
    kept = {name: tensor.cpu() for name, tensor in whole if writes}
    if writes:
        write_weights(kept, path, metadata)
