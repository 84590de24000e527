"""The network: one encoder for both views, two decoders that read each other, a head for each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.dust3r.blocks import DecoderBlock, EncoderBlock, layer_norm
from reconx_pl.geometry.dust3r.config import PATCH, Dust3rConfig
from reconx_pl.geometry.dust3r.heads import build_head, in_pieces, points_and_confidence
from reconx_pl.geometry.dust3r.rope import Rotation, patch_positions, rotation_of


class ViewTokens(NamedTuple):
    """What the encoder makes of a batch of images of one size."""

    tokens: Tensor  # [B, N, D]
    grid: tuple[int, int]  # rows and columns of patches, as the images are stored
    portrait: Tensor | None = None  # [B] bool on the CPU: those that are stored lying down


class PairOutput(NamedTuple):
    """Points of both views in the first view's frame (units of the network's own), and confidences >= 1."""

    first_points: Tensor  # [B, H1, W1, 3]
    first_confidence: Tensor  # [B, H1, W1]
    second_points: Tensor  # [B, H2, W2, 3]
    second_confidence: Tensor  # [B, H2, W2]


class Encoder(nn.Module):
    """A vision transformer without class token."""

    def __init__(self, config: Dust3rConfig) -> None:
        super().__init__()
        self.head_width, self.rope_base = config.encoder_width // config.encoder_heads, config.rope_base
        self.patches = nn.Conv2d(3, config.encoder_width, PATCH, stride=PATCH)
        self.blocks = nn.ModuleList(
            EncoderBlock(config.encoder_width, config.encoder_heads, config.mlp_ratio)
            for _ in range(config.encoder_depth)
        )
        self.norm = layer_norm(config.encoder_width)

    def forward(self, images: Tensor, portrait: Tensor | None = None) -> ViewTokens:
        """[B, 3, H, W] in [-1, 1] to tokens; see ``Dust3r.encode``."""
        rows, columns = images.shape[-2] // PATCH, images.shape[-1] // PATCH
        if portrait is None:
            x = self.patches(images).flatten(2).transpose(1, 2)
        else:
            stored = images[(~portrait).nonzero()[:, 0].to(images.device)]
            upright = images[portrait.nonzero()[:, 0].to(images.device)].transpose(2, 3)
            x = torch.cat([self.patches(part).flatten(2).transpose(1, 2) for part in (stored, upright)])
            order = torch.cat([(~portrait).nonzero()[:, 0], portrait.nonzero()[:, 0]]).argsort()
            x = x[order.to(x.device)]
        view = ViewTokens(x, (rows, columns), portrait)
        rotation = rotation_of(positions_of(view), self.head_width, self.rope_base)
        for block in self.blocks:
            x = block(x, rotation)
        return view._replace(tokens=self.norm(x))


def positions_of(view: ViewTokens) -> Tensor:
    """(row, column) of every token in the upright image: [N, 2], or [B, N, 2] where some are stored lying down."""
    rows, columns = view.grid
    device = view.tokens.device
    stored = patch_positions(rows, columns, device)
    if view.portrait is None:
        return stored
    upright = patch_positions(columns, rows, device)
    return torch.where(view.portrait.to(device)[:, None, None], upright, stored)


class Decoders(nn.Module):
    """Two stacks of blocks, one for each view, that read each other's tokens of the block before."""

    def __init__(self, config: Dust3rConfig) -> None:
        super().__init__()
        width, heads = config.decoder_width, config.decoder_heads
        self.head_width, self.rope_base = width // heads, config.rope_base
        self.embed = nn.Linear(config.encoder_width, width)
        self.first, self.second = (
            nn.ModuleList(DecoderBlock(width, heads, config.mlp_ratio) for _ in range(config.decoder_depth))
            for _ in range(2)
        )
        self.norm = layer_norm(width)

    def forward(
        self, first: ViewTokens, second: ViewTokens, hooks: tuple[int, ...]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Tokens of both views at each of the depths ``hooks``, of which two may be one.

        0 is the encoder's output, the last is normalised.
        """
        turns: list[Rotation] = [
            rotation_of(positions_of(view), self.head_width, self.rope_base) for view in (first, second)
        ]
        x, y = self.embed(first.tokens), self.embed(second.tokens)
        seen = {0: (first.tokens, second.tokens)} if 0 in hooks else {}
        for depth, (one, two) in enumerate(zip(self.first, self.second, strict=True), start=1):
            x, y = one(x, y, turns[0], turns[1]), two(y, x, turns[1], turns[0])
            if depth == len(self.first):
                x, y = self.norm(x), self.norm(y)
            if depth in hooks:
                seen[depth] = (x, y)
        return [seen[hook][0] for hook in hooks], [seen[hook][1] for hook in hooks]


class Dust3r(nn.Module):
    """Two images to a point for each of their pixels, all in the first camera's frame.

    The released weights are for non-commercial use only (CC BY-NC-SA 4.0); this code is not.

    Args:
        config: size and options.
    """

    def __init__(self, config: Dust3rConfig = Dust3rConfig()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoders = Decoders(config)
        self.first_head, self.second_head = build_head(config), build_head(config)

    def encode(self, images: Tensor, portrait: Tensor | None = None) -> ViewTokens:
        """Tokens of images; each image needs this once, however many pairs it is in.

        Args:
            images: [B, 3, H, W] in [-1, 1], sides multiples of 16.
            portrait: [B] bool on the CPU, for batches as DUSt3R is trained on: every image is stored H <= W, and those
                marked are portraits, transposed for the sake of the batch. The network sees them upright. Its outputs
                are as the images are stored. None: every image stands as it is stored, whatever its shape.

        Raises:
            ConfigurationError: sides that are no multiples of 16, or ``portrait`` of another length.
        """
        if images.ndim != 4 or images.shape[1] != 3 or any(side % PATCH or not side for side in images.shape[-2:]):
            raise ConfigurationError(
                f"images are [B, 3, H, W] with sides that are multiples of {PATCH}, got {tuple(images.shape)}; "
                "see reconx_pl.geometry.dust3r.preprocess"
            )
        if portrait is not None and (portrait.dtype != torch.bool or portrait.shape != images.shape[:1]):
            raise ConfigurationError(
                f"portrait is one bool an image, got {portrait.dtype} {tuple(portrait.shape)} for {len(images)} images"
            )
        return self.encoder(images, portrait)

    def decode(self, first: ViewTokens, second: ViewTokens) -> PairOutput:
        """Point maps of pairs of encoded images; the heads compute in float32 under autocast too."""
        tokens = self.decoders(first, second, self.config.hooks)
        outputs: list[Tensor] = []
        for head, view, depths in zip((self.first_head, self.second_head), (first, second), tokens, strict=True):
            with torch.autocast(view.tokens.device.type, enabled=False):
                depths = [depth.to(next(head.parameters()).dtype) for depth in depths]
                outputs += points_and_confidence(in_pieces(head, depths, view.grid, view.portrait))
        return PairOutput(*outputs)

    def forward(
        self,
        first: Tensor,
        second: Tensor,
        first_portrait: Tensor | None = None,
        second_portrait: Tensor | None = None,
    ) -> PairOutput:
        """Both images of every pair, [B, 3, H1, W1] and [B, 3, H2, W2] in [-1, 1], to point maps; see ``encode``."""
        return self.decode(self.encode(first, first_portrait), self.encode(second, second_portrait))
