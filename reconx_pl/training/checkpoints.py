"""Weights of the network in and out of files, strictly and without unpickling."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from reconx_pl.conditioning.checkpoint import read_state
from reconx_pl.conditioning.resampler import adapt_latents
from reconx_pl.diffusion.painter import DiffusionPainter
from reconx_pl.diffusion.weights import OFFICIAL_PREFIX, load_official_unet
from reconx_pl.errors import BadWeightsError
from reconx_pl.training.consolidate import checkpoint_weights, write_weights
from reconx_pl.training.sharding import whole_tensors
from reconx_pl.training.stages import GROUPS, frozen_names

log = logging.getLogger(__name__)
PREFIX = "network."  # of ReconXDiffusion inside ReconXModule
RESAMPLER, OFFICIAL_RESAMPLER = "image_tokens.resampler.", "image_proj_model."
QUERIES = 16  # for each frame, in every released model


def read_weights(path: Path, average: bool = False) -> dict[str, Tensor]:
    """Tensors of a file of weights under the names of ``ReconXDiffusion``.

    The file is a checkpoint of ours (``.ckpt``, a file or a folder), exported weights of ours (``.safetensors``), or a
    checkpoint in the layout of the released DynamiCrafter 512. Of the latter the U-Net and the resampler are taken;
    autoencoder and CLIP towers read the same file by themselves (their ``weights`` argument).

    Args:
        path: the file or folder.
        average: take the moving averages that a checkpoint of ours holds.

    Raises:
        MissingWeightsError: no such file.
        BadWeightsError: not such a file, a damaged one, or one that would have to be unpickled.
    """
    if average or Path(path).is_dir():
        return checkpoint_weights(Path(path), average)
    state = read_state(path, (PREFIX, ""))
    if not any(name.startswith(OFFICIAL_PREFIX) for name in state):
        return state
    resampler = {name: tensor for name, tensor in state.items() if name.startswith(OFFICIAL_RESAMPLER)}
    return {f"unet.{name}": tensor for name, tensor in load_official_unet(state, str(path)).items()} | {
        name.replace(OFFICIAL_RESAMPLER, RESAMPLER, 1): tensor for name, tensor in resampler.items()
    }


def load_network(network: nn.Module, path: Path, average: bool = False) -> None:
    """Load weights into the network, strict both ways.

    One exception: a file without any structure parameter (a base model that was never trained with one) leaves the
    structure branch as it was born.

    Raises:
        MissingWeightsError, BadWeightsError: as ``read_weights``; or keys or shapes that do not fit, which are listed.
    """
    state = read_weights(path, average)
    own = own_weights(network)
    towers = frozen_names(network)
    state = {name: tensor for name, tensor in state.items() if name not in towers}
    _fit_queries(state, own, path)
    born = {name for name in own if GROUPS["structure"].search(name)}
    if born and not born & state.keys():
        log.info("%s has no structure branch: its %d tensors start from their initial values", path, len(born))
        state |= {name: own[name] for name in born}
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if state[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        raise BadWeightsError(f"{path} does not fit the model. {_differences(missing, unexpected, shapes)}")
    network.load_state_dict(state, strict=False)  # strict already, but for the towers
    log.info("loaded %d tensors from %s", len(state), path)


def _fit_queries(state: dict[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    """Interpolate the resampler's queries over time where the model has another number of frames than the weights.

    The released model has 16 frames; ours, as the paper's, has 32.
    """
    name = f"{RESAMPLER}latents"  # [1, frames * queries, dim]
    if name not in state or name not in own or state[name].shape == own[name].shape:
        return
    theirs, ours = state[name].shape[1], own[name].shape[1]
    if state[name].shape[2] == own[name].shape[2] and theirs % QUERIES == 0 and ours % QUERIES == 0:
        log.warning("%s: queries for %d frames, interpolated to %d", path, theirs // QUERIES, ours // QUERIES)
        state[name] = adapt_latents(state[name], QUERIES, ours // QUERIES, "interpolate")


def own_weights(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that belong to this model: all but those of pretrained towers, which keep their own files."""
    towers = frozen_names(network)
    return {name: tensor for name, tensor in network.state_dict().items() if name not in towers}


def painter_identity(painter: DiffusionPainter) -> str:
    """Who painted: a hash of the weights, and the sampling settings. Other weights never inherit these results.

    Where the weights are sharded every rank has to ask.
    """
    digest = hashlib.sha256()
    for name, tensor in whole_tensors(dict(sorted(own_weights(painter.network).items()))):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"weights {digest.hexdigest()[:16]}, {painter.config}"


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


def _differences(missing: list[str], unexpected: list[str], shapes: list[str], most: int = 8) -> str:
    parts = []
    for title, names in (("Missing", missing), ("Unexpected", unexpected), ("Of another shape", shapes)):
        if names:
            more = f" and {len(names) - most} more" if len(names) > most else ""
            parts.append(f"{title} ({len(names)}): {', '.join(names[:most])}{more}.")
    return " ".join(parts)
