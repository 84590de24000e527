"""What a call of the U-Net has to look like; a mistake is named before any kernel complains about a shape."""

from __future__ import annotations

import torch
from torch import Tensor

from reconx_pl.diffusion.attention import Tokens
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.errors import ConfigurationError


def check_call(
    config: UNetConfig, x: Tensor, timesteps: Tensor, fps: Tensor | None, structure_keep: Tensor | None
) -> None:
    """Check everything but the tokens; the arguments are those of ``UNet.forward``.

    Raises:
        ConfigurationError: a shape that does not fit the configuration or the batch.
    """
    if x.ndim != 5 or x.shape[1] != config.in_channels:
        raise ConfigurationError(f"the U-Net takes [B, {config.in_channels}, T, h, w], got {tuple(x.shape)}")
    batch, _, frames, height, width = x.shape
    multiple = config.side_multiple
    if frames < 1 or height < 1 or width < 1 or height % multiple or width % multiple:
        raise ConfigurationError(
            f"latents of {frames} frames, {height} x {width}: both sides must be multiples of {multiple} "
            f"({len(config.channel_mult)} levels); crop or resize the frames"
        )
    for name, value in (("timesteps", timesteps), ("fps", fps), ("structure_keep", structure_keep)):
        if value is not None and value.shape != (batch,):
            raise ConfigurationError(f"{name} must be [{batch}], one per sample, got {tuple(value.shape)}")


def checked_tokens(
    config: UNetConfig, tokens: Tokens, batch: int, dtype: torch.dtype, structured: int | None = None
) -> Tokens:
    """The condition tokens cast to ``dtype``.

    Args:
        config: of the U-Net.
        tokens: of ``batch`` samples.
        batch: B.
        dtype: in which the U-Net works.
        structured: samples that have structure tokens, B unless given.

    Raises:
        ConfigurationError: tokens that do not fit the configuration or the batch.
    """
    if tokens.structure is not None and not config.structure_guidance:
        raise ConfigurationError("structure_tokens were given to a U-Net built with structure_guidance=False")
    for name, value in tokens._asdict().items():
        if value is None:
            continue
        rows = structured if name == "structure" and structured is not None else batch
        per_frame = name in ("image", "structure") and value.ndim == 4
        if not (value.ndim == 3 or per_frame) or value.shape[0] != rows or value.shape[-1] != config.context_dim:
            expected = "[B, N, D]" if name == "text" else "[B, N, D] or [B, T, N, D]"
            raise ConfigurationError(
                f"{name}_tokens must be {expected} with B = {rows}, D = {config.context_dim}, got {tuple(value.shape)}"
            )
    structure = None if tokens.structure is None else tokens.structure.to(dtype)
    return Tokens(tokens.text.to(dtype), tokens.image.to(dtype), structure)


def check_frames(image: Tensor, frames: int) -> None:
    """Tokens, or keys, of the image of each frame's own [B, T, Q, D] have to be those of the clip's T frames.

    Raises:
        ConfigurationError: they are those of another number of frames.
    """
    if image.ndim == 4 and image.shape[1] != frames:
        raise ConfigurationError(
            f"image_tokens {tuple(image.shape)} are for {image.shape[1]} frames, the latents have {frames}; "
            "build the resampler for as many frames, or pass [B, M, D] for tokens that all frames share"
        )
