"""Everything the model sees beside the noisy latent, as one value that can be stacked, moved and selected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from reconx_pl.errors import ConfigurationError


@dataclass(frozen=True)
class Conditions:
    """The conditions of a batch of clips. All tensors start with the batch axis B.

    Args:
        text_tokens: [B, 77, D].
        image_tokens: [B, T, Q, D], Q tokens for each frame, or [B, M, D] shared by all frames.
        fps: [B] frames a second.
        concat_latents: [B, C, T, h, w] latents of the condition frames: of the photographs, and between them of the
            renders, or zero; those of the photographs are never dropped.
        more_latents: [B, E, T, h, w] further input channels of renders, or None.
        base_latents: [B, C, T, h, w] what the prediction is added to (``RenderConfig.residual``), or None.
        structure_tokens: [B, S, D] or [B, T, S, D] from the structure encoder, or None for no structure condition.
        structure_keep: [B] bool, False where a sample goes without structure; None means all keep it.
    """

    text_tokens: Tensor
    image_tokens: Tensor
    fps: Tensor
    concat_latents: Tensor
    structure_tokens: Tensor | None = None
    structure_keep: Tensor | None = None
    more_latents: Tensor | None = None
    base_latents: Tensor | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and value.shape[:1] != self.text_tokens.shape[:1]:
                raise ConfigurationError(
                    f"{item.name} has shape {tuple(value.shape)}, the text tokens {tuple(self.text_tokens.shape)}: "
                    "all conditions need the same batch size"
                )
        if self.structure_keep is not None and self.structure_keep.dtype != torch.bool:
            raise ConfigurationError(f"structure_keep is boolean, got {self.structure_keep.dtype}")

    def __len__(self) -> int:
        return self.text_tokens.shape[0]

    def _map(self, function: Callable[[Tensor], Tensor]) -> Conditions:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: function(value) for name, value in values.items() if value is not None})

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Conditions:
        """Move all; cast tokens and latents, but neither ``fps`` (25.5 is not a bfloat16) nor the mask."""
        moved = self._map(lambda value: value.to(device))
        if dtype is None:
            return moved
        names = ("text_tokens", "image_tokens", "concat_latents", "structure_tokens", "more_latents", "base_latents")
        values = {name: getattr(moved, name) for name in names}
        return replace(moved, **{name: value.to(dtype) for name, value in values.items() if value is not None})

    def select(self, mask: Tensor) -> Conditions:
        """The samples where ``mask`` [B] (bool) is True, or those with the given indices [M] (int64)."""
        return self._map(lambda value: value[mask.to(value.device)])

    def repeat(self, times: int) -> Conditions:
        """The whole batch ``times`` times, one copy after the other: [a, b] becomes [a, b, a, b]."""
        return self._map(lambda value: value.repeat(times, *(1,) * (value.ndim - 1)))

    def without_structure(self) -> Conditions:
        """The same conditions with the structure switched off."""
        return replace(self, structure_tokens=None, structure_keep=None)

    @staticmethod
    def cat(parts: Sequence[Conditions]) -> Conditions:
        """Stack along the batch axis.

        Parts without structure tokens may stand beside parts with them: they get zeros and ``structure_keep`` False.

        Raises:
            ConfigurationError: no parts, or shapes that do not go together.
        """
        if not parts:
            raise ConfigurationError("there are no conditions to stack")
        tokens, keep = _stack_structure(parts)
        try:
            return Conditions(
                text_tokens=torch.cat([part.text_tokens for part in parts]),
                image_tokens=torch.cat([part.image_tokens for part in parts]),
                fps=torch.cat([part.fps for part in parts]),
                concat_latents=torch.cat([part.concat_latents for part in parts]),
                structure_tokens=tokens,
                structure_keep=keep,
                more_latents=_stack_optional([part.more_latents for part in parts]),
                base_latents=_stack_optional([part.base_latents for part in parts]),
            )
        except RuntimeError as error:
            raise ConfigurationError(f"conditions of different shapes cannot be stacked: {error}") from error


def _stack_optional(parts: Sequence[Tensor | None]) -> Tensor | None:
    """All of them, or None where none has it."""
    like = next((part for part in parts if part is not None), None)
    if like is None:
        return None
    if any(part is None for part in parts):
        raise ConfigurationError("conditions with and without latents of renders cannot be stacked")
    return torch.cat([part for part in parts if part is not None])


def _stack_structure(parts: Sequence[Conditions]) -> tuple[Tensor | None, Tensor | None]:
    like = next((part.structure_tokens for part in parts if part.structure_tokens is not None), None)
    if like is None:
        return None, None
    tokens, keep = [], []
    for part in parts:
        own = part.structure_tokens
        tokens.append(like.new_zeros(len(part), *like.shape[1:]) if own is None else own)
        if own is not None and part.structure_keep is not None:
            keep.append(part.structure_keep)
        else:
            keep.append(torch.full((len(part),), own is not None, dtype=torch.bool, device=like.device))
    return torch.cat(tokens), torch.cat(keep)
