"""Which members of a cached shard stand in for the frozen encoders of a network."""

from __future__ import annotations

from torch import nn

from reconx_pl.data.shards.caches import CachedInputs, cache_name
from reconx_pl.diffusion.autoencoder import PosteriorAutoencoder
from reconx_pl.diffusion.conditioning.image_tokens import ClipImageTokens


def cached_inputs(autoencoder: nn.Module, image_tokens: nn.Module) -> CachedInputs:
    """The members that stand in for these two parts; hashes their weights.

    Raises:
        ConfigurationError: neither has a frozen encoder.
    """
    moments = clip = None
    if isinstance(autoencoder, PosteriorAutoencoder):
        moments = cache_name("moments", autoencoder.fingerprint())
    if isinstance(image_tokens, ClipImageTokens):
        clip = cache_name("clip", image_tokens.encoder.fingerprint())
    return CachedInputs(moments, clip)
