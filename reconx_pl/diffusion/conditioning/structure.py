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
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from reconx_pl.errors import BadDataError, ConfigurationError
from reconx_pl.geometry.cameras import relative_to_first


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
        frame: in whose camera the points are: the "first" one's, one set of tokens for the clip, as in the paper; or
            "each" frame's, a set of tokens for every frame, so that the network is told where it is seen from (ours).
        color: tokens know the colours of the points (ours).
    """

    points: int = 16384
    tokens: int = 2048
    octaves: int = 8
    width: int = 1024
    heads: int | None = None
    ffn_mult: int = 4
    frame: Literal["first", "each"] = "first"
    color: bool = False

    def __post_init__(self) -> None:
        if self.frame not in ("first", "each"):
            raise ConfigurationError(f"structure.frame is 'first' or 'each', got {self.frame!r}")
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
        points: [B, N, 3] in the first camera's frame, so that the camera is the origin; or [B, T, N, 3] in the frames
            of T cameras, divided by the distance from the first.

    Returns:
        Normalised points of the same shape and the scales [B] in the unit of the input; the scale of a cloud that lies
        in the camera is 1.
    """
    first = points if points.ndim == 3 else points[:, 0]
    scale = first.norm(dim=-1).mean(dim=-1)  # [B]
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return points / scale.view(-1, *(1,) * (points.ndim - 1)), scale


def structure_points(points: Tensor, world_to_camera: Tensor, config: StructureEncoderConfig) -> Tensor:
    """What the encoder takes: world points [B, N, 3] in the first camera's frame, or in each of T.

    Args:
        points: [B, N, 3] world units.
        world_to_camera: [B, T, 4, 4].
        config: of the encoder.

    Returns:
        [B, N, 3], or [B, T, N, 3].
    """
    if config.frame == "first":
        return relative_to_first(points, world_to_camera[:, 0])
    return relative_to_first(points[:, None], world_to_camera)


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
        if config.color:
            self.embed_color = nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
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

    def forward(self, points: Tensor, colors: Tensor | None = None) -> Tensor:
        """Structure tokens of a batch of clouds.

        Any N >= S is taken, so that a prefix of a cloud can be encoded with the same queries; the paper's ratio
        holds at N = ``points``.

        Args:
            points: [B, N, 3] in the first camera's frame, any unit, farthest-point order; with ``frame="each"``
                [B, T, N, 3] in every camera's frame. Each cloud is normalised by itself.
            colors: [B, N, 3] in [0, 1], with ``color``.

        Returns:
            [B, S, D], or [B, T, S, D].

        Raises:
            ConfigurationError: points or colours of another shape, or fewer points than tokens.
            BadDataError: a coordinate is NaN or infinite.
        """
        shape = "[B, N, 3]" if self.config.frame == "first" else "[B, T, N, 3]"
        if points.ndim != shape.count(",") + 1 or points.shape[-1] != 3:
            raise ConfigurationError(f"the structure encoder takes points {shape}, got {tuple(points.shape)}")
        if self.config.color and (colors is None or colors.shape != (len(points), *points.shape[-2:])):
            raise ConfigurationError(
                f"structure.color needs a colour for each of the points {tuple(points.shape)}, got "
                f"{None if colors is None else tuple(colors.shape)}"
            )
        if points.shape[-2] < self.config.tokens:
            raise ConfigurationError(
                f"a cloud of {points.shape[-2]} points cannot give {self.config.tokens} tokens; "
                "lower StructureEncoderConfig.tokens or load more points"
            )
        # reading the answer stops the GPU once a step: little beside the U-Net, and NaN weights are not
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(points).all()):
            bad = (~torch.isfinite(points).flatten(1).all(dim=1)).nonzero().flatten().tolist()
            raise BadDataError(f"point clouds {bad} of the batch hold NaN or infinite coordinates; clean the data set")
        normalised, _ = normalise_points(points.float())
        features = positional_features(normalised, self.config.octaves).to(self.to_q.weight.dtype)
        embedded = self.embed(features)  # [B, N, D], or [B, T, N, D]
        if self.config.color and colors is not None:
            tint = self.embed_color((colors * 2 - 1).to(embedded.dtype))  # [B, N, D]
            embedded = embedded + (tint if embedded.ndim == 3 else tint[:, None])
        clips = embedded.shape[:-2]
        embedded = embedded.flatten(0, -3)  # frames join the batch
        x = embedded[:, : self.config.tokens]  # [B, S, D], P~
        x = x + self._attend(self.norm_queries(x), self.norm_points(embedded))
        x = x + self.ffn(self.norm_ffn(x))
        return self.norm_out(x).unflatten(0, clips)

    def _attend(self, queries: Tensor, points: Tensor) -> Tensor:
        def split(x: Tensor) -> Tensor:  # [B, L, D] -> [B, heads, L, d]
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        k, v = self.to_kv(points).chunk(2, dim=-1)
        attended = functional.scaled_dot_product_attention(split(self.to_q(queries)), split(k), split(v))
        return self.to_out(attended.transpose(1, 2).flatten(2))
