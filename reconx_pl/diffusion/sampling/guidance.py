"""Multi-condition classifier-free guidance (ReconX, V-A) and guidance rescale (Lin et al. 2023, section 3.4)::

    e = e_0 + s_view (e_view - e_0) + s_struct (e_full - e_view)
      = (1 - s_view) e_0 + (s_view - s_struct) e_view + s_struct e_full
    e <- phi e std(e_full) / std(e) + (1 - phi) e

e_0 has neither text nor image nor structure, e_view text and image, e_full all three; the concatenated latents are
in all of them. A branch whose factor is 0 is not evaluated. Without structure tokens e_full is e_view, which leaves
the base model's guidance. Conditions stay the same from step to step: they are bound to the model once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from reconx_pl.diffusion.conditioning.conditions import Conditions
from reconx_pl.errors import ConfigurationError

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x [B, ...], t [B]) -> prediction [B, ...]
Bind = Callable[[Conditions], Denoise]  # a model with its conditions fixed, as ReconXDiffusion.bind gives it


@dataclass(frozen=True)
class ConditionSets:
    """The three condition sets of one batch."""

    null: Conditions  # null text, null image, no structure
    view: Conditions  # text and image, no structure
    full: Conditions  # everything

    @classmethod
    def from_full(cls, full: Conditions, null_text: Tensor, null_image: Tensor) -> ConditionSets:
        """The three sets from the full one.

        Args:
            full: conditions with or without structure tokens.
            null_text: [B or 1, 77, D] tokens of the empty caption.
            null_image: image tokens of a mid-grey image, of the shape of ``full.image_tokens`` or with batch size 1.
        """
        view = full.without_structure()
        null = replace(
            view,
            text_tokens=null_text.to(view.text_tokens).expand_as(view.text_tokens),
            image_tokens=null_image.to(view.image_tokens).expand_as(view.image_tokens),
        )
        return cls(null=null, view=view, full=full)


@dataclass(frozen=True)
class Guidance:
    """Combines the predictions of a model under three condition sets.

    Args:
        guidance_scale: s_view. 1 is no guidance; the base model uses 7.5.
        structure_guidance_scale: s_struct. The paper does not say; equal to ``guidance_scale`` (our default) it is
            plain guidance of everything against nothing and takes two passes instead of three.
        guidance_rescale: phi in [0, 1], 0 switches the rescale off; the base model uses 0.7.
        batched: run the branches as one batch of up to 3B (fast) or one after the other (a third of the memory).

    Raises:
        ConfigurationError: a negative scale, or a rescale outside [0, 1].
    """

    guidance_scale: float = 7.5
    structure_guidance_scale: float = 7.5
    guidance_rescale: float = 0.7
    batched: bool = True

    def __post_init__(self) -> None:
        if self.guidance_scale < 0 or self.structure_guidance_scale < 0:
            raise ConfigurationError(
                f"guidance scales are 0 or more, got guidance_scale {self.guidance_scale} and structure_guidance_scale "
                f"{self.structure_guidance_scale}"
            )
        if not 0 <= self.guidance_rescale <= 1:
            raise ConfigurationError(f"guidance rescale lies in [0, 1], got {self.guidance_rescale}")

    def branches(self, structured: bool = True) -> tuple[str, ...]:
        """Which of "null", "view", "full" have to be evaluated, in this order.

        Args:
            structured: whether the full set has structure tokens; if not, "full" stands for the view set too.
        """
        factors = self._factors(structured)
        # the rescale compares with the full prediction; alone it would be a comparison with itself
        alone = factors["full"] == 1 and factors["null"] == factors["view"] == 0
        needs_full = self.guidance_rescale > 0 and not alone
        return tuple(name for name, factor in factors.items() if factor != 0 or (name == "full" and needs_full))

    def _factors(self, structured: bool) -> dict[str, float]:
        structure = self.structure_guidance_scale if structured else self.guidance_scale
        return {"null": 1 - self.guidance_scale, "view": self.guidance_scale - structure, "full": structure}

    def combine(self, predictions: dict[str, Tensor], structured: bool = True) -> Tensor:
        """The guided prediction from those of ``branches``, each [B, ...]."""
        factors = self._factors(structured)
        used = [factors[name] * value for name, value in predictions.items() if factors[name] != 0]
        guided = sum(used[1:], start=used[0])
        if self.guidance_rescale > 0 and len(predictions) > 1:
            guided = rescale_guidance(guided, predictions["full"], self.guidance_rescale)
        return guided

    def denoiser(self, bind: Bind, sets: ConditionSets) -> Denoise:
        """The guided model as the sampler wants it: it evaluates the branches that are needed and combines them.

        Args:
            bind: conditions -> (x [B, C, T, h, w], t [B] int64) -> prediction [B, C, T, h, w].
            sets: conditions of the same B samples.
        """
        structured = sets.full.structure_tokens is not None
        names = self.branches(structured)
        chosen = [getattr(sets, name) for name in names]
        if not self.batched or len(names) == 1:
            models = [bind(conditions) for conditions in chosen]

            def in_turn(x: Tensor, t: Tensor) -> Tensor:
                outputs = [model(x, t) for model in models]
                return self.combine(dict(zip(names, outputs, strict=True)), structured)

            return in_turn
        stacked = bind(Conditions.cat(chosen))

        def at_once(x: Tensor, t: Tensor) -> Tensor:
            output = stacked(x.repeat(len(names), *(1,) * (x.ndim - 1)), t.repeat(len(names)))
            return self.combine(dict(zip(names, output.chunk(len(names)), strict=True)), structured)

        return at_once


def rescale_guidance(guided: Tensor, conditional: Tensor, strength: float) -> Tensor:
    """Bring the spread of each guided sample back towards that of the conditional prediction.

    Args:
        guided: [B, ...].
        conditional: [B, ...] the fully conditioned prediction.
        strength: phi; 1 matches the standard deviation (over all axes but the first, unbiased) fully.
    """
    # an untrained model predicts exactly zero (its last layer is zero): stay at zero then, not NaN
    spread = conditional.flatten(1).std(dim=1) / guided.flatten(1).std(dim=1).clamp_min(1e-12)
    factor = strength * spread + (1 - strength)  # [B]
    return guided * factor.reshape(-1, *(1,) * (guided.ndim - 1))
