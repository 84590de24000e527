"""From tokens to points: the DPT head (Ranftl et al., ICCV 2021), the linear head, and the activation of both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reconx_pl.geometry.dust3r.config import LEVELS, PATCH, Dust3rConfig

CHANNELS = 4  # x, y, z and the confidence, before the activation


def points_and_confidence(raw: Tensor) -> tuple[Tensor, Tensor]:
    """The activation: points = direction * (exp(norm) - 1), confidence = 1 + exp(x).

    Args:
        raw: [B, 4, H, W].

    Returns:
        points [B, H, W, 3] and confidence [B, H, W], which is >= 1.
    """
    xyz, confidence = raw.permute(0, 2, 3, 1).split([3, 1], dim=-1)
    norm = xyz.norm(dim=-1, keepdim=True)
    return xyz / norm.clamp(min=1e-8) * norm.expm1(), 1 + confidence.squeeze(-1).exp()


class LinearHead(nn.Module):
    """Each token's 16 x 16 pixels by one linear map."""

    def __init__(self, config: Dust3rConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.decoder_width, CHANNELS * PATCH**2)

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """The last of ``tokens`` [B, N, D], of a grid of rows x columns patches, to [B, 4, H, W]."""
        values = self.proj(tokens[-1]).transpose(1, 2).unflatten(-1, grid)
        return F.pixel_shuffle(values, PATCH)


class ResidualUnit(nn.Module):
    """x + conv(relu(conv(relu(x)))), without norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Fusion(nn.Module):
    """Adds a finer level to what came from the coarser ones, refines, and enlarges.

    Args:
        width: channels.
        skip: there is something coarser to add to; the coarsest level has only itself.
    """

    def __init__(self, width: int, skip: bool) -> None:
        super().__init__()
        self.skip = ResidualUnit(width) if skip else None
        self.refine = ResidualUnit(width)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, level: Tensor, coarser: Tensor | None, size: tuple[int, int] | None = None) -> Tensor:
        """[B, C, h, w] each to [B, C, 2h, 2w], or to the rows and columns of ``size``."""
        if self.skip is not None:
            level = coarser + self.skip(level)
        # a 1 x 1 convolution and an interpolation, whose weights add up to 1, can change places: a quarter of the work
        return enlarged(self.out(self.refine(level)), size)


def enlarged(x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Bilinear, corners on corners: to ``size``, or to twice the rows and columns."""
    return F.interpolate(x, size or (2 * x.shape[-2], 2 * x.shape[-1]), mode="bilinear", align_corners=True)


class Level(nn.Sequential):
    """Tokens of one depth as an image of 4, 2, 1 or 1/2 times the patch grid, reduced to the width of the fusion.

    Args:
        index: 0 (fine) to 3 (coarse).
        width_in: of the tokens.
        width: channels of the level.
        width_out: channels of the fusion.
    """

    def __init__(self, index: int, width_in: int, width: int, width_out: int) -> None:
        resize: nn.Module = (
            nn.ConvTranspose2d(width, width, 4, stride=4),
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.Identity(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
        )[index]
        super().__init__()
        self.project = nn.Conv2d(width_in, width, 1)
        self.resize = resize
        self.reduce = nn.Conv2d(width, width_out, 3, padding=1, bias=False)


class DptHead(nn.Module):
    """Tokens of four depths, fused coarse to fine into an image of full size."""

    def __init__(self, config: Dust3rConfig) -> None:
        super().__init__()
        widths_in = (config.encoder_width, *[config.decoder_width] * (LEVELS - 1))
        width, narrow = config.dpt_width, config.dpt_output_width
        self.levels = nn.ModuleList(
            Level(index, width_in, level_width, width)
            for index, (width_in, level_width) in enumerate(zip(widths_in, config.dpt_level_widths, strict=True))
        )
        self.fusions = nn.ModuleList(Fusion(width, skip=index < LEVELS - 1) for index in range(LEVELS))
        self.narrow = nn.Conv2d(width, narrow, 3, padding=1)
        self.sharpen = nn.Conv2d(narrow, narrow, 3, padding=1)
        self.out = nn.Conv2d(narrow, CHANNELS, 1)

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Four of [B, N, D], of a grid of rows x columns patches, to [B, 4, H, W]."""
        x: Tensor | None = None
        for level, fusion, depth in reversed(list(zip(self.levels, self.fusions, tokens, strict=True))):
            image = level(depth.transpose(1, 2).unflatten(-1, grid))
            if x is not None:  # an odd grid: the coarsest level, rounded up, is one row or column too large
                x = x[:, :, : image.shape[2], : image.shape[3]]
            x = fusion(image, x)
        assert x is not None
        return self.out(F.relu(self.sharpen(enlarged(self.narrow(x)))))


def build_head(config: Dust3rConfig) -> nn.Module:
    return DptHead(config) if config.head == "dpt" else LinearHead(config)


def in_pieces(head: nn.Module, tokens: Sequence[Tensor], grid: tuple[int, int], portrait: Tensor | None) -> Tensor:
    """Apply a head to a batch some of whose images are portraits that are stored lying down.

    Args:
        head: see ``build_head``.
        tokens: one [B, N, D] for each depth.
        grid: rows and columns of patches of the stored images.
        portrait: [B] bool on the CPU; None where every image stands as it is stored.

    Returns:
        [B, 4, H, W], as the images are stored.
    """
    if portrait is None or not portrait.any():
        return head(tokens, grid)
    upright = grid[::-1]
    if portrait.all():
        return head(tokens, upright).transpose(2, 3)
    lying, standing = (~portrait).nonzero()[:, 0], portrait.nonzero()[:, 0]
    parts = [
        head([depth[lying.to(depth.device)] for depth in tokens], grid),
        head([depth[standing.to(depth.device)] for depth in tokens], upright).transpose(2, 3),
    ]
    order = torch.cat([lying, standing]).argsort().to(parts[0].device)
    return torch.cat(parts)[order]
