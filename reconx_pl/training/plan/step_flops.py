"""What a training step computes, counted on a meta-device model without values.

Counted are matrix products, convolutions and attention, 2 FLOPs for a multiply-add. A counter around a real step would
change its rounding, and a run that is resumed would no longer be the run that was never stopped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.training.plan.meta_model import AnyValue, blank_draws, hollow, remember_constants
from reconx_pl.types import ClipBatch


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one forward and backward pass over a batch on one device.

    Attributes:
        forward: of the forward pass, frozen encoders included, but for what they give once in a run (captions).
        total: with the backward pass to what the stage trains; nothing is counted twice for being recomputed.
        unet: of ``total``, the U-Net.
        recomputed: what activation checkpointing adds to ``total``.
    """

    forward: int
    total: int
    unet: int
    recomputed: int = 0


def count_step(
    meta_model: ReconXDiffusion, batch: ClipBatch, structure: bool, kinds: frozenset[str] = frozenset()
) -> StepFlops:
    """Count a training step.

    Args:
        meta_model: of ``build_meta_model``, or another network on the meta device that stores all activations.
        batch: of the shapes that matter, on any device.
        structure: whether the stage trains with the structure condition.
        kinds: of blocks, recomputed in the backward pass.

    Raises:
        ConfigurationError: what the step itself would raise about shapes that do not fit.
    """
    batch = hollow(batch, "meta")
    remember_constants(meta_model, batch)
    stored = _count(meta_model, batch, structure)
    if not kinds:
        return stored
    meta_model.unet.set_activation_checkpointing(tuple(kinds))
    try:
        return replace(stored, recomputed=_count(meta_model, batch, structure).total - stored.total)
    finally:
        meta_model.unet.set_activation_checkpointing(False)


def _count(meta_model: ReconXDiffusion, batch: ClipBatch, structure: bool) -> StepFlops:
    with AnyValue(), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        loss = meta_model.loss(batch, None, structure=structure, recorded=blank_draws(meta_model, batch)).loss
        forward = counter.get_total_flops()
        loss.backward()
    meta_model.zero_grad()
    unet = sum(counter.get_flop_counts()[f"{type(meta_model).__name__}.unet"].values())
    return StepFlops(forward, counter.get_total_flops(), unet)
