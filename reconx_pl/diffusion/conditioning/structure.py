"""The structure encoder F(P) (ReconX, IV-C, eq. 10): a point cloud becomes context tokens.

    F(P) = FFN(CrossAttn(PosEmb(P~), PosEmb(P)))

P~ are the first points of P: clouds come in farthest-point order, so that a prefix is a farthest-point sub-sample.
PosEmb concatenates p with the sines and cosines of 2^k pi p for each axis, k = 0 .. octaves - 1 (51 numbers for 8
octaves), and sends them through an MLP. Around the attention and around the FFN there are residual connections.
(ours) LayerNorm stands before each of the two (pre-norm) and once at the end, so that the tokens enter the U-Net's
projections with unit scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from reconx_pl.errors import BadDataError, ConfigurationError


@dataclass(frozen=True)
class StructureEncoderConfig:
    """Sizes of the structure encoder; the paper gives the ratio 1 / 8 and nothing else.

    Args:
        points: N of the training clouds.
        tokens: S, the first S points are the queries; N / 8 in the paper.
        octaves: frequencies of the positional embedding.
        width: D, the U-Net's context width.
        heads: attention heads; None takes heads of 64 (or one head, for widths that are no multiple of 64).
        ffn_mult: inner width of the FFN over ``width``.
    """

    points: int = 16384
    tokens: int = 2048
    octaves: int = 8
    width: int = 1024
    heads: int | None = None
    ffn_mult: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.tokens <= self.points:
            raise ConfigurationError(f"tokens lies between 1 and points={self.points}, got {self.tokens}")
        if self.octaves < 0 or self.width < 1 or self.ffn_mult < 1:
            raise ConfigurationError(
                f"octaves >= 0, width >= 1 and ffn_mult >= 1, got {self.octaves}, {self.width}, {self.ffn_mult}"
            )
        if self.width % self.head_count:
            raise ConfigurationError(f"width {self.width} has to be a multiple of heads {self.head_count}")

    @property
    def head_count(self) -> int:
        if self.heads is not None:
            if self.heads < 1:
                raise ConfigurationError(f"heads is positive, got {self.heads}")
            return self.heads
        return max(self.width // 64, 1) if self.width % 64 == 0 else 1

    @property
    def inputs(self) -> int:
        """Numbers per point before the MLP."""
        return 3 + 3 * 2 * self.octaves


def normalise_points(points: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each cloud by the mean distance of its points from the first camera, as DUSt3R normalises its point maps.

    Args:
        points: [B, N, 3] in the first camera's frame, so that the camera is the origin.

    Returns:
        Normalised points [B, N, 3] and the scales [B] in the unit of the input; the scale of a cloud that lies in
        the camera is 1.
    """
    scale = points.norm(dim=-1).mean(dim=-1)  # [B]
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return points / scale[:, None, None], scale


def positional_features(points: Tensor, octaves: int) -> Tensor:
    """[..., 3] -> [..., 3 + 6 octaves] float32: the point, then all sines, then all cosines, octave by octave."""
    points = points.float()  # 2^7 pi p needs float32
    frequencies = torch.pi * 2.0 ** torch.arange(octaves, device=points.device)
    angles = (points[..., None, :] * frequencies[:, None]).flatten(-2)  # [..., 3 octaves]
    return torch.cat([points, angles.sin(), angles.cos()], dim=-1)


class StructureEncoder(nn.Module):
    """See the module's text."""

    def __init__(self, config: StructureEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or StructureEncoderConfig()
        width, self.heads = config.width, config.head_count
        self.embed = nn.Sequential(nn.Linear(config.inputs, width), nn.GELU(), nn.Linear(width, width))
        self.norm_queries = nn.LayerNorm(width)
        self.norm_points = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width)
        self.norm_ffn = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, config.ffn_mult * width), nn.GELU(), nn.Linear(config.ffn_mult * width, width)
        )
        self.norm_out = nn.LayerNorm(width)

    def forward(self, points: Tensor) -> Tensor:
        """Structure tokens of a batch of clouds.

        Any N >= S is taken, so that a prefix of a cloud can be encoded with the same queries; the paper's ratio
        holds at N = ``points``.

        Args:
            points: [B, N, 3] in the first camera's frame, any unit, farthest-point order. Each cloud is normalised
                by itself.

        Returns:
            [B, S, D].

        Raises:
            ConfigurationError: not [B, N, 3], or fewer points than tokens.
            BadDataError: a coordinate is NaN or infinite.
        """
        if points.ndim != 3 or points.shape[-1] != 3:
            raise ConfigurationError(f"the structure encoder takes points [B, N, 3], got {tuple(points.shape)}")
        if points.shape[1] < self.config.tokens:
            raise ConfigurationError(
                f"a cloud of {points.shape[1]} points cannot give {self.config.tokens} tokens; "
                "lower StructureEncoderConfig.tokens or load more points"
            )
        # reading the answer stops the GPU once a step: little beside the U-Net, and NaN weights are not
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(points).all()):
            bad = (~torch.isfinite(points).flatten(1).all(dim=1)).nonzero().flatten().tolist()
            raise BadDataError(f"point clouds {bad} of the batch hold NaN or infinite coordinates; clean the data set")
        normalised, _ = normalise_points(points.float())
        features = positional_features(normalised, self.config.octaves).to(self.to_q.weight.dtype)
        embedded = self.embed(features)  # [B, N, D]
        x = embedded[:, : self.config.tokens]  # [B, S, D], P~
        x = x + self._attend(self.norm_queries(x), self.norm_points(embedded))
        x = x + self.ffn(self.norm_ffn(x))
        return self.norm_out(x)

    def _attend(self, queries: Tensor, points: Tensor) -> Tensor:
        def split(x: Tensor) -> Tensor:  # [B, L, D] -> [B, heads, L, d]
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        k, v = self.to_kv(points).chunk(2, dim=-1)
        attended = functional.scaled_dot_product_attention(split(self.to_q(queries)), split(k), split(v))
        return self.to_out(attended.transpose(1, 2).flatten(2))
