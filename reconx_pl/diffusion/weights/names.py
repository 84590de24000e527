"""Names of the official U-Net and ours, in both directions.

Names differ in two ways only: the prefix ``model.diffusion_model.``, and the official spelling ``temopral_conv``. The
image gate ``attn2.alpha`` of the 256 model is a scalar there and has shape [1] here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from reconx_pl.errors import BadWeightsError
from reconx_pl.files.weights import check_fit, listing

if TYPE_CHECKING:
    from reconx_pl.diffusion.unet import UNet

OFFICIAL_PREFIX = "model.diffusion_model."

#: Matches every parameter of the structure branch and no other; the rest is the official model.
STRUCTURE_PARAMETERS = re.compile(
    r"(?:^|\.)transformer_blocks\.\d+\.attn2\.(?:to_k_structure\.weight|to_v_structure\.weight|structure_gate)$"
)


def from_official_name(name: str) -> str:
    """Official parameter name, with or without the prefix, to ours."""
    return name.removeprefix(OFFICIAL_PREFIX).replace(".temopral_conv.", ".temporal_conv.")


def to_official_name(name: str) -> str:
    """Our parameter name to the official one, with the prefix."""
    return OFFICIAL_PREFIX + name.replace(".temporal_conv.", ".temopral_conv.")


def load_official_unet(state: Mapping[str, Tensor], source: str = "the checkpoint") -> dict[str, Tensor]:
    """Pick the U-Net out of an official state dict and give its tensors our names.

    Args:
        state: an official checkpoint's ``state_dict``; autoencoder, text and image encoders in it are passed over.
        source: file name for messages.

    Raises:
        BadWeightsError: no key starts with ``model.diffusion_model.``.
    """
    found = {key: value for key, value in state.items() if key.startswith(OFFICIAL_PREFIX)}
    if not found:
        raise BadWeightsError(
            f"{source} has no key under '{OFFICIAL_PREFIX}' among its {len(state)}"
            f"{' (' + listing(state) + ')' if state else ''}; pass the 'state_dict' of a DynamiCrafter checkpoint"
        )
    return {
        from_official_name(key): value.reshape(1) if key.endswith(".attn2.alpha") else value
        for key, value in found.items()
    }


def to_official_unet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our U-Net state dict under the official names, without the structure branch, which the official model lacks."""
    return {
        to_official_name(key): value.reshape(()) if key.endswith(".attn2.alpha") else value
        for key, value in state.items()
        if not STRUCTURE_PARAMETERS.search(key)
    }


def load_unet_weights(
    unet: UNet,
    state: Mapping[str, Tensor],
    source: str = "the checkpoint",
    *,
    allow_missing_structure: bool = True,
    assign: bool = False,
) -> None:
    """Copy ``state`` (our names) into ``unet``, strictly.

    Args:
        unet: the model; every parameter must be in ``state``.
        state: tensors under our names, as :func:`load_official_unet` returns them.
        source: file name for messages.
        allow_missing_structure: leave the structure branch at its initial value where ``state`` has none of it.
            A part of it is still an error.
        assign: take the tensors of ``state`` instead of copying, for a model on the meta device (not together with a
            structure branch that ``state`` lacks).

    Raises:
        BadWeightsError: missing, unexpected or misshapen tensors; the message lists them. The model is unchanged then.
    """
    own = unet.state_dict()
    structure = {key for key in own if STRUCTURE_PARAMETERS.search(key)}
    absent = structure if allow_missing_structure and not structure & state.keys() else set()
    if absent and assign and any(own[key].is_meta for key in absent):
        raise BadWeightsError(
            f"{source} has no structure branch and the model's own is on the meta device; "
            "build the model on a real device, or with structure_guidance=False"
        )
    check_fit(own, state, source, "the U-Net", absent, "Check the UNetConfig against the checkpoint")
    unet.load_state_dict(dict(state), strict=False, assign=assign)
