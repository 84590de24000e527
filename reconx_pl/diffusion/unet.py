"""The video U-Net of DynamiCrafter (Xing et al. 2023) with the structure attention of ReconX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reconx_pl.diffusion.attention import Context, DualCrossAttention, Projection, Tokens
from reconx_pl.diffusion.blocks import Downsample, ResBlock, Upsample
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.embeddings import embedding_mlp, sinusoidal_embedding, zero_
from reconx_pl.diffusion.norms import GroupNorm32
from reconx_pl.diffusion.shapes import check_call, check_frames, checked_tokens
from reconx_pl.diffusion.transformers import Block, SpatialTransformer, TemporalTransformer
from reconx_pl.errors import ConfigurationError

INIT_ATTENTION_HEADS = 8  # at every size of the model
COMPILED_VERSIONS = 128


class Stage(nn.Sequential):
    """Layers between two skip connections. Blocks may be recomputed in the backward pass instead of stored."""

    def forward(self, x: Tensor, context: Context) -> Tensor:  # type: ignore[override]
        for layer in self:
            if not isinstance(layer, Block):
                x = layer(x)
            elif layer.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, context, use_reentrant=False)
            else:
                x = layer(x, context)
        return x


class UNet(nn.Module):
    """Predicts noise or velocity of a latent clip from step, frame rate, text, image and structure tokens.

    Parameters have the official names below ``model.diffusion_model.``, but for ``temporal_conv``, which the official
    code misspells; :mod:`reconx_pl.diffusion.weights` translates.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, base = config.level_channels, config.model_channels
        self.time_embed = embedding_mlp(base, config.embedding_channels)
        self.fps_embedding = embedding_mlp(base, config.embedding_channels, zero_output=True)

        channels = base
        skips = [channels]
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(config.in_channels, channels, 3, padding=1))])
        self.init_attn = Stage(TemporalTransformer(channels, INIT_ATTENTION_HEADS, config, pointwise=True))
        for level, width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                self.input_blocks.append(Stage(*self._blocks(channels, width, 2**level)))
                channels = width
                skips.append(channels)
            if level + 1 < len(widths):
                self.input_blocks.append(Stage(Downsample(channels)))
                skips.append(channels)

        self.middle_block = Stage(*self._blocks(channels, channels, stride=None), self._res_block(channels, channels))

        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for index in range(config.num_res_blocks + 1):
                layers = self._blocks(channels + skips.pop(), width, 2**level)
                channels = width
                if level and index == config.num_res_blocks:
                    layers.append(Upsample(channels))
                self.output_blocks.append(Stage(*layers))

        self.out = nn.Sequential(
            GroupNorm32(channels),
            nn.SiLU(),
            zero_(nn.Conv2d(channels, config.out_channels, 3, padding=1)),
        )
        for index, layer in enumerate(self.cross_attention()):
            layer.index = index
        self.set_activation_checkpointing(config.activation_checkpointing)
        if config.compile:
            self.compile_blocks()

    def _res_block(self, in_channels: int, out_channels: int) -> ResBlock:
        return ResBlock(in_channels, out_channels, self.config.embedding_channels, self.config.dropout)

    def _blocks(self, in_channels: int, out_channels: int, stride: int | None) -> list[nn.Module]:
        """A residual block and, where this stride (None: the middle) has attention, the two transformers."""
        layers: list[nn.Module] = [self._res_block(in_channels, out_channels)]
        if stride is None or stride in self.config.attention_strides:
            heads = out_channels // self.config.num_head_channels
            layers.append(SpatialTransformer(out_channels, self.config))
            layers.append(TemporalTransformer(out_channels, heads, self.config))
        return layers

    def blocks(self) -> Iterator[Block]:
        """Residual blocks and transformers, in the order in which they run."""
        return (module for module in self.modules() if isinstance(module, Block))

    def cross_attention(self) -> Iterator[DualCrossAttention]:
        """The layers that see the conditions, in the order in which they run."""
        return (module for module in self.modules() if isinstance(module, DualCrossAttention))

    def set_activation_checkpointing(self, choice: bool | Sequence[str]) -> None:
        """Trade about one more forward pass for the memory of all activations inside the chosen kinds of blocks.

        Args:
            choice: as ``UNetConfig.activation_checkpointing``.
        """
        kinds = UNetConfig.checkpointed_kinds(choice)
        for block in self.blocks():
            block.checkpointing = block.kind in kinds

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile block by block: blocks of one shape share their code, so it takes a fraction of the whole's time.

        Args:
            backend: of ``torch.compile``.
        """
        # a U-Net has more shapes of one kind of block than the 8 versions that torch allows a function by default
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_VERSIONS)
        for block in self.blocks():
            block.compile(fullgraph=True, dynamic=False, backend=backend)

    @property
    def first_conv(self) -> nn.Conv2d:
        """The layer that sees the noisy latents and the condition latents."""
        first = self.input_blocks[0]
        assert isinstance(first, Stage) and isinstance(first[0], nn.Conv2d)
        return first[0]

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def project(
        self, text_tokens: Tensor, image_tokens: Tensor, structure_tokens: Tensor | None = None
    ) -> tuple[Projection, ...]:
        """Keys and values of the conditions in every cross-attention layer, for all the steps of a sampler.

        Args:
            text_tokens, image_tokens: of B samples, as for ``forward``.
            structure_tokens: [M, S, D] or [M, T, S, D] of the last M <= B samples; the others go without structure.

        Raises:
            ConfigurationError: shapes that do not fit the configuration or each other.
        """
        structured = 0 if structure_tokens is None else min(len(structure_tokens), len(text_tokens))
        tokens = Tokens(text_tokens, image_tokens, structure_tokens)
        tokens = checked_tokens(self.config, tokens, len(text_tokens), self.dtype, structured)
        return tuple(layer.project(tokens) for layer in self.cross_attention())

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        *,
        text_tokens: Tensor | None = None,
        image_tokens: Tensor | None = None,
        fps: Tensor | None = None,
        structure_tokens: Tensor | None = None,
        structure_keep: Tensor | None = None,
        projections: tuple[Projection, ...] | None = None,
    ) -> Tensor:
        """Predict for one step.

        Args:
            x: [B, C_in, T, h, w] noisy latents and condition latents; h and w multiples of ``config.side_multiple``.
            timesteps: [B] diffusion steps.
            text_tokens: [B, L, D].
            image_tokens: [B, T, Q, D], a frame's own tokens, or [B, M, D], shared by all frames.
            fps: [B] frames a second; None means ``config.default_fps``.
            structure_tokens: [B, S, D], the same for all frames, or [B, T, S, D]; None skips the structure branch.
            structure_keep: [B] bool; False switches the structure branch off for that sample. None keeps all.
            projections: what ``project`` made of the tokens, instead of them.

        Returns:
            [B, C_out, T, h, w] in the dtype of ``x``.

        Raises:
            ConfigurationError: shapes that do not fit the configuration or each other.
        """
        check_call(self.config, x, timesteps, fps, structure_keep)
        batch, _, frames, _, _ = x.shape
        tokens = None
        if projections is not None:
            check_frames(projections[0].image.key, frames)
        elif text_tokens is None or image_tokens is None:
            raise ConfigurationError("the U-Net needs text_tokens and image_tokens, or projections of them")
        else:
            tokens = Tokens(text_tokens, image_tokens, structure_tokens)
            tokens = checked_tokens(self.config, tokens, batch, x.dtype)
            check_frames(tokens.image, frames)
        if fps is None:
            fps = torch.full((batch,), self.config.default_fps, device=x.device)
        base, dtype = self.config.model_channels, x.dtype
        embedding = self.time_embed(sinusoidal_embedding(timesteps, base).to(dtype))
        embedding = embedding + self.fps_embedding(sinusoidal_embedding(fps, base).to(dtype))
        context = Context(
            embedding=embedding,
            frames=frames,
            tokens=tokens,
            projections=projections,
            structure_keep=structure_keep,
        )

        hidden = x.permute(0, 2, 3, 4, 1).flatten(0, 1).permute(0, 3, 1, 2)  # [B*T, C_in, h, w] channels last
        skips = []
        for index, stage in enumerate(self.input_blocks):
            hidden = stage(hidden, context)
            if index == 0:
                hidden = self.init_attn(hidden, context)
            skips.append(hidden)
        hidden = self.middle_block(hidden, context)
        for stage in self.output_blocks:
            hidden = stage(torch.cat([hidden, skips.pop()], dim=1), context)
        hidden = self.out(hidden)  # [B*T, C_out, h, w]
        return hidden.unflatten(0, (batch, frames)).transpose(1, 2).contiguous().to(dtype)
