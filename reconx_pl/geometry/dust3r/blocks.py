"""Pre-norm transformer blocks with rotary positions: the encoder's, and the decoders' that read the other view too."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from reconx_pl.geometry.dust3r.rope import Rotation

NORM_EPS = 1e-6


def layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=NORM_EPS)


def fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for [B, heads, N, d], without storing the attention matrix."""
    return F.scaled_dot_product_attention(query, key, value)


class SelfAttention(nn.Module):
    """Attention among the tokens of one view.

    Args:
        width: of the tokens.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, N, d]
        mixed = fused_attention(rotation(query), rotation(key), value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention of one view's tokens over the other's, each turned by its own position.

    Args:
        width: of the tokens of both.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, rotation: Rotation, memory_rotation: Rotation) -> Tensor:
        """[B, N, D] over [B, M, D] to [B, N, D]."""

        def heads(tokens: Tensor) -> Tensor:
            return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        query, key, value = heads(self.query(x)), heads(self.key(memory)), heads(self.value(memory))
        mixed = fused_attention(rotation(query), memory_rotation(key), value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Sequential):
    """Two linear maps with a GELU (erf) between."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))


class EncoderBlock(nn.Module):
    """Self-attention and MLP, both on normalised tokens and added to them.

    Args:
        width: of the tokens.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP, in widths.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.self_norm = layer_norm(width)
        self.self_attention = SelfAttention(width, heads)
        self.mlp_norm = layer_norm(width)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(self, x: Tensor, rotation: Rotation) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        x = x + self.self_attention(self.self_norm(x), rotation)
        return x + self.mlp(self.mlp_norm(x))


class DecoderBlock(nn.Module):
    """Self-attention, attention over the other view's tokens (by a norm of their own), MLP.

    Args:
        width: of the tokens.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP, in widths.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.self_norm = layer_norm(width)
        self.self_attention = SelfAttention(width, heads)
        self.cross_norm = layer_norm(width)
        self.memory_norm = layer_norm(width)
        self.cross_attention = CrossAttention(width, heads)
        self.mlp_norm = layer_norm(width)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(self, x: Tensor, memory: Tensor, rotation: Rotation, memory_rotation: Rotation) -> Tensor:
        """[B, N, D] and the other view's [B, M, D] to [B, N, D]."""
        x = x + self.self_attention(self.self_norm(x), rotation)
        memory = self.memory_norm(memory)
        x = x + self.cross_attention(self.cross_norm(x), memory, rotation, memory_rotation)
        return x + self.mlp(self.mlp_norm(x))
