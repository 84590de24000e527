"""The size of the U-Net in numbers: the demo and the full model run the same code."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from reconx_pl.errors import ConfigurationError

logger = logging.getLogger(__name__)

NORM_GROUPS = 32  # every GroupNorm of the model

BlockKind = Literal["residual", "spatial", "temporal"]
BLOCK_KINDS: tuple[BlockKind, ...] = get_args(BlockKind)


@dataclass(frozen=True)
class UNetConfig:
    """Size and options of :class:`reconx_pl.diffusion.unet.UNet`; the defaults are DynamiCrafter 512.

    Args:
        in_channels: noisy latent plus condition latent, stacked on the channel axis.
        out_channels: channels of the prediction.
        model_channels: width of the first level, a multiple of 32. Below 64 a GroupNorm group holds one channel, which
            removes the time embedding of that level; this is allowed, with a warning.
        channel_mult: width of each level as a multiple of ``model_channels``; each level halves the latent sides.
        num_res_blocks: residual blocks per level (one more on the way up).
        attention_strides: levels with spatial and temporal transformers, named by their stride 1, 2, 4, ...
            The middle always has them.
        num_head_channels: width of an attention head. ``init_attn`` has 8 such heads at every size.
        transformer_depth: blocks in each transformer.
        context_dim: width of text, image and structure tokens.
        dropout: in residual blocks, spatial and temporal.
        default_fps: frames a second where a call gives none.
        image_gate: learn the weight of image attention, tanh(alpha) + 1 (the 256 model); otherwise it is 1.
        structure_guidance: build the gated structure attention (ReconX section on injection, F_out).
        activation_checkpointing: which blocks are recomputed in the backward pass instead of stored: true for all,
            false for none, or a list of kinds: "residual" (with its temporal convolutions), "spatial" and "temporal"
            (transformers).
        compile: compile each of these blocks with ``torch.compile`` at its first call, for the shapes of that call;
            needs a C++ compiler on a processor, Triton on a GPU.

    Raises:
        ConfigurationError: numbers that do not fit each other.
    """

    in_channels: int = 8
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_strides: tuple[int, ...] = (1, 2, 4)
    num_head_channels: int = 64
    transformer_depth: int = 1
    context_dim: int = 1024
    dropout: float = 0.1
    default_fps: float = 24.0
    image_gate: bool = False
    structure_guidance: bool = True
    activation_checkpointing: bool | tuple[BlockKind, ...] = False
    compile: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
        object.__setattr__(self, "attention_strides", tuple(self.attention_strides))
        for name in ("in_channels", "out_channels", "model_channels", "num_res_blocks", "num_head_channels"):
            self._require_positive(name, getattr(self, name))
        for name in ("transformer_depth", "context_dim"):
            self._require_positive(name, getattr(self, name))
        if not self.channel_mult:
            raise ConfigurationError("channel_mult is empty; give one multiplier per level, such as (1, 2, 4, 4)")
        for multiplier in self.channel_mult:
            self._require_positive("channel_mult", multiplier)
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigurationError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.default_fps <= 0:
            raise ConfigurationError(f"default_fps must be positive, got {self.default_fps}")
        strides = [2**level for level in range(len(self.channel_mult))]
        self.checkpointed_kinds(self.activation_checkpointing)
        unknown = sorted(set(self.attention_strides) - set(strides))
        if unknown:
            raise ConfigurationError(f"attention_strides {unknown} do not exist; {len(strides)} levels have {strides}")
        for level, channels in enumerate(self.level_channels):
            if channels % NORM_GROUPS:
                raise ConfigurationError(
                    f"level {level} has {self.model_channels} x {self.channel_mult[level]} = {channels} channels; "
                    f"GroupNorm needs a multiple of {NORM_GROUPS}"
                )
            attends = strides[level] in self.attention_strides or level == len(strides) - 1  # last: the middle block
            if attends and channels % self.num_head_channels:
                raise ConfigurationError(
                    f"level {level} has {channels} channels, which heads of {self.num_head_channels} channels "
                    "(num_head_channels) do not divide"
                )
        narrow = [channels for channels in self.level_channels if channels < 2 * NORM_GROUPS]
        if narrow:
            logger.warning(
                "U-Net levels of %s channels have one channel per GroupNorm group: their residual blocks do not see "
                "the time step; use at least %d channels",
                narrow,
                2 * NORM_GROUPS,
            )

    @staticmethod
    def _require_positive(name: str, value: int) -> None:
        if value < 1:
            raise ConfigurationError(f"{name} must be at least 1, got {value}")

    @staticmethod
    def checkpointed_kinds(choice: bool | Sequence[str]) -> frozenset[str]:
        """What ``activation_checkpointing`` stands for.

        Raises:
            ConfigurationError: a kind that does not exist.
        """
        kinds = (BLOCK_KINDS if choice else ()) if isinstance(choice, bool) else tuple(choice)
        if unknown := sorted(set(kinds) - set(BLOCK_KINDS)):
            raise ConfigurationError(
                f"activation_checkpointing knows {', '.join(BLOCK_KINDS)}, or true and false; got {unknown}"
            )
        return frozenset(kinds)

    @property
    def level_channels(self) -> tuple[int, ...]:
        return tuple(self.model_channels * multiplier for multiplier in self.channel_mult)

    @property
    def side_multiple(self) -> int:
        """Latent rows and columns must be multiples of this: each level but the last halves them."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def embedding_channels(self) -> int:
        """Width of the embedding of time step and frame rate."""
        return 4 * self.model_channels

    @classmethod
    def dynamicrafter_512(
        cls,
        *,
        structure_guidance: bool = True,
        activation_checkpointing: bool | tuple[BlockKind, ...] = False,
        default_fps: float = 24.0,
    ) -> UNetConfig:
        """The released 512 model: 1,438,854,980 parameters without the structure branch."""
        return cls(
            structure_guidance=structure_guidance,
            activation_checkpointing=activation_checkpointing,
            default_fps=default_fps,
        )

    @classmethod
    def demo(cls, latent_channels: int = 192, *, structure_guidance: bool = True, more_channels: int = 0) -> UNetConfig:
        """A model that learns on a processor: 16 x 16 latents of a pixel-unshuffle (8) autoencoder at 128 x 128.

        8.9 M parameters; ``more_channels`` are those of renders. Attention at 8 x 8 and 4 x 4 only, narrow heads
        (``init_attn`` works at 8 of them, at full resolution) and no dropout: attention at 16 x 16 as well would cost
        more than half as much again.
        """
        return cls(
            in_channels=2 * latent_channels + more_channels,
            out_channels=latent_channels,
            model_channels=64,
            channel_mult=(1, 1, 2),
            num_res_blocks=1,
            attention_strides=(2, 4),
            num_head_channels=16,
            context_dim=128,
            dropout=0.0,
            default_fps=10.0,
            structure_guidance=structure_guidance,
        )
