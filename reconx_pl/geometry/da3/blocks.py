"""Pre-norm transformer blocks with LayerScale: the backbone's (DINOv2), and the camera encoder's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reconx_pl.geometry.dust3r.blocks import Mlp, fused_attention
from reconx_pl.geometry.dust3r.rope import Rotation

_HEAD_NORM_EPS = 1e-5  # of queries and keys


class LayerScale(nn.Module):
    """A learned factor for every channel.

    Args:
        width: of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Attention(nn.Module):
    """Attention among the tokens that it is given: of one view, or of all.

    Args:
        width: of the tokens.
        heads: attention heads.
        normalised: queries and keys pass a LayerNorm over the width of a head.
    """

    def __init__(self, width: int, heads: int, normalised: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm, self.key_norm = (
            nn.LayerNorm(width // heads, eps=_HEAD_NORM_EPS) if normalised else nn.Identity() for _ in range(2)
        )
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation | None) -> Tensor:
        """[B, N, C] to [B, N, C]."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, N, d]
        query, key = self.query_norm(query), self.key_norm(key)
        if rotation is not None:
            query, key = rotation(query), rotation(key)
        return self.out(fused_attention(query, key, value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and MLP, both on normalised tokens, scaled channel by channel and added to them.

    Args:
        width: of the tokens.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP, in widths.
        eps: of the norms: 1e-6 in the backbone, 1e-5 in the camera encoder.
        normalised: see ``Attention``.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int, eps: float, normalised: bool = False) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(width, heads, normalised)
        self.attention_scale = LayerScale(width)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, mlp_ratio)
        self.mlp_scale = LayerScale(width)

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """[B, N, C] to [B, N, C]."""
        x = x + self.attention_scale(self.attention(self.attention_norm(x), rotation))
        return x + self.mlp_scale(self.mlp(self.mlp_norm(x)))
