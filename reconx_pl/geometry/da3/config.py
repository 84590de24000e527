"""The size of Depth-Anything-3 in numbers; the tiny networks of the tests and the released ones run the same code."""

from __future__ import annotations

from dataclasses import dataclass

from reconx_pl.errors import ConfigurationError

PATCH = 14  # pixels of a patch's side, in every released model
LEVELS = 4  # of the head


@dataclass(frozen=True)
class Da3Config:
    """Size of :class:`reconx_pl.geometry.da3.model.DepthAnything3`; the defaults are the released DA3-BASE.

    Args:
        width: C, of the tokens.
        depth: blocks of the backbone.
        heads: attention heads of a block.
        mlp_ratio: hidden width of an MLP, in widths.
        cross_view_start: S, the first block that knows where its tokens are (rotary positions, normalised queries and
            keys). From there on odd blocks attend over the tokens of all views.
        taps: four blocks, counted from 0, after which the head reads.
        image_size: side of the squares that the position table was trained on, pixels; the network itself takes any
            multiples of 14.
        rope_base: of the rotary embedding's frequencies.
        head_width: channels of the head's fusion.
        head_level_widths: channels of its four levels, fine to coarse.
        camera_heads: attention heads of the camera encoder's blocks.
        camera_depth: blocks of the camera encoder.

    Raises:
        ConfigurationError: numbers that do not fit each other.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: int = 4
    cross_view_start: int = 4
    taps: tuple[int, int, int, int] = (5, 7, 9, 11)
    image_size: int = 518
    rope_base: float = 100.0
    head_width: int = 128
    head_level_widths: tuple[int, int, int, int] = (96, 192, 384, 768)
    camera_heads: int = 16
    camera_depth: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "taps", tuple(self.taps))
        object.__setattr__(self, "head_level_widths", tuple(self.head_level_widths))
        for name, value in vars(self).items():
            for number in value if isinstance(value, tuple) else (value,):
                if number <= 0:
                    raise ConfigurationError(f"{name} must be positive, got {value}")
        if self.width % (4 * self.heads) or self.width % self.camera_heads:
            raise ConfigurationError(
                f"width {self.width} over {self.heads} heads and {self.camera_heads} camera heads: the width of a head "
                "must be a whole number, in the backbone a multiple of 4, two halves of pairs for rows and columns"
            )
        if self.cross_view_start >= self.depth:
            raise ConfigurationError(f"cross_view_start is below the depth {self.depth}, got {self.cross_view_start}")
        if len(self.taps) != LEVELS or sorted(set(self.taps)) != list(self.taps) or self.taps[-1] >= self.depth:
            raise ConfigurationError(f"taps are four blocks in order, below {self.depth}, got {self.taps}")
        if len(self.head_level_widths) != LEVELS or any(width % 4 for width in self.head_level_widths):
            raise ConfigurationError(
                f"head_level_widths has a multiple of 4 for each of 4 levels, got {self.head_level_widths}"
            )
        if self.head_width % 8:
            raise ConfigurationError(f"head_width must be a multiple of 8, got {self.head_width}")
        if self.image_size % PATCH:
            raise ConfigurationError(f"image_size must be a multiple of {PATCH}, got {self.image_size}")

    @classmethod
    def small(cls) -> Da3Config:
        """The released DA3-SMALL (Apache-2.0): 34.3 million parameters."""
        return cls(width=384, heads=6, head_width=64, head_level_widths=(48, 96, 192, 384))

    @classmethod
    def base(cls) -> Da3Config:
        """The released DA3-BASE (Apache-2.0): 135.4 million parameters."""
        return cls()

    @classmethod
    def large(cls) -> Da3Config:
        """The released DA3-LARGE (CC BY-NC 4.0: not for commercial use): 411 million parameters."""
        return cls(
            width=1024, depth=24, heads=16, cross_view_start=8, taps=(11, 15, 19, 23),
            head_width=256, head_level_widths=(256, 512, 1024, 1024),
        )  # fmt: skip
