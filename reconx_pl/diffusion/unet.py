"""The video U-Net of DynamiCrafter (Xing et al. 2023) with the structure attention of ReconX."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reconx_pl.diffusion.attention import Context
from reconx_pl.diffusion.blocks import Downsample, ResBlock, Upsample
from reconx_pl.diffusion.config import UNetConfig
from reconx_pl.diffusion.embeddings import embedding_mlp, sinusoidal_embedding, zero_
from reconx_pl.diffusion.norms import GroupNorm32
from reconx_pl.diffusion.transformers import Block, SpatialTransformer, TemporalTransformer
from reconx_pl.errors import ConfigurationError

INIT_ATTENTION_HEADS = 8  # at every size of the model


class Stage(nn.Sequential):
    """Layers between two skip connections. Blocks may be recomputed in the backward pass instead of stored."""

    checkpointing = False

    def forward(self, x: Tensor, context: Context) -> Tensor:  # type: ignore[override]
        for layer in self:
            if not isinstance(layer, Block):
                x = layer(x)
            elif self.checkpointing and torch.is_grad_enabled():
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
        self.set_activation_checkpointing(config.activation_checkpointing)

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

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Trade about one more forward pass for the memory of all activations inside the blocks."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.checkpointing = enabled

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        *,
        text_tokens: Tensor,
        image_tokens: Tensor,
        fps: Tensor | None = None,
        structure_tokens: Tensor | None = None,
        structure_keep: Tensor | None = None,
    ) -> Tensor:
        """Predict for one step.

        Args:
            x: [B, C_in, T, h, w] noisy latents and condition latents; h and w multiples of ``config.side_multiple``.
            timesteps: [B] diffusion steps.
            text_tokens: [B, L, D].
            image_tokens: [B, T, Q, D], a frame's own tokens, or [B, M, D], shared by all frames.
            fps: [B] frames a second; None means ``config.default_fps``.
            structure_tokens: [B, S, D], the same for all frames; None skips the structure branch.
            structure_keep: [B] bool; False switches the structure branch off for that sample. None keeps all.

        Returns:
            [B, C_out, T, h, w] in the dtype of ``x``.

        Raises:
            ConfigurationError: shapes that do not fit the configuration or each other.
        """
        self._check(x, timesteps, text_tokens, image_tokens, fps, structure_tokens, structure_keep)
        batch, _, frames, height, width = x.shape
        if fps is None:
            fps = torch.full((batch,), self.config.default_fps, device=x.device)
        base, dtype = self.config.model_channels, x.dtype
        embedding = self.time_embed(sinusoidal_embedding(timesteps, base).to(dtype))
        embedding = embedding + self.fps_embedding(sinusoidal_embedding(fps, base).to(dtype))
        context = Context(
            embedding=embedding,
            frames=frames,
            text=text_tokens.to(dtype),
            image=image_tokens.to(dtype),
            structure=None if structure_tokens is None else structure_tokens.to(dtype),
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

    def _check(
        self,
        x: Tensor,
        timesteps: Tensor,
        text_tokens: Tensor,
        image_tokens: Tensor,
        fps: Tensor | None,
        structure_tokens: Tensor | None,
        structure_keep: Tensor | None,
    ) -> None:
        config = self.config
        if x.ndim != 5 or x.shape[1] != config.in_channels:
            raise ConfigurationError(f"the U-Net takes [B, {config.in_channels}, T, h, w], got {tuple(x.shape)}")
        batch, _, frames, height, width = x.shape
        multiple = config.side_multiple
        if frames < 1 or height < 1 or width < 1 or height % multiple or width % multiple:
            raise ConfigurationError(
                f"latents of {frames} frames, {height} x {width}: both sides must be multiples of {multiple} "
                f"({len(config.channel_mult)} levels); crop or resize the frames"
            )
        for name, value in (("timesteps", timesteps), ("fps", fps), ("structure_keep", structure_keep)):
            if value is not None and value.shape != (batch,):
                raise ConfigurationError(f"{name} must be [{batch}], one per sample, got {tuple(value.shape)}")
        if structure_tokens is not None and not config.structure_guidance:
            raise ConfigurationError("structure_tokens were given to a U-Net built with structure_guidance=False")
        tokens = {"text_tokens": (text_tokens, (3,)), "image_tokens": (image_tokens, (3, 4))}
        if structure_tokens is not None:
            tokens["structure_tokens"] = (structure_tokens, (3,))
        for name, (value, dims) in tokens.items():
            if value.ndim not in dims or value.shape[0] != batch or value.shape[-1] != config.context_dim:
                expected = " or ".join("[B, T, Q, D]" if d == 4 else "[B, N, D]" for d in dims)
                raise ConfigurationError(
                    f"{name} must be {expected} with B = {batch}, D = {config.context_dim}, got {tuple(value.shape)}"
                )
        if image_tokens.ndim == 4 and image_tokens.shape[1] != frames:
            raise ConfigurationError(
                f"image_tokens {tuple(image_tokens.shape)} are for {image_tokens.shape[1]} frames, the latents have "
                f"{frames}; pass [B, M, D] for tokens that all frames share"
            )
