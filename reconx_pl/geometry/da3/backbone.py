"""The backbone: DINOv2 whose later blocks let the tokens of all views see each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reconx_pl.geometry.da3.blocks import Block
from reconx_pl.geometry.da3.config import PATCH, Da3Config
from reconx_pl.geometry.da3.positions import resized_table, shared_positions, token_positions
from reconx_pl.geometry.da3.reference import ReferenceView, reference_view
from reconx_pl.geometry.dust3r.rope import Rotation, rotation_of


class Taps(NamedTuple):
    """What the backbone makes of V images of one size."""

    tokens: list[Tensor]  # four of [B, V, 1 + N, 2C]: within-view half, then the current tokens; not normalised
    grid: tuple[int, int]  # rows and columns of patches
    reference: Tensor | None  # [B], number of the reference view; None where the cameras were given


class Backbone(nn.Module):
    """Tokens of every view, and after each tap of all views together.

    Args:
        config: size.
    """

    def __init__(self, config: Da3Config) -> None:
        super().__init__()
        self.config = config
        side = config.image_size // PATCH
        self.patches = nn.Conv2d(3, config.width, PATCH, stride=PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.camera_token = nn.Parameter(torch.zeros(1, 2, config.width))  # of the reference view, of all others
        self.table = nn.Parameter(torch.zeros(1, 1 + side**2, config.width))
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mlp_ratio, eps=1e-6, normalised=index >= config.cross_view_start)
            for index in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-5)

    def embed(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, 1 + N, C], token 0 first, positions added."""
        x = self.patches(images)
        rows, columns = x.shape[-2:]
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        return tokens + resized_table(self.table, rows, columns)

    def forward(
        self,
        images: Tensor,
        camera_tokens: Tensor | None = None,
        reference: ReferenceView = "saddle_balanced",
        step: Callable[[], None] | None = None,
    ) -> Taps:
        """Images to the tokens that the head and the camera decoder read.

        The original moves the reference view to the front and back again. Nothing but its camera token tells it from
        the others, so that here every view stays in its place.

        Args:
            images: [B, V, 3, H, W], normalised.
            camera_tokens: [B, V, C] of the camera encoder; None lets a reference view be chosen.
            reference: how.
            step: called after every block.
        """
        config = self.config
        batch, views = images.shape[:2]
        rows, columns = (side // PATCH for side in images.shape[-2:])
        within, across = self._rotations(rows, columns, views, images.device)
        x = self.embed(images.flatten(0, 1)).unflatten(0, (batch, views))  # [B, V, 1 + N, C]
        local, chosen, taps = x, None, []
        for index, block in enumerate(self.blocks):
            if index == config.cross_view_start - 1 and camera_tokens is None:
                chosen = reference_view(x[:, :, 0], reference)
            if index == config.cross_view_start:
                cameras = self._camera_tokens(chosen, views) if camera_tokens is None else camera_tokens
                x = local = torch.cat([cameras[:, :, None].to(x), x[:, :, 1:]], dim=2)
            if index >= config.cross_view_start and index % 2:
                x = block(x.flatten(1, 2), across).unflatten(1, (views, -1))
            else:
                rotation = within if index >= config.cross_view_start else None
                x = local = block(x.flatten(0, 1), rotation).unflatten(0, (batch, views))
            if index in config.taps:
                taps.append(torch.cat([local, x], dim=-1))
            if step is not None:
                step()
        return Taps(taps, (rows, columns), chosen)

    def for_head(self, tap: Tensor) -> Tensor:
        """[*, 1 + N, 2C] of a tap to [*, N, 2C]: without token 0, the current half normalised."""
        local, current = tap[..., 1:, :].chunk(2, dim=-1)
        return torch.cat([local, self.norm(current)], dim=-1)

    def _camera_tokens(self, chosen: Tensor | None, views: int) -> Tensor:
        assert chosen is not None
        others = torch.arange(views, device=chosen.device) != chosen[:, None]  # [B, V]
        return self.camera_token[0][others.long()]

    def _rotations(self, rows: int, columns: int, views: int, device: torch.device) -> tuple[Rotation, Rotation]:
        width, base = self.config.width // self.config.heads, self.config.rope_base
        across = shared_positions(rows, columns, device).repeat(views, 1)
        return rotation_of(token_positions(rows, columns, device), width, base), rotation_of(across, width, base)
