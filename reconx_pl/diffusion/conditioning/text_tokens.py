"""Context tokens of the caption, [B, 77, D].

``ClipTextTokens`` is the base model's path: OpenCLIP ViT-H/14's text encoder, the output of the last block but one,
then the final norm. ``LearnedTextTokens`` stands in where there are no CLIP weights: it reads no words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reconx_pl.diffusion.conditioning.frozen import FrozenModule
from reconx_pl.errors import ConfigurationError, MissingWeightsError
from reconx_pl.files.weights import load_exactly, read_state

TEXT_ENCODER_PREFIXES = ("cond_stage_model.model.", "text_tokens.text.", "model.", "")
# parts of a whole CLIP checkpoint that are not the text encoder
_NOT_TEXT = ("visual.", "logit_scale", "logit_bias", "attn_mask")


@dataclass(frozen=True)
class ClipTextConfig:
    """Sizes of an OpenCLIP text encoder under open_clip's names. The defaults are ViT-H-14.

    Args:
        context_length: tokens of a caption; longer ones are cut.
        vocab_size: of the tokenizer (49408 is CLIP's).
        width: D.
        heads: attention heads.
        layers: transformer blocks.
        embed_dim: of the joint embedding; only the unused projection has it.
    """

    context_length: int = 77
    vocab_size: int = 49408
    width: int = 1024
    heads: int = 16
    layers: int = 24
    embed_dim: int = 1024

    def __post_init__(self) -> None:
        if self.width % self.heads or self.layers < 2:
            raise ConfigurationError(
                f"width {self.width} has to be a multiple of heads {self.heads}, and there are at least 2 layers"
            )


def tokenize(captions: Sequence[str], context_length: int = 77) -> Tensor:
    """CLIP's byte-pair encoding: [B, context_length] int64, start and end marks, zeros after the end."""
    from open_clip.tokenizer import SimpleTokenizer

    global _tokenizer
    if _tokenizer is None:
        _tokenizer = SimpleTokenizer()
    return _tokenizer(list(captions), context_length=context_length)


_tokenizer: Any = None  # reads its vocabulary once; holds no state


class ClipTextTokens(FrozenModule):
    """OpenCLIP's text transformer, frozen.

    Args:
        config: sizes.
        weights: local file: the official checkpoint (``cond_stage_model.model.*``), a folder of ``reconx weights
            convert``, an open_clip checkpoint, or the encoder alone.
        random_init: allow an encoder without weights; for tests of shapes and for parity kits only.
        layer: "penultimate" (base model) skips the last block, "last" runs all; the final norm follows either way.

    Raises:
        MissingWeightsError: neither ``weights`` nor ``random_init``.
        BadWeightsError: the file does not fit.
    """

    def __init__(
        self,
        config: ClipTextConfig | None = None,
        weights: str | Path | None = None,
        random_init: bool = False,
        layer: Literal["penultimate", "last"] = "penultimate",
    ) -> None:
        super().__init__()
        self.config = config = config or ClipTextConfig()
        if layer not in ("penultimate", "last"):
            raise ConfigurationError(f"layer is 'penultimate' or 'last', got {layer!r}")
        if weights is None and not random_init:
            raise MissingWeightsError(
                "the CLIP text encoder has no weights: pass weights=<file>, either the DynamiCrafter "
                "checkpoint (hugging face Doubiiu/DynamiCrafter_512_Interp, model.ckpt) or OpenCLIP ViT-H-14 "
                "laion2b_s32b_b79k; or use LearnedTextTokens"
            )
        self.layer = layer
        from open_clip.transformer import TextTransformer  # imports torchvision: keep it out of the package import

        with torch.device("meta" if weights is not None else torch.get_default_device()):
            self.text = TextTransformer(
                context_length=config.context_length,
                vocab_size=config.vocab_size,
                width=config.width,
                heads=config.heads,
                layers=config.layers,
                output_dim=config.embed_dim,
                no_causal_mask=True,  # the mask is made below: as a buffer it would be lost on the meta device
            )
        if weights is not None:
            state = read_state(weights, TEXT_ENCODER_PREFIXES)
            state = {key: value for key, value in state.items() if not key.startswith(_NOT_TEXT)}
            load_exactly(self.text, state, str(weights), assign=True)
        self.freeze()

    def init_args(self) -> dict[str, Any]:
        """The arguments that build this module again without its weights, for ``config.json``."""
        return {"config": asdict(self.config), "random_init": True, "layer": self.layer}

    @property
    def width(self) -> int:
        return self.config.width

    def settings(self) -> object:
        return self.config, self.layer

    def forward(self, captions: Sequence[str]) -> Tensor:
        """Captions, one a sample, "" for none -> [B, 77, D].

        The encoder runs once for a caption, as long as it is remembered. Captions go through one by one: their
        tokens then do not depend, not even in rounding, on the batch in which they came first, and a resumed run is
        exact.
        """
        return torch.cat([self.recall((self.layer, caption), partial(self._encode, caption)) for caption in captions])

    def _encode(self, caption: str) -> Tensor:  # [1, 77, D]
        return self.encode(tokenize([caption], self.config.context_length))

    def null(self) -> Tensor:
        """Tokens of the empty caption, [1, 77, D]."""
        return self([""])

    @torch.no_grad()
    def encode(self, tokens: Tensor) -> Tensor:
        """Token numbers [B, 77] int64 -> [B, 77, D]."""
        weight = self.text.token_embedding.weight
        x = self.text.token_embedding(tokens.to(weight.device)) + self.text.positional_embedding[: tokens.shape[1]]
        length = tokens.shape[1]
        causal = torch.full((length, length), float("-inf"), device=x.device, dtype=x.dtype).triu_(1)
        blocks = list(self.text.transformer.resblocks)
        for block in blocks if self.layer == "last" else blocks[:-1]:
            x = block(x, attn_mask=causal)
        return self.text.ln_final(x)


class LearnedTextTokens(nn.Module):
    """Two learned tables: one for "a caption", whatever it says, and one for no caption.

    For runs without CLIP weights: it gives the U-Net context of the right shape and lets text dropout work, and
    knows nothing about the words.

    Args:
        tokens: per caption; 77 in the base model.
        width: D, the U-Net's context width.
    """

    def __init__(self, tokens: int = 77, width: int = 128) -> None:
        super().__init__()
        if tokens < 1 or width < 1:
            raise ConfigurationError(f"tokens and width are positive, got {tokens} and {width}")
        self.caption = nn.Parameter(torch.randn(1, tokens, width))
        self.empty = nn.Parameter(torch.randn(1, tokens, width))

    def init_args(self) -> dict[str, Any]:
        """The arguments that build this module again, for ``config.json``."""
        return {"tokens": self.caption.shape[1], "width": self.width}

    @property
    def width(self) -> int:
        return self.caption.shape[-1]

    def forward(self, captions: Sequence[str]) -> Tensor:
        """One table for each caption, "" included -> [B, 77, D]; use ``null`` for a dropped caption."""
        return self.caption.repeat(len(captions), 1, 1)  # a view would outlive the memory of a sharded table

    def null(self) -> Tensor:
        """The table for no caption, [1, 77, D]."""
        return self.empty.clone()
