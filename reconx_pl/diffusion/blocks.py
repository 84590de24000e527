"""Residual block with its temporal convolutions, and the layers between levels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from reconx_pl.diffusion.attention import Context
from reconx_pl.diffusion.embeddings import zero_
from reconx_pl.diffusion.norms import GroupNorm32
from reconx_pl.diffusion.transformers import Block, to_map, to_tokens


class ResBlock(Block):
    """Two 3x3 convolutions on each frame with the step embedding between them, then four convolutions over time."""

    kind = "residual"

    def __init__(self, in_channels: int, out_channels: int, embedding_channels: int, dropout: float) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            GroupNorm32(in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding_channels, out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm32(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.temporal_conv = TemporalConvStack(out_channels, dropout)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        hidden = self.in_layers(x)
        embedding = self.emb_layers(context.embedding).repeat_interleave(context.frames, dim=0)  # [B*T, C]
        hidden = self.out_layers(hidden + embedding[:, :, None, None])
        hidden = self.skip_connection(x) + hidden
        return self.temporal_conv(hidden, context.frames)


class TemporalConvStack(nn.Module):
    """Four convolutions over three frames each, after GroupNorm over the clip, SiLU and dropout, with a residual."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(GroupNorm32(channels), nn.SiLU(), TemporalConv(channels))
        self.conv2, self.conv3, self.conv4 = (
            nn.Sequential(GroupNorm32(channels), nn.SiLU(), nn.Dropout(dropout), TemporalConv(channels))
            for _ in range(3)
        )
        zero_(self.conv4[-1])

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """[B*T, C, h, w] -> [B*T, C, h, w]."""
        clip = to_tokens(x, frames).permute(0, 3, 1, 2)  # [B, C, T, h*w]
        hidden = self.conv4(self.conv3(self.conv2(self.conv1(clip))))
        return to_map((clip + hidden).permute(0, 2, 3, 1), *x.shape[-2:])


class TemporalConv(nn.Conv3d):
    """A (3, 1, 1) convolution, run as a (3, 1) one on [B, C, T, h*w], for which the libraries have faster kernels."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, clip: Tensor) -> Tensor:
        """[B, C, T, N] -> [B, C, T, N]."""
        return conv2d(clip, self.weight.squeeze(-1), self.bias, padding=(1, 0))


class Downsample(nn.Module):
    """Halve both sides by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Double both sides by repetition, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))
