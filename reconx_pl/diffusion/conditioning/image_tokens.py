"""Context tokens of the reference image, g(I_ref) of ReconX, IV-D: [B, T, Q, D], Q tokens for each frame.

``ClipImageTokens`` is the base model's path: one frame, resized to 224 x 224, through OpenCLIP's ViT-H/14, all 257
tokens of the last block without the final norm, into the resampler. ``SmallImageTokens`` is a small trainable
encoder of the same shape, for runs without CLIP weights.

The condition is dropped by encoding a mid-grey image (0.5 in [0, 1]), not by zero tokens: ``null``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reconx_pl.diffusion.conditioning.dropout import NULL_IMAGE, drop_tokens
from reconx_pl.diffusion.conditioning.frozen import FrozenModule
from reconx_pl.diffusion.conditioning.resampler import Resampler, ResamplerConfig
from reconx_pl.errors import ConfigurationError, MissingWeightsError
from reconx_pl.files.weights import load_exactly, read_state

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGE_ENCODER_PREFIXES = (
    "embedder.model.visual.",
    "image_tokens.encoder.visual.",
    "model.visual.",
    "visual.",
    "",
)


@dataclass(frozen=True)
class ClipVisionConfig:
    """Sizes of an OpenCLIP vision encoder under open_clip's names. The defaults are ViT-H-14.

    Args:
        image_size: side of the square input, pixels.
        patch_size: side of a patch, pixels.
        width: of a token.
        layers: transformer blocks.
        head_width: width of an attention head.
        embed_dim: of the joint embedding; only the unused projection has it.
    """

    image_size: int = 224
    patch_size: int = 14
    width: int = 1280
    layers: int = 32
    head_width: int = 80
    embed_dim: int = 1024

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size or self.width % self.head_width:
            raise ConfigurationError(
                f"image_size {self.image_size} has to be a multiple of patch_size {self.patch_size}, "
                f"and width {self.width} of head_width {self.head_width}"
            )

    @property
    def tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2 + 1


def preprocess(images: Tensor, size: int = 224) -> Tensor:
    """What the base model does to a frame before CLIP: resize without keeping the aspect, then normalise.

    Bicubic with aligned corners. If a side shrinks, both axes are blurred first with a Gaussian of sigma = max((in
    / size - 1) / 2, 0.001), kernel of floor(4 sigma) but at least 3 taps, made odd, reflected border (kornia's
    antialias).

    Args:
        images: [B, 3, H, W] in [0, 1].
        size: side of the result, pixels.

    Returns:
        [B, 3, size, size], normalised with CLIP's mean and standard deviation.
    """
    height, width = images.shape[-2:]
    if max(height, width) > size:
        images = _blur(images, height / size, -2)
        images = _blur(images, width / size, -1)
    if (height, width) != (size, size):
        images = functional.interpolate(images, size=(size, size), mode="bicubic", align_corners=True)
    mean = images.new_tensor(CLIP_MEAN).view(3, 1, 1)
    std = images.new_tensor(CLIP_STD).view(3, 1, 1)
    return (images - mean) / std


def _blur(images: Tensor, shrink: float, axis: int) -> Tensor:
    """Gaussian blur along one axis (-2 rows, -1 columns) before shrinking that axis by ``shrink``."""
    sigma = max((shrink - 1) / 2, 0.001)
    taps = int(max(4 * sigma, 3)) | 1
    offsets = torch.arange(taps, device=images.device, dtype=images.dtype) - taps // 2
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view((1, 1, taps, 1) if axis == -2 else (1, 1, 1, taps))
    half = taps // 2
    padded = functional.pad(images, (0, 0, half, half) if axis == -2 else (half, half, 0, 0), mode="reflect")
    return functional.conv2d(padded.flatten(0, 1)[:, None], kernel).unflatten(0, images.shape[:2])[:, :, 0]


class ClipVisionEncoder(FrozenModule):
    """OpenCLIP's vision transformer, frozen; all tokens of the last block (class token first), before the final norm.

    Args:
        config: sizes.
        weights: local file: the official checkpoint (``embedder.model.visual.*``), a folder of ``reconx weights
            convert``, an open_clip checkpoint (``visual.*``) or the frozen encoder alone.
        random_init: allow a frozen encoder without weights; for tests of shapes and for parity kits only.

    Raises:
        MissingWeightsError: neither ``weights`` nor ``random_init``.
        BadWeightsError: the file does not fit.
    """

    def __init__(
        self, config: ClipVisionConfig | None = None, weights: str | Path | None = None, random_init: bool = False
    ) -> None:
        super().__init__()
        self.config = config = config or ClipVisionConfig()
        if weights is None and not random_init:
            raise MissingWeightsError(
                "the CLIP image encoder has no weights: pass weights=<file>, either the DynamiCrafter "
                "checkpoint (hugging face Doubiiu/DynamiCrafter_512_Interp, model.ckpt) or OpenCLIP ViT-H-14 "
                "laion2b_s32b_b79k; or use SmallImageTokens"
            )
        from open_clip.transformer import VisionTransformer  # imports torchvision: keep it out of the package import

        # with weights at hand, 0.6 billion random numbers need not be drawn first
        with torch.device("meta" if weights is not None else torch.get_default_device()):
            self.visual = VisionTransformer(
                image_size=config.image_size,
                patch_size=config.patch_size,
                width=config.width,
                layers=config.layers,
                heads=config.width // config.head_width,
                mlp_ratio=4.0,
                output_dim=config.embed_dim,
            )
        if weights is not None:
            load_exactly(self.visual, read_state(weights, IMAGE_ENCODER_PREFIXES), str(weights), assign=True)
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [0, 1], any size -> tokens [B, 257, width]."""
        pixels = preprocess(images.float(), self.config.image_size).to(self.visual.conv1.weight.dtype)
        patches = self.visual.conv1(pixels).flatten(2).transpose(1, 2)  # [B, M, width]
        first = self.visual.class_embedding.expand(patches.shape[0], 1, -1)
        tokens = torch.cat([first, patches], dim=1) + self.visual.positional_embedding
        # open_clip >= 3 blocks are batch first; forward() of the frozen encoder would pool and norm
        tokens = self.visual.ln_pre(tokens)
        for block in self.visual.transformer.resblocks:
            tokens = block(tokens)
        return tokens

    def null(self) -> Tensor:
        """Tokens [1, 257, width] of a mid-grey image; the frozen encoder runs once for them."""
        side, device = self.config.image_size, self.visual.conv1.weight.device
        return self.recall("mid grey", lambda: self(torch.full((1, 3, side, side), NULL_IMAGE, device=device)))


class ClipImageTokens(nn.Module):
    """The frozen CLIP frozen encoder and the trainable resampler.

    Args:
        vision: sizes of the frozen encoder.
        resampler: sizes of the resampler; ``embedding_dim`` has to be the frozen encoder's width.
        weights: of the frozen encoder, see ``ClipVisionEncoder``; the resampler is loaded separately
            (``image_proj_model.*``).
        random_init: see ``ClipVisionEncoder``.
        shared: every frame sees the tokens of all frames, [B, T Q, D], so that there may be any number of frames. The
            25-frame models of ViewCrafter were trained so, with queries for 16.
    """

    def __init__(
        self,
        vision: ClipVisionConfig | None = None,
        resampler: ResamplerConfig | None = None,
        weights: str | Path | None = None,
        random_init: bool = False,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.shared = shared
        vision, resampler = vision or ClipVisionConfig(), resampler or ResamplerConfig()
        if resampler.embedding_dim != vision.width:
            raise ConfigurationError(
                f"the resampler takes tokens of width {resampler.embedding_dim}, the CLIP encoder gives {vision.width}"
            )
        self.encoder = ClipVisionEncoder(vision, weights, random_init)
        self.resampler = Resampler(resampler)

    def init_args(self) -> dict[str, Any]:
        """The arguments that build this module again without its weights, for ``config.json``."""
        return {
            "vision": asdict(self.encoder.config),
            "resampler": asdict(self.resampler.config),
            "random_init": True,
            "shared": self.shared,
        }

    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [0, 1], the first condition view -> [B, T, Q, D], or [B, T Q, D] where shared."""
        return self.project(self.encoder(images))

    def project(self, features: Tensor, dropped: Tensor | None = None) -> Tensor:
        """What ``forward`` does after the frozen encoder.

        Args:
            features: [B, 257, width] tokens of the frozen encoder.
            dropped: [B] bool, samples that get the tokens of the mid-grey image instead.

        Returns:
            [B, T, Q, D], or [B, T Q, D] where shared.
        """
        features = features.to(self.resampler.proj_in.weight.dtype)
        if dropped is not None:
            features = drop_tokens(features, self.encoder.null(), dropped)
        tokens = self.resampler(features)
        return tokens.flatten(1, 2) if self.shared else tokens

    def null(self, images: Tensor) -> Tensor:
        """Tokens of no image, one for the whole batch: [1, T, Q, D] or [1, T Q, D], whatever the size of ``images``."""
        return self.project(self.encoder.null())


@dataclass(frozen=True)
class SmallImageConfig:
    """Sizes of ``SmallImageTokens``.

    Args:
        frames: T.
        tokens_per_frame: Q.
        width: D, the U-Net's context width.
        image_size: side of the square that images are resized to, pixels; a multiple of 16.
        channels: of the four convolutions, each halving the resolution; multiples of 8.
        heads: of the resampler, each 32 wide.
        depth: layers of the resampler.
        resampler_width: width of its queries.
    """

    frames: int = 8
    tokens_per_frame: int = 8
    width: int = 128
    image_size: int = 128
    channels: tuple[int, int, int, int] = (32, 64, 96, 128)
    heads: int = 4
    depth: int = 1
    resampler_width: int = 128

    def __post_init__(self) -> None:
        if self.image_size % 16 or self.image_size < 16:
            raise ConfigurationError(f"image_size is a multiple of 16, got {self.image_size}")
        if len(self.channels) != 4 or any(c % 8 for c in self.channels):
            raise ConfigurationError(f"channels are four multiples of 8, got {self.channels}")


class SmallImageTokens(nn.Module):
    """Four strided convolutions; the cells of the last feature map become tokens, then a resampler.

    At the default sizes 0.44 M parameters. Drop-in for ``ClipImageTokens`` where no CLIP weights are at hand;
    trained from scratch.
    """

    def __init__(self, config: SmallImageConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SmallImageConfig()
        layers: list[nn.Module] = []
        for before, after in zip((3, *config.channels[:-1]), config.channels, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.encoder = nn.Sequential(*layers)
        cells = (config.image_size // 16) ** 2
        self.position = nn.Parameter(torch.randn(1, cells, config.channels[-1]) * 0.02)
        self.resampler = Resampler(
            ResamplerConfig(
                dim=config.resampler_width,
                depth=config.depth,
                dim_head=32,
                heads=config.heads,
                num_queries=config.tokens_per_frame,
                embedding_dim=config.channels[-1],
                output_dim=config.width,
                video_length=config.frames,
            )
        )

    def init_args(self) -> dict[str, Any]:
        """The arguments that build this module again, for ``config.json``."""
        return {"config": asdict(self.config)}

    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [0, 1] -> [B, T, Q, D]."""
        side = self.config.image_size
        if images.shape[-2:] != (side, side):
            images = functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
        features = self.encoder((images * 2 - 1).to(self.position.dtype))  # [B, C, side / 16, side / 16]
        return self.resampler(features.flatten(2).transpose(1, 2) + self.position)

    def null(self, images: Tensor) -> Tensor:
        """Tokens of no image, one for the whole batch: [1, T, Q, D]. ``images`` gives size, device and type."""
        return self(torch.full_like(images[:1], NULL_IMAGE))
