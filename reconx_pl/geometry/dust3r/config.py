"""The size of DUSt3R in numbers; the tiny networks of the tests and the released ones run the same code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reconx_pl.errors import ConfigurationError

PATCH = 16  # pixels of a patch's side, in every released model
LEVELS = 4  # of the DPT head


@dataclass(frozen=True)
class Dust3rConfig:
    """Size and options of :class:`reconx_pl.geometry.dust3r.model.Dust3r`; the defaults are the released 512 DPT model.

    Args:
        encoder_width: of the tokens of the image encoder.
        encoder_depth: blocks of it.
        encoder_heads: attention heads of a block.
        decoder_width: of the tokens of both decoders.
        decoder_depth: blocks of each; at least 2 where the head is DPT, which reads after 0, 1/2, 3/4 and all of them,
            rounded down.
        decoder_heads: attention heads of a block.
        mlp_ratio: hidden width of an MLP, as a multiple of its block's.
        rope_base: of the rotary embedding's frequencies.
        head: "dpt" (convolutions over four depths) or "linear" (a linear map of the last tokens).
        dpt_width: channels of the DPT head's fusion.
        dpt_output_width: channels of its output convolutions.
        dpt_level_widths: channels of its four levels, fine to coarse.
        image_size: rows and columns of the largest images of the training, pixels; the network itself takes any
            multiple of 16.

    Raises:
        ConfigurationError: numbers that do not fit each other.
    """

    encoder_width: int = 1024
    encoder_depth: int = 24
    encoder_heads: int = 16
    decoder_width: int = 768
    decoder_depth: int = 12
    decoder_heads: int = 12
    mlp_ratio: int = 4
    rope_base: float = 100.0
    head: Literal["dpt", "linear"] = "dpt"
    dpt_width: int = 256
    dpt_output_width: int = 128
    dpt_level_widths: tuple[int, int, int, int] = (96, 192, 384, 768)
    image_size: tuple[int, int] = (512, 512)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dpt_level_widths", tuple(self.dpt_level_widths))
        object.__setattr__(self, "image_size", tuple(self.image_size))
        for name, value in vars(self).items():
            for number in value if isinstance(value, tuple) else (value,):
                if not isinstance(number, str) and number <= 0:
                    raise ConfigurationError(f"{name} must be positive, got {value}")
        for part in ("encoder", "decoder"):
            width, heads = getattr(self, f"{part}_width"), getattr(self, f"{part}_heads")
            if width % (4 * heads):
                raise ConfigurationError(
                    f"{part}_width {width} over {heads} heads: the width of a head must be a multiple of 4, two halves "
                    "of pairs for rows and columns"
                )
        if self.head not in ("dpt", "linear"):
            raise ConfigurationError(f"head is 'dpt' or 'linear', not {self.head!r}")
        if self.head == "dpt" and self.decoder_depth < 2:  # the encoder's output would be read as a decoder's
            raise ConfigurationError(f"a DPT head needs a decoder_depth of at least 2, got {self.decoder_depth}")
        if len(self.dpt_level_widths) != LEVELS:
            raise ConfigurationError(
                f"dpt_level_widths has one number for each of 4 levels, got {self.dpt_level_widths}"
            )
        if len(self.image_size) != 2 or any(side % PATCH for side in self.image_size):
            raise ConfigurationError(f"image_size is rows and columns, multiples of {PATCH}, got {self.image_size}")

    @property
    def hooks(self) -> tuple[int, ...]:
        """Depths at which the head reads: 0 is the encoder's output, i the output of block i."""
        depth = self.decoder_depth
        return (0, depth // 2, 3 * depth // 4, depth) if self.head == "dpt" else (depth,)

    @classmethod
    def linear_512(cls) -> Dust3rConfig:
        """The released ``DUSt3R_ViTLarge_BaseDecoder_512_linear``: 532,342,784 parameters."""
        return cls(head="linear")

    @classmethod
    def linear_224(cls) -> Dust3rConfig:
        """The released ``DUSt3R_ViTLarge_BaseDecoder_224_linear``; the same network, trained on squares."""
        return cls(head="linear", image_size=(224, 224))
