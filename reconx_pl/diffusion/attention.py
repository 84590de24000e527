"""Attention layers of the U-Net and their feed-forward, on tokens whose last axis is the channel.

All attention is ``scaled_dot_product_attention``. Spatial tokens are [B, T, N, C] with N = h * w: queries of a frame,
or of a whole clip where the keys are the same for all frames, are views of that one tensor, so keys and values of a
clip are computed once and nothing is copied per frame.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

MAX_HEADS = 65535  # of one call: the fused CUDA kernels count heads on a grid axis of 16 bits
LONG_SEQUENCE = 1024  # keys, from which bfloat16 attention is the faster one on a processor


class KeyValue(NamedTuple):
    """Keys and values of one condition in one cross-attention layer."""

    key: Tensor  # [B, S, C], or [B, T, S, C] where each frame has its own
    value: Tensor


class Projection(NamedTuple):
    """Keys and values of all conditions in one cross-attention layer."""

    text: KeyValue
    image: KeyValue
    structure: KeyValue | None  # of the last samples of the batch, all of them or fewer


class Tokens(NamedTuple):
    """Condition tokens of a batch of clips."""

    text: Tensor  # [B, L, D]
    image: Tensor  # [B, T, Q, D] a frame's own tokens, or [B, M, D] shared by all frames
    structure: Tensor | None  # [B, S, D] or [B, T, S, D]; M < B of them are of the last M samples


class Context(NamedTuple):
    """What every block of the U-Net may look at; named tuples, so that sharding hooks see the tensors.

    Cross-attention layer i takes its keys and values from ``projections[i]``, or computes them from ``tokens``.
    """

    embedding: Tensor  # [B, 4 * model_channels] step and frame rate
    frames: int  # T
    tokens: Tokens | None
    projections: tuple[Projection, ...] | None
    structure_keep: Tensor | None  # [B] bool


class SpatialSelfAttention(nn.Module):
    """Attention among the pixels of a frame."""

    def __init__(self, channels: int, heads: int, head_channels: int) -> None:
        super().__init__()
        inner = heads * head_channels
        self.heads = heads
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(channels, inner, bias=False)
        self.to_v = nn.Linear(channels, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, channels))

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        """[B, T, N, C] -> [B, T, N, C]."""
        return self.to_out(self.attend(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, self.heads)


class TemporalSelfAttention(SpatialSelfAttention):
    """Attention among the frames at a pixel. No positions and no mask, so any number of frames will do."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, frames, pixels, inner = query.shape
        # Pixels and heads together are the "heads" of one call: three views of the projections, no transposed copy.
        groups = pixels * self.heads
        if groups > MAX_HEADS:
            pieces = -(-groups // MAX_HEADS)
            parts = (x.tensor_split(pieces, dim=2) for x in (query, key, value))
            return torch.cat([self.attend(q, k, v) for q, k, v in zip(*parts, strict=True)], dim=2)
        query, key, value = (
            x.reshape(batch, frames, groups, inner // self.heads).transpose(1, 2) for x in (query, key, value)
        )
        out = fused_attention(query, key, value)  # [B, N*heads, T, d]
        return out.transpose(1, 2).reshape(batch, frames, pixels, inner)


class DualCrossAttention(nn.Module):
    """Attention to text, image and structure tokens with one query and a softmax for each.

    F_out = Attn(Q, K_text, V_text) + g * Attn(Q, K_image, V_image) + tanh(structure_gate) * Attn(Q, K_F, V_F), where
    g = 1, or tanh(alpha) + 1 with ``image_gate`` (DynamiCrafter). The last term is ReconX's (IV-D, eq. 11):
    lambda_F = tanh(alpha), (ours) with alpha = ``structure_gate`` = 0 at the start, so that an untrained structure
    branch leaves the result as it was, bit for bit.
    """

    def __init__(
        self, channels: int, heads: int, head_channels: int, context_dim: int, image_gate: bool, structure: bool
    ) -> None:
        super().__init__()
        inner = heads * head_channels
        self.heads = heads
        self.index = 0  # of this layer among those of the U-Net, which sets it
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(context_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim, inner, bias=False)
        self.to_k_ip = nn.Linear(context_dim, inner, bias=False)
        self.to_v_ip = nn.Linear(context_dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, channels))
        # gates have shape [1], not []: FSDP2 cannot shard a scalar
        self.alpha = nn.Parameter(torch.zeros(1)) if image_gate else None
        if structure:
            self.to_k_structure = nn.Linear(context_dim, inner, bias=False)
            self.to_v_structure = nn.Linear(context_dim, inner, bias=False)
            self.structure_gate = nn.Parameter(torch.zeros(1))

    def project(self, tokens: Tokens) -> Projection:
        """Keys and values of the conditions; they depend on neither the step nor the noisy latent."""
        structure = None
        if tokens.structure is not None:
            structure = KeyValue(self.to_k_structure(tokens.structure), self.to_v_structure(tokens.structure))
        return Projection(
            KeyValue(self.to_k(tokens.text), self.to_v(tokens.text)),
            KeyValue(self.to_k_ip(tokens.image), self.to_v_ip(tokens.image)),
            structure,
        )

    def forward(self, tokens: Tensor, context: Context) -> Tensor:
        """[B, T, N, C] -> [B, T, N, C]."""
        query = self.to_q(tokens)
        if context.projections is not None:
            text, image, structure = context.projections[self.index]
        else:
            assert context.tokens is not None
            text, image, structure = self.project(context.tokens)
        out = attend(query, *text, self.heads)
        seen = attend(query, *image, self.heads)
        if self.alpha is not None:
            seen = seen * (torch.tanh(self.alpha) + 1.0).to(seen.dtype)
        out = out + seen
        if structure is not None:
            gate = torch.tanh(self.structure_gate).to(out.dtype)  # [1]
            if context.structure_keep is not None:
                gate = gate * context.structure_keep.to(out.dtype)[:, None, None, None]  # [B, 1, 1, 1]
            without = len(query) - len(structure.key)  # samples
            guided = out[without:] + gate * attend(query[without:], *structure, self.heads)
            out = guided if without == 0 else torch.cat([out[:without], guided])
        return self.to_out(out)


class FeedForward(nn.Module):
    """GEGLU (Shazeer 2020) with the exact GELU, four times as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)


class GEGLU(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, tokens: Tensor) -> Tensor:
        # halves of the weight instead of halves of the result: the backward pass then joins no activations
        value, gate = (
            linear(tokens, weight, bias)
            for weight, bias in zip(self.proj.weight.chunk(2), self.proj.bias.chunk(2), strict=True)
        )
        return value * gelu(gate)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention of the pixels of each frame.

    Args:
        query: [B, T, N, C].
        key, value: [B, T, S, C], a frame's own, or [B, S, C], shared by the frames of a clip.

    Returns:
        [B, T, N, C].
    """
    if key.ndim == 4:  # frames join the batch
        key, value, queries = key.flatten(0, 1), value.flatten(0, 1), query.flatten(0, 1)
    else:  # all pixels of the clip ask the same keys
        queries = query.flatten(1, 2)
    # heads are split by views; the fused kernels return [B, N, heads, d] in memory, so joining them is a view too
    queries, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (queries, key, value))
    return fused_attention(queries, key, value).transpose(1, 2).reshape(query.shape)


def fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``scaled_dot_product_attention`` of [B, heads, N, d] each.

    Short sequences on a processor run in float32, also where the rest is bfloat16: in bfloat16, PyTorch's fused kernel
    takes 1.1 to 2.3 times as long forward and 1.2 to 7 times backward, and pays off only from thousands of keys on.
    """
    dtype = query.dtype
    short = key.shape[-2] <= LONG_SEQUENCE
    if short and query.device.type == "cpu" and dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", enabled=False):
            return scaled_dot_product_attention(query.float(), key.float(), value.float()).to(dtype)
    return scaled_dot_product_attention(query, key, value)
