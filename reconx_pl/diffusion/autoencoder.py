"""Autoencoders between images in [0, 1] and latents of about unit scale. Images go to [-1, 1] here only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from reconx_pl.diffusion.conditioning.frozen import FrozenModule
from reconx_pl.diffusion.sampling.noise import standard_normal
from reconx_pl.errors import ConfigurationError, MissingWeightsError
from reconx_pl.files.weights import fingerprint, load_exactly, read_state

VAE_PREFIXES = ("first_stage_model.", "autoencoder.vae.", "")


class Autoencoder(Protocol):
    """What the rest of the package asks of an autoencoder."""

    latent_channels: int
    factor: int  # image rows per latent row

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """images [B, 3, H, W] in [0, 1] -> latents [B, C, h, w]; frames are independent of each other."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, C, h, w] -> images [B, 3, H, W] in [0, 1]."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides about the latents."""
        ...


@runtime_checkable
class PosteriorAutoencoder(Autoencoder, Protocol):
    """An autoencoder whose latents are drawn from a posterior that can be computed beforehand and kept."""

    def moments(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [0, 1] -> mean and log variance [B, 2 C, h, w]."""
        ...

    def sample(self, moments: Tensor, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """moments [B, 2 C, h, w] -> latents [B, C, h, w]; ``encode`` is ``sample`` of ``moments``."""
        ...


def _check_sides(images: Tensor, factor: int) -> None:
    if images.shape[-2] % factor or images.shape[-1] % factor:
        raise ConfigurationError(
            f"images of {images.shape[-2]} x {images.shape[-1]} pixels do not divide by the autoencoder's factor "
            f"{factor}; crop or resize them"
        )


class PixelUnshuffleAutoencoder(nn.Module):
    """Moves blocks of pixels into channels: no parameters, nothing to learn, exactly invertible.

    latent = gain (2 image - 1), then pixel_unshuffle. Photographs in [-1, 1] have a standard deviation near 0.5, so
    the default gain of 2 brings latents to about 1, which is what the noise schedule assumes.

    Args:
        factor: side of a block, pixels; the latents have 3 factor^2 channels.
        gain: multiplies pixels in [-1, 1].
    """

    def __init__(self, factor: int = 8, gain: float = 2.0) -> None:
        super().__init__()
        if factor < 1 or gain <= 0:
            raise ConfigurationError(f"factor >= 1 and gain > 0, got {factor} and {gain}")
        self.factor, self.gain = factor, gain
        self.latent_channels = 3 * factor**2

    def init_args(self) -> dict[str, Any]:
        """The arguments that build this module again, for ``config.json``."""
        return {"factor": self.factor, "gain": self.gain}

    def fingerprint(self) -> str:
        return fingerprint(self, (self.factor, self.gain))

    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """images [B, 3, H, W] in [0, 1] -> [B, 3 factor^2, H / factor, W / factor]; nothing is random."""
        _check_sides(images, self.factor)
        return functional.pixel_unshuffle((images * 2 - 1) * self.gain, self.factor)

    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        """The inverse of ``encode``, clamped to [0, 1] unless told otherwise."""
        images = (functional.pixel_shuffle(latents, self.factor) / self.gain + 1) / 2
        return images.clamp(0, 1) if clamp else images


@dataclass(frozen=True)
class KLAutoencoderConfig:
    """Sizes of Stable Diffusion's KL autoencoder; the defaults are the base model's (83.7 M parameters).

    Args:
        block_out_channels: width of each level; every level but the last halves the resolution. Multiples of 32.
        layers_per_block: residual blocks of a level in the encoder; the decoder has one more.
        latent_channels: of the latent.
        scale: latents are multiplied by it.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    scale: float = 0.18215

    def __post_init__(self) -> None:
        if not self.block_out_channels or any(c % 32 for c in self.block_out_channels):
            raise ConfigurationError(f"block_out_channels are multiples of 32, got {self.block_out_channels}")
        if self.layers_per_block < 1 or self.latent_channels < 1 or self.scale <= 0:
            raise ConfigurationError("layers_per_block, latent_channels and scale are positive")


class KLAutoencoder(FrozenModule):
    """Stable Diffusion's autoencoder (diffusers' ``AutoencoderKL``), frozen.

    Args:
        config: sizes.
        weights: local file: the official checkpoint (``first_stage_model.*``), a folder of ``reconx weights convert``,
            or the autoencoder alone under CompVis or diffusers names.
        random_init: allow an autoencoder without weights; for tests of shapes and for parity kits only.
        chunk: frames that go through at once.

    Raises:
        MissingWeightsError: neither ``weights`` nor ``random_init``.
        BadWeightsError: the file does not fit.
    """

    def __init__(
        self,
        config: KLAutoencoderConfig | None = None,
        weights: str | Path | None = None,
        random_init: bool = False,
        chunk: int = 8,
    ) -> None:
        super().__init__()
        self.config = config = config or KLAutoencoderConfig()
        if chunk < 1:
            raise ConfigurationError(f"chunk is positive, got {chunk}")
        if weights is None and not random_init:
            raise MissingWeightsError(
                "the autoencoder has no weights: pass weights=<file>, either the DynamiCrafter checkpoint (hugging "
                "face Doubiiu/DynamiCrafter_512_Interp, model.ckpt) or a Stable Diffusion autoencoder "
                "(stabilityai/sd-vae-ft-mse, diffusion_pytorch_model.safetensors); or use PixelUnshuffleAutoencoder"
            )
        self.chunk = chunk
        self.latent_channels = config.latent_channels
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.vae = _build_vae(config)
        if weights is not None:
            state = read_state(weights, VAE_PREFIXES)
            if "encoder.conv_norm_out.weight" not in state:
                state = diffusers_names(state, len(config.block_out_channels))
            load_exactly(self.vae, state, str(weights))
        self.freeze()

    def init_args(self) -> dict[str, Any]:
        """The arguments that build this module again without its weights, for ``config.json``."""
        return {"config": asdict(self.config), "random_init": True, "chunk": self.chunk}

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [0, 1] -> mean and raw log variance [B, 2 C, h, w] float32, not scaled."""
        _check_sides(images, self.factor)
        dtype = self.vae.quant_conv.weight.dtype
        parts = [self.vae.quant_conv(self.vae.encoder((part * 2 - 1).to(dtype))) for part in images.split(self.chunk)]
        return torch.cat(parts).float()

    def encode(self, images: Tensor, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """Latents of frames, one by one.

        Args:
            images: [B, 3, H, W] in [0, 1].
            generator: draws the posterior's noise; without it (and without ``noise``) the latent is the posterior's
                mean.
            noise: [B, C, h, w] recorded noise.

        Returns:
            [B, C, h, w] float32: scale (mean + std noise), log variance clamped to [-30, 20].
        """
        return self.sample(self.moments(images), generator, noise)

    def sample(self, moments: Tensor, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """``encode`` after the encoder: moments [B, 2 C, h, w] of any float type -> latents [B, C, h, w] float32."""
        mean, log_variance = moments.float().chunk(2, dim=1)
        if noise is None and generator is not None:
            noise = standard_normal(mean.shape, generator, mean.device)
        if noise is not None:
            mean = mean + (log_variance.clamp(-30, 20) / 2).exp() * noise.to(mean)
        return mean * self.config.scale

    @torch.no_grad()
    def decode(self, latents: Tensor, clamp: bool = True) -> Tensor:
        """latents [B, C, h, w] -> images [B, 3, H, W] float32 in [0, 1], clamped unless told otherwise."""
        latents = (latents / self.config.scale).to(self.vae.quant_conv.weight.dtype)
        parts = [self.vae.decoder(self.vae.post_quant_conv(part)) for part in latents.split(self.chunk)]
        images = (torch.cat(parts).float() + 1) / 2
        return images.clamp(0, 1) if clamp else images


def _build_vae(config: KLAutoencoderConfig) -> Any:  # diffusers' modules carry no types
    from diffusers import AutoencoderKL  # imports torchvision where it is installed

    levels = len(config.block_out_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=32,
        scaling_factor=config.scale,
    )


_BLOCK = re.compile(r"(down|up)\.(\d+)\.block\.(\d+)\.")
_RESIZE = re.compile(r"(down|up)\.(\d+)\.(downsample|upsample)\.")
_MIDDLE_BLOCK = re.compile(r"mid\.block_(\d)\.")
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def diffusers_names(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Rename a CompVis (official) autoencoder state to diffusers' names.

    diffusers counts the decoder's levels from the inside out, CompVis from the outside in; attention's 1 x 1
    convolutions become linear.

    Args:
        state: CompVis names without prefix.
        levels: number of resolution levels.
    """

    def level(side: str, number: str) -> int:
        return levels - 1 - int(number) if side == "up" else int(number)

    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        name = _BLOCK.sub(lambda m: f"{m[1]}_blocks.{level(m[1], m[2])}.resnets.{m[3]}.", key)
        name = _RESIZE.sub(lambda m: f"{m[1]}_blocks.{level(m[1], m[2])}.{m[3]}rs.0.", name)
        name = _MIDDLE_BLOCK.sub(lambda m: f"mid_block.resnets.{int(m[1]) - 1}.", name)
        if "mid.attn_1." in name:
            before, after = name.split("mid.attn_1.")
            part, _, kind = after.rpartition(".")
            name = f"{before}mid_block.attentions.0.{_ATTENTION.get(part, part)}.{kind}"
            value = value[:, :, 0, 0] if value.ndim == 4 else value
        name = name.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
        renamed[name] = value
    return renamed
