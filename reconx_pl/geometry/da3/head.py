"""From tokens to depth and confidence and, where asked for, to rays: DPT (Ranftl et al. 2021) with two ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from reconx_pl.geometry.da3.config import LEVELS, PATCH, Da3Config
from reconx_pl.geometry.da3.positions import position_code
from reconx_pl.geometry.dust3r.heads import Fusion, Level, enlarged

_EPS = 1e-5
_SHARP = 32  # channels before the last convolution


class Rays(NamedTuple):
    """Rays of pixels at 8/14 of the image's size, in the network's world; and how sure it is of them."""

    directions: Tensor  # [*, 8h, 8w, 3], of any length
    origins: Tensor  # [*, 8h, 8w, 3]
    confidence: Tensor  # [*, 8h, 8w], >= 1


class RayBranch(nn.Module):
    """The second end, on the level maps of the first.

    Args:
        width: channels of the fusion.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fusions = nn.ModuleList(Fusion(width, skip=index < LEVELS - 1) for index in range(LEVELS))
        narrow = width // 2
        self.narrow = nn.Sequential(
            *(
                nn.Conv2d(width if index % 2 == 0 else narrow, narrow if index % 2 == 0 else width, 3, padding=1)
                for index in range(5)
            )
        )
        self.sharpen = nn.Conv2d(narrow, _SHARP, 3, padding=1)
        self.norm = nn.LayerNorm(_SHARP, eps=_EPS)
        self.out = nn.Conv2d(_SHARP, 7, 1)

    def forward(self, levels: Sequence[Tensor], aspect: float) -> Rays:
        """Level maps, fine to coarse, to rays."""
        x = with_code(self.narrow(fused(self.fusions, levels)), aspect)
        x = self.norm(self.sharpen(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        directions, origins, confidence = self.out(F.relu(x)).permute(0, 2, 3, 1).split([3, 3, 1], dim=-1)
        return Rays(directions, origins, 1 + confidence.squeeze(-1).exp())


class Head(nn.Module):
    """Tokens of four taps, fused coarse to fine into depth and confidence of every pixel.

    Args:
        config: size.
    """

    def __init__(self, config: Da3Config) -> None:
        super().__init__()
        width = config.head_width
        self.norm = nn.LayerNorm(2 * config.width, eps=_EPS)
        self.levels = nn.ModuleList(
            Level(index, 2 * config.width, level_width, width)
            for index, level_width in enumerate(config.head_level_widths)
        )
        self.fusions = nn.ModuleList(Fusion(width, skip=index < LEVELS - 1) for index in range(LEVELS))
        self.narrow = nn.Conv2d(width, width // 2, 3, padding=1)
        self.sharpen = nn.Conv2d(width // 2, _SHARP, 3, padding=1)
        self.out = nn.Conv2d(_SHARP, 2, 1)
        self.rays = RayBranch(width)

    def forward(
        self, tokens: Sequence[Tensor], grid: tuple[int, int], with_rays: bool = False
    ) -> tuple[Tensor, Tensor, Rays | None]:
        """Four of [B, N, 2C] to depth [B, H, W], positive, confidence [B, H, W], >= 1, and rays where wanted.

        Args:
            tokens: of the taps, as ``Backbone.for_head`` gives them.
            grid: rows and columns of patches.
            with_rays: also compute the rays.
        """
        height, width = (PATCH * side for side in grid)
        aspect = width / height
        levels = []
        for level, tap in zip(self.levels, tokens, strict=True):
            assert isinstance(level, Level)
            image = self.norm(tap).transpose(1, 2).unflatten(-1, grid)
            levels.append(level.reduce(level.resize(with_code(level.project(image), aspect))))
        x = enlarged(self.narrow(fused(self.fusions, levels)), (height, width))
        depth, confidence = self.out(F.relu(self.sharpen(with_code(x, aspect)))).unbind(1)
        return depth.exp(), 1 + confidence.exp(), self.rays(levels, aspect) if with_rays else None


def with_code(x: Tensor, aspect: float) -> Tensor:
    """[B, C, h, w] and its position code; see ``position_code``."""
    channels, height, width = x.shape[1:]
    return x + position_code(channels, height, width, aspect, x.device).to(x)


def fused(fusions: nn.ModuleList, levels: Sequence[Tensor]) -> Tensor:
    """Level maps, fine to coarse, to one map of twice the finest's size; each result fits the next level."""
    x: Tensor | None = None
    for index in reversed(range(LEVELS)):
        size = tuple(levels[index - 1].shape[-2:]) if index else None
        x = fusions[index](levels[index], x, size)
    assert x is not None
    return x
