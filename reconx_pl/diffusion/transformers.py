"""Spatial and temporal transformers of the U-Net.

Feature maps are [B*T, C, h, w] in channels-last memory, which is [B, T, h, w, C] without a copy: transformers see
pixels as tokens, and temporal layers see frames, by views alone.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import linear

from reconx_pl.diffusion.attention import (
    Context,
    DualCrossAttention,
    FeedForward,
    SpatialSelfAttention,
    TemporalSelfAttention,
)
from reconx_pl.diffusion.config import BlockKind, UNetConfig
from reconx_pl.diffusion.embeddings import zero_
from reconx_pl.diffusion.norms import GroupNorm32


def to_tokens(x: Tensor, frames: int) -> Tensor:
    """[B*T, C, h, w] -> [B, T, h*w, C]; a view of channels-last memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).unflatten(0, (-1, frames))


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """[B, T, h*w, C] -> [B*T, C, h, w] in channels-last memory; the inverse of :func:`to_tokens`."""
    return tokens.flatten(0, 1).unflatten(1, (height, width)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A layer that needs the context: ``forward(x [B*T, C, h, w], context) -> [B*T, C', h, w]``."""

    kind: BlockKind
    checkpointing = False  # recompute in the backward pass instead of storing what is inside

    def forward(self, x: Tensor, context: Context) -> Tensor:
        raise NotImplementedError


class TransformerBlock(nn.Module):
    """Self-attention, second attention, feed-forward, each after a LayerNorm and with a residual."""

    def __init__(self, channels: int, attn1: nn.Module, attn2: nn.Module) -> None:
        super().__init__()
        self.attn1 = attn1
        self.ff = FeedForward(channels)
        self.attn2 = attn2
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        """[B, T, N, C] -> [B, T, N, C]."""
        tokens = self.attn1(self.norm1(tokens), context) + tokens
        tokens = self.attn2(self.norm2(tokens), context) + tokens
        return self.ff(self.norm3(tokens)) + tokens


class SpatialTransformer(Block):
    """Attention within each frame, and from each pixel to text, image and structure tokens."""

    kind = "spatial"

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        width = config.num_head_channels
        heads = channels // width
        self.norm = GroupNorm32(channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(
                channels,
                SpatialSelfAttention(channels, heads, width),
                DualCrossAttention(
                    channels, heads, width, config.context_dim, config.image_gate, config.structure_guidance
                ),
            )
            for _ in range(config.transformer_depth)
        )
        self.proj_out = zero_(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        tokens = self.proj_in(to_tokens(self.norm(x), context.frames))
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return to_map(self.proj_out(tokens), *x.shape[-2:]) + x


class TemporalTransformer(Block):
    """Attention over the frames at each pixel; its GroupNorm takes statistics over the whole clip."""

    kind = "temporal"

    def __init__(self, channels: int, heads: int, config: UNetConfig, pointwise: bool = False) -> None:
        """``pointwise``: projections stored as 1x1 convolutions, as in the official ``init_attn``."""
        super().__init__()
        width = config.num_head_channels
        inner = heads * width
        projection = PointwiseConv1d if pointwise else nn.Linear
        self.norm = GroupNorm32(channels, eps=1e-6)
        self.proj_in = projection(channels, inner)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(
                inner, TemporalSelfAttention(inner, heads, width), TemporalSelfAttention(inner, heads, width)
            )
            for _ in range(config.transformer_depth)
        )
        self.proj_out = zero_(projection(inner, channels))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        clip = to_tokens(x, context.frames).permute(0, 3, 1, 2)  # [B, C, T, h*w]
        tokens = self.proj_in(self.norm(clip).permute(0, 2, 3, 1))  # [B, T, h*w, inner]
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return to_map(self.proj_out(tokens), *x.shape[-2:]) + x


class PointwiseConv1d(nn.Conv1d):
    """A linear layer on the last axis whose weight has the shape of a 1x1 Conv1d, [out, in, 1]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., C_in] -> [..., C_out]."""
        return linear(tokens, self.weight.squeeze(-1), self.bias)
