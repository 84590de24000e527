"""Loads a whole ``ReconXDiffusion``, strictly, from any file of weights that this package knows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from reconx_pl.diffusion.conditioning.frozen import frozen_encoders
from reconx_pl.diffusion.conditioning.resampler import adapt_latents
from reconx_pl.diffusion.conditioning.structure import StructureEncoder
from reconx_pl.diffusion.weights.names import STRUCTURE_PARAMETERS
from reconx_pl.diffusion.weights.released import ReleasedState, is_released, split_released
from reconx_pl.diffusion.weights.schedule_buffers import check_schedule
from reconx_pl.errors import BadWeightsError
from reconx_pl.files.weights import check_fit, read_tensors

if TYPE_CHECKING:
    from reconx_pl.diffusion.model import ReconXDiffusion

log = logging.getLogger(__name__)
Queries = Literal["interpolate", "repeat"]
PREFIX = "network."  # of ReconXDiffusion in a checkpoint of Lightning
FIRST_CONV = "unet.input_blocks.0.0.weight"  # [model_channels, in_channels, 3, 3]
LATENTS = "image_tokens.resampler.latents"  # [1, frames * queries, dim]


def read_network(path: str | Path) -> ReleasedState:
    """Tensors of a file of weights under the names of ``ReconXDiffusion``.

    Args:
        path: a checkpoint of ours (``.ckpt``), weights of ours (``.safetensors``, or the folder that ``reconx weights
            convert`` wrote), of this version or an earlier one; or a released checkpoint, also in DeepSpeed's form.

    Raises:
        MissingWeightsError: no such file.
        BadWeightsError: as ``read_tensors`` and ``split_released``.
    """
    state = read_tensors(path)
    if is_released(state):
        return split_released(state, str(path))
    if any(name.startswith(PREFIX) for name in state):
        state = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    return ReleasedState(state, {}, {})


def is_structure(name: str) -> bool:
    """Whether a tensor of ``ReconXDiffusion`` belongs to the structure branch, which no base model has."""
    return name.startswith("structure_encoder.") or bool(STRUCTURE_PARAMETERS.search(name))


def fitting_state(
    network: ReconXDiffusion,
    file: ReleasedState,
    source: str,
    queries: Queries = "interpolate",
    *,
    with_frozen_encoders: bool = False,
) -> dict[str, Tensor]:
    """The tensors of a file that fit ``network``, after a comparison both ways.

    Three things may be absent: the whole structure branch, the input channels of renders, which then start at zero,
    and, unless ``with_frozen_encoders``, a whole frozen encoder, which has a file of its own. Nothing may be left over
    but what ``released`` names as unused; the stored schedule is compared.

    Args:
        network: on any device, meta included.
        file: as ``read_network`` returns it.
        source: file named in messages.
        queries: how queries of another number of frames are adapted, see ``adapt_latents``.
        with_frozen_encoders: take the frozen encoders as well; otherwise they are compared and left out.

    Raises:
        BadWeightsError: lists what is missing, unexpected or of another shape.
    """
    own, state = network.state_dict(), dict(file.tensors)
    gates = [name for name in state if name.endswith(".attn2.alpha")]
    if gates and not any(name in own for name in gates):
        raise BadWeightsError(
            f"{source}: {len(gates)} unexpected gates of image attention ({gates[0]}, ...): a DynamiCrafter 256 model, "
            "and the U-Net is configured without image_gate; use a 512 or 1024 checkpoint"
        )
    if file.unused or file.schedule:
        check_schedule(network.schedule.config, file.schedule, source)
    _fit_queries(network, state, own, source, queries)
    _fit_first_conv(network, state, own, source)
    absent = {name for name in own if is_structure(name)}
    if absent & state.keys():
        absent = set()
    encoder_names = frozen_encoders(network)
    if not with_frozen_encoders:
        absent.update(*(names for names in encoder_names.values() if not names & state.keys()))
    check_fit(own, state, source, "the model", absent, "Check the configuration against the checkpoint")
    left_out = frozenset() if with_frozen_encoders else frozenset().union(*encoder_names.values())
    return {name: tensor for name, tensor in state.items() if name not in left_out}


def load_network(
    network: ReconXDiffusion,
    path: str | Path,
    queries: Queries = "interpolate",
    *,
    with_frozen_encoders: bool = False,
    assign: bool = False,
) -> None:
    """``load_state`` of what ``read_network`` finds at ``path``."""
    load_state(
        network, read_network(path), str(path), queries, with_frozen_encoders=with_frozen_encoders, assign=assign
    )


def load_state(
    network: ReconXDiffusion,
    file: ReleasedState,
    source: str,
    queries: Queries = "interpolate",
    *,
    with_frozen_encoders: bool = False,
    assign: bool = False,
) -> None:
    """Load weights into the network, strict both ways; see ``fitting_state``.

    A structure branch that the file lacks is left as it was born; where it is on the meta device it is born now.

    Args:
        network: ``ReconXDiffusion``.
        file: as ``read_network`` returns it.
        source: file named in messages.
        queries: as for ``fitting_state``.
        with_frozen_encoders: load the frozen encoders as well.
        assign: take the tensors of the file, mapped, instead of copying; for a network on the meta device.

    Raises:
        BadWeightsError: as ``fitting_state``.
    """
    state = fitting_state(network, file, source, queries, with_frozen_encoders=with_frozen_encoders)
    born = [name for name in network.state_dict() if is_structure(name) and name not in state]
    if born:
        log.info("%s has no structure branch: its %d tensors start from their initial values", source, len(born))
        if any(network.get_parameter(name).is_meta for name in born):
            _bear_structure(network, next(iter(state.values())).dtype)
    network.load_state_dict(state, strict=False, assign=assign)  # strict already
    log.info("loaded %d tensors from %s", len(state), source)


def _fit_queries(
    network: ReconXDiffusion, state: dict[str, Tensor], own: Mapping[str, Tensor], source: str, mode: Queries
) -> None:
    """Adapt the resampler's queries where the model has another number of frames than the weights.

    The released models have queries for 16 frames; ours, as the paper's, for 32.
    """
    if LATENTS not in state or LATENTS not in own or state[LATENTS].shape == own[LATENTS].shape:
        return
    each = network.image_tokens.resampler.config.num_queries
    theirs, ours = state[LATENTS], own[LATENTS].shape[1]
    if theirs.ndim == 3 and theirs.shape[2] == own[LATENTS].shape[2] and not theirs.shape[1] % each:
        log.warning("%s: queries for %d frames, %s for %d", source, theirs.shape[1] // each, mode, ours // each)
        state[LATENTS] = adapt_latents(theirs, each, ours // each, mode)


def _fit_first_conv(network: ReconXDiffusion, state: dict[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    """Give the weights of a model without input channels of renders zeros for them."""
    if FIRST_CONV not in state or FIRST_CONV not in own or network.render is None:
        return
    theirs, ours = state[FIRST_CONV], own[FIRST_CONV].shape[1]
    if theirs.ndim == 4 and theirs.shape[1] == 2 * network.autoencoder.latent_channels < ours:
        log.info("%s has no input channels of renders: the %d start at zero", source, ours - theirs.shape[1])
        state[FIRST_CONV] = functional.pad(theirs, (0, 0, 0, 0, 0, ours - theirs.shape[1]))


def _bear_structure(network: ReconXDiffusion, dtype: torch.dtype) -> None:
    """Give a structure branch on the meta device the values that it is built with on a real one."""
    assert network.structure_encoder is not None
    network.structure_encoder = StructureEncoder(network.structure_encoder.config).to(dtype)
    for module in network.unet.modules():
        if isinstance(getattr(module, "structure_gate", None), nn.Parameter):
            for name in ("to_k_structure", "to_v_structure"):
                meta = module.get_submodule(name)
                assert isinstance(meta, nn.Linear)
                setattr(module, name, nn.Linear(meta.in_features, meta.out_features, bias=False, dtype=dtype))
            module.structure_gate = nn.Parameter(torch.zeros(1, dtype=dtype))
