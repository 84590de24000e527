"""A whole checkpoint as the base models are distributed, under the names of ``ReconXDiffusion``.

DynamiCrafter 512, 512-interp and 1024 and ViewCrafter share one layout of 2,520 tensors: U-Net, autoencoder, the two
frozen CLIP encoders, resampler and 13 buffers of the noise schedule. Every tensor has its place here or is named as
unused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from reconx_pl.diffusion.autoencoder import diffusers_names
from reconx_pl.diffusion.weights.names import OFFICIAL_PREFIX, load_official_unet
from reconx_pl.errors import BadWeightsError
from reconx_pl.files.weights import listing

AUTOENCODER = "first_stage_model."
# Official prefix to ours, for the parts whose tensors keep their names; U-Net and autoencoder are renamed within.
PARTS = {
    "image_proj_model.": "image_tokens.resampler.",
    "embedder.model.visual.": "image_tokens.encoder.visual.",
    "cond_stage_model.model.": "text_tokens.text.",
}
# Stored and never used: the image embedder keeps what is left of its text side, the text encoder its temperature.
UNUSED = frozenset(
    {
        "embedder.model.positional_embedding",
        "embedder.model.text_projection",
        "embedder.model.logit_scale",
        "embedder.model.token_embedding.weight",
        "embedder.model.ln_final.weight",
        "embedder.model.ln_final.bias",
        "cond_stage_model.model.logit_scale",
    }
)
SCHEDULE_BUFFERS = frozenset(
    {
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "scale_arr",
    }
)
_LEVEL = re.compile(r"^(?:encoder\.down|decoder\.up)\.(\d+)\.")


@dataclass(frozen=True)
class ReleasedState:
    """What a released checkpoint holds.

    Args:
        tensors: under the names of ``ReconXDiffusion``.
        schedule: buffers of the noise schedule under their official names.
        unused: the tensors of ``UNUSED`` that the file has.
    """

    tensors: dict[str, Tensor]
    schedule: dict[str, Tensor]
    unused: dict[str, Tensor]


def is_released(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of the official layout."""
    return any(name.startswith(OFFICIAL_PREFIX) for name in state)


def split_released(state: Mapping[str, Tensor], source: str) -> ReleasedState:
    """Give every tensor of a released checkpoint its place.

    Args:
        state: as ``read_tensors`` returns it, under the official names.
        source: file named in errors.

    Raises:
        BadWeightsError: an image model of Stable Diffusion, or a name that the layout does not have.
    """
    _refuse_image_model(state, source)
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    autoencoder: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part = next((prefix for prefix in PARTS if name.startswith(prefix)), None)
        if name in UNUSED or name in SCHEDULE_BUFFERS:
            rest[name] = tensor
        elif name.startswith(AUTOENCODER):
            autoencoder[name.removeprefix(AUTOENCODER)] = tensor
        elif part is not None:
            tensors[PARTS[part] + name.removeprefix(part)] = tensor
        elif not name.startswith(OFFICIAL_PREFIX):
            rest[name] = tensor
    if unknown := sorted(rest.keys() - UNUSED - SCHEDULE_BUFFERS):
        raise BadWeightsError(
            f"{source}: {len(unknown)} unexpected keys, which no part of a DynamiCrafter checkpoint has: "
            f"{listing(unknown)}"
        )
    tensors |= {f"unet.{name}": tensor for name, tensor in load_official_unet(state, source).items()}
    levels = 1 + max((int(match[1]) for name in autoencoder if (match := _LEVEL.match(name))), default=0)
    tensors |= {f"autoencoder.vae.{name}": value for name, value in diffusers_names(autoencoder, levels).items()}
    return ReleasedState(
        tensors,
        {name: rest[name] for name in rest if name in SCHEDULE_BUFFERS},
        {name: rest[name] for name in rest if name in UNUSED},
    )


def _refuse_image_model(state: Mapping[str, Tensor], source: str) -> None:
    """Stable Diffusion keeps its U-Net under the same prefix, and thousands of listed keys would not say so."""
    names = [name for name in state if name.startswith(OFFICIAL_PREFIX)]
    if names and not any(".temopral_conv." in name for name in names):
        first = state.get(f"{OFFICIAL_PREFIX}input_blocks.0.0.weight")
        channels = "" if first is None or first.ndim != 4 else f", {first.shape[1]} input channels"
        raise BadWeightsError(
            f"{source}: an image model such as Stable Diffusion (U-Net without temporal convolutions{channels}), not a "
            "video model; fetch one with `reconx weights fetch dynamicrafter-512-interp`"
        )
