"""Turns the tokens of one image into a fixed number of context tokens for each frame (the image projector).

A Perceiver resampler (Alayrac et al. 2022; IP-Adapter): learned queries attend to the image tokens and to
themselves. Parameter names are those of the official checkpoint below ``image_proj_model.``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from reconx_pl.errors import ConfigurationError


@dataclass(frozen=True)
class ResamplerConfig:
    """Sizes of a resampler. The defaults are those of the base model, DynamiCrafter 512.

    Args:
        dim: width of the queries.
        depth: layers.
        dim_head: width of a head.
        heads: number of heads; their inner width ``heads * dim_head`` need not be ``dim``.
        num_queries: Q, context tokens for each frame.
        embedding_dim: width of the image tokens that come in.
        output_dim: D, width of the context tokens that go out.
        ff_mult: inner width of the feed-forward layer over ``dim``.
        video_length: T, frames with queries of their own; None for one set of tokens shared by all frames.
    """

    dim: int = 1024
    depth: int = 4
    dim_head: int = 64
    heads: int = 12
    num_queries: int = 16
    embedding_dim: int = 1280
    output_dim: int = 1024
    ff_mult: int = 4
    video_length: int | None = 16

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in vars(self).items() if value is not None}
        if bad := {name: value for name, value in sizes.items() if value < 1}:
            raise ConfigurationError(f"resampler sizes are positive, got {bad}")


class PerceiverAttention(nn.Module):
    """Queries attend to the image tokens and to themselves in one softmax. No projection has a bias."""

    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        inner = dim_head * heads
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, tokens: Tensor, latents: Tensor) -> Tensor:
        """tokens [B, M, dim] of the image, latents [B, L, dim] -> [B, L, dim], to be added to the latents."""
        tokens, latents = self.norm1(tokens), self.norm2(latents)
        q = self._split(self.to_q(latents))
        k, v = map(
            self._split, self.to_kv(torch.cat([tokens, latents], dim=1)).chunk(2, dim=-1)
        )  # [B, heads, M + L, d]
        attended = functional.scaled_dot_product_attention(q, k, v)  # [B, heads, L, d]
        return self.to_out(attended.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:  # [B, L, heads * d] -> [B, heads, L, d]
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _feed_forward(dim: int, mult: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(dim), nn.Linear(dim, dim * mult, bias=False), nn.GELU(), nn.Linear(dim * mult, dim, bias=False)
    )


class Resampler(nn.Module):
    """See the module's text. ``forward`` keeps the frame axis."""

    def __init__(self, config: ResamplerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ResamplerConfig()
        count = config.num_queries * (config.video_length or 1)
        self.latents = nn.Parameter(torch.randn(1, count, config.dim) / config.dim**0.5)
        self.proj_in = nn.Linear(config.embedding_dim, config.dim)
        self.proj_out = nn.Linear(config.dim, config.output_dim)
        self.norm_out = nn.LayerNorm(config.output_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PerceiverAttention(config.dim, config.dim_head, config.heads),
                    _feed_forward(config.dim, config.ff_mult),
                ]
            )
            for _ in range(config.depth)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Context tokens of one image per sample.

        Args:
            tokens: [B, M, embedding_dim].

        Returns:
            [B, T, Q, output_dim], frame major; [B, Q, output_dim] if ``video_length`` is None.
        """
        latents = self.latents.expand(tokens.shape[0], -1, -1)  # [B, T * Q, dim]
        tokens = self.proj_in(tokens)
        for layer in self.layers:
            attention, feed_forward = cast(nn.ModuleList, layer)
            latents = attention(tokens, latents) + latents
            latents = feed_forward(latents) + latents
        out = self.norm_out(self.proj_out(latents))
        return out if self.config.video_length is None else out.unflatten(1, (self.config.video_length, -1))


def adapt_latents(latents: Tensor, num_queries: int, frames: int, mode: Literal["interpolate", "repeat"]) -> Tensor:
    """Queries of a checkpoint for another number of frames.

    The released checkpoint has 16 frames; at 32 the original gives every frame all tokens without saying so. Here
    the choice is explicit.

    Args:
        latents: [1, T * num_queries, dim] of the checkpoint.
        num_queries: queries per frame.
        frames: wanted number of frames.
        mode: "interpolate" linearly over time with the first and last frame kept, or "repeat" the nearest earlier
            frame.

    Returns:
        [1, frames * num_queries, dim].
    """
    if latents.shape[1] % num_queries:
        raise ConfigurationError(f"{latents.shape[1]} queries are not a multiple of {num_queries} per frame")
    per_frame = latents[0].unflatten(0, (-1, num_queries))  # [T, Q, dim]
    count = per_frame.shape[0]
    if mode == "repeat":
        adapted = per_frame[torch.arange(frames, device=latents.device) * count // frames]
    elif mode == "interpolate":
        position = torch.linspace(0, count - 1, frames, device=latents.device)
        low = position.floor().long().clamp_max(max(count - 2, 0))
        weight = (position - low).view(-1, 1, 1).to(latents.dtype)
        adapted = torch.lerp(per_frame[low], per_frame[(low + 1).clamp_max(count - 1)], weight)
    else:
        raise ConfigurationError(f"mode is 'interpolate' or 'repeat', got {mode!r}")
    return adapted.flatten(0, 1)[None]
