"""The floor of the arm *render* of procedural-v1: the mean of its filled renders, to which its network adds."""

from __future__ import annotations

import torch
from torch import Tensor

from reconx_pl.diffusion.autoencoder import PixelUnshuffleAutoencoder
from reconx_pl.diffusion.conditioning.render_config import RenderConfig
from reconx_pl.diffusion.conditioning.render_latents import render_latents
from reconx_pl.diffusion.render_sources import clip_renders
from reconx_pl.types import Clip


class ConditionAlone:
    """Stands where a view generator does, and generates what a network that predicts zero would.

    Args:
        config: of the renders, with a residual.
        factor: image rows per latent row.
    """

    follows_cameras = True
    identity = "the mean of the filled renders, no network"

    def __init__(self, config: RenderConfig, factor: int) -> None:
        self.config, self.autoencoder, self.factor = config, PixelUnshuffleAutoencoder(factor), factor

    def generate(self, clip: Clip, generator: torch.Generator) -> Tensor:
        """[T, 3, H, W] in [0, 1]; see ``ViewGenerator``."""
        last = torch.tensor([len(clip.frames) - 1])
        renders, photographs = clip_renders(clip, self.config), clip.images[None, [0, -1]]
        base = render_latents(renders, photographs, last, self.config, self._encode, self.factor).base
        assert base is not None
        return self.autoencoder.decode(base[0].transpose(0, 1)).clamp(0, 1)

    def _encode(self, frames: Tensor) -> Tensor:
        latents = self.autoencoder.encode(frames.flatten(0, 1))
        return latents.unflatten(0, frames.shape[:2]).transpose(1, 2)
