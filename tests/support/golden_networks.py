"""Configurations of our networks from the originals' own, as golden kits give them."""

from __future__ import annotations

from golden_kits import Described

from reconx_pl.diffusion.autoencoder import KLAutoencoderConfig
from reconx_pl.diffusion.conditioning.image_tokens import ClipVisionConfig
from reconx_pl.diffusion.config import UNetConfig

_SAME = ("in_channels", "out_channels", "model_channels", "channel_mult", "num_res_blocks", "num_head_channels")
_DEFAULT = {"transformer_depth": "transformer_depth", "dropout": "dropout", "default_fs": "default_fps"}
GATE = "image_cross_attention_scale_learnable"


def unet_config(official: Described, gated: bool | None = None, structure: bool = False) -> UNetConfig:
    """Of a U-Net under the original's names.

    Args:
        official: constructor arguments of the original.
        gated: whether image attention has a learned weight; None takes what ``official`` says.
        structure: with our structure branch.
    """
    return UNetConfig(
        **{name: official[name] for name in _SAME},
        **{ours: official[theirs] for theirs, ours in _DEFAULT.items() if theirs in official},
        context_dim=official["context_dim"],
        attention_strides=official["attention_resolutions"],
        image_gate=official.get(GATE, False) if gated is None else gated,
        structure_guidance=structure,
    )


def autoencoder_config(sizes: Described, scale: float | None = None) -> KLAutoencoderConfig:
    """Of an autoencoder from the original's ``ddconfig``."""
    return KLAutoencoderConfig(
        block_out_channels=tuple(sizes["ch"] * times for times in sizes["ch_mult"]),
        layers_per_block=sizes["num_res_blocks"],
        latent_channels=sizes["z_channels"],
        **({} if scale is None else {"scale": scale}),
    )


def stub_vision(width: int) -> ClipVisionConfig:
    """Of an encoder whose tokens have that width, and in whose place a stub stands."""
    return ClipVisionConfig(image_size=28, width=width, layers=1, head_width=width, embed_dim=8)
