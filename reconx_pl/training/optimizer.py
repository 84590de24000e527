"""The optimizer of a stage and its learning rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from reconx_pl.errors import ConfigurationError
from reconx_pl.training.stages import group_of


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (the paper's optimizer; everything but the learning rate is undisclosed).

    Args:
        lr: learning rate; the paper's are 1e-4 in stage 1 and 1e-5 in stage 2.
        weight_decay: decoupled weight decay (torch's default, which the base model uses).
        betas: moments of Adam.
        warmup_steps: linear warm-up.
        decay: "none" keeps the rate, "cosine" lets it fall to zero at ``trainer.max_steps``.
        structure_multiplier: the newly born structure branch (encoder, its keys, values and gates) learns at so many
            times the rate of the pretrained layers. The paper says nothing of it.
    """

    lr: float = 1e-5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    decay: str = "none"
    structure_multiplier: float = 1.0

    def __post_init__(self) -> None:
        if self.structure_multiplier <= 0:
            raise ConfigurationError(
                f"optimizer.structure_multiplier must be positive, got {self.structure_multiplier}; a stage without "
                "structure is model.stage"
            )
        if self.lr <= 0:
            raise ConfigurationError(f"optimizer.lr must be positive, got {self.lr}")
        if self.decay not in ("none", "cosine"):
            raise ConfigurationError(f"optimizer.decay is 'none' or 'cosine', got {self.decay!r}")

    def factor(self, step: int, total: int) -> float:
        """Multiple of ``lr`` at optimizer step ``step`` of ``total``."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.decay == "none":
            return 1.0
        done = (step - self.warmup_steps) / max(1, total - self.warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))

    def build(self, network: nn.Module) -> torch.optim.AdamW:
        """AdamW over the parameters of a network that are trained (``apply_stage``)."""
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        born = self.structure_multiplier != 1
        rest = [p for name, p in named if not (born and group_of(name) == "structure")]
        structure = [p for name, p in named if born and group_of(name) == "structure"]
        groups = [
            {"params": parameters, "lr": self.lr * multiplier}
            for parameters, multiplier in ((rest, 1.0), (structure, self.structure_multiplier))
            if parameters
        ]
        # one operation a group: of sharded parameters every operation costs torch a search for its sharding
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=True)
