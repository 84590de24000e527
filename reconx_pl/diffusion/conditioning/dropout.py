"""Which conditions a training sample goes without, so that guidance has something to compare with.

(base) One uniform number r per sample and p = 0.05: the text is replaced by the null text where r < 2p, the image
by a mid-grey one where p <= r < 3p; so 5 % lose only the text, 5 % both, 5 % only the image. The concatenated
latents are never dropped. (ours) The structure condition is dropped independently of both, with probability 0.1:
the paper does not say. Renders are dropped independently of all; ViewCrafter keeps them always, as is the default.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reconx_pl.errors import ConfigurationError

# The base model multiplies an image in [-1, 1] by zero; in [0, 1] that is this grey.
NULL_IMAGE = 0.5


@dataclass(frozen=True)
class DropoutConfig:
    """Probabilities of condition dropout.

    Args:
        probability: p above; text and image are each dropped with 2p in all (base model: 0.05).
        structure: probability that a sample goes without structure tokens (ours: 0.1).
        render: probability that a sample goes without renders.
    """

    probability: float = 0.05
    structure: float = 0.1
    render: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1 / 3:
            raise ConfigurationError(f"dropout probability lies in [0, 1/3] (3p <= 1), got {self.probability}")
        if not 0 <= self.structure <= 1:
            raise ConfigurationError(f"structure dropout lies in [0, 1], got {self.structure}")
        if not 0 <= self.render <= 1:
            raise ConfigurationError(f"render dropout lies in [0, 1], got {self.render}")


@dataclass(frozen=True)
class Dropped:
    """True where a sample loses the condition; each [B] bool. None keeps all renders."""

    text: Tensor
    image: Tensor
    structure: Tensor
    render: Tensor | None = None


def dropped_at(r: Tensor, structure_r: Tensor, config: DropoutConfig) -> Dropped:
    """The rule itself, for two uniform numbers in [0, 1) per sample: r [B] for text and image, structure_r [B]."""
    p = config.probability
    return Dropped(text=r < 2 * p, image=(r >= p) & (r < 3 * p), structure=structure_r < config.structure)


def draw_dropout(
    batch: int,
    generator: torch.Generator,
    config: DropoutConfig | None = None,
    device: torch.device | str | None = None,
) -> Dropped:
    """Draw the masks of a batch on the generator's device: r, the structure's numbers, the renders' if any drop."""
    config = config or DropoutConfig()
    r = torch.rand(batch, generator=generator, device=generator.device)
    structure_r = torch.rand(batch, generator=generator, device=generator.device)
    dropped = dropped_at(r, structure_r, config)
    target = generator.device if device is None else device
    render = None
    if config.render:  # else no number is drawn: the draws after it are those of a model without renders
        render = (torch.rand(batch, generator=generator, device=generator.device) < config.render).to(target)
    return Dropped(dropped.text.to(target), dropped.image.to(target), dropped.structure.to(target), render)


def drop_images(images: Tensor, dropped: Tensor) -> Tensor:
    """Mid grey instead of the images [B, 3, H, W] in [0, 1] where ``dropped`` [B] is True."""
    return torch.where(dropped.to(images.device).view(-1, 1, 1, 1), torch.full_like(images, NULL_IMAGE), images)


def drop_tokens(tokens: Tensor, null: Tensor, dropped: Tensor) -> Tensor:
    """``null`` [B or 1, M, D] instead of the tokens [B, M, D] where ``dropped`` [B] is True."""
    return torch.where(dropped.to(tokens.device).view(-1, *(1,) * (tokens.ndim - 1)), null.to(tokens.dtype), tokens)
