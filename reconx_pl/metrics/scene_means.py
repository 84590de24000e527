"""Means of scores over scenes, on one rank or many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from reconx_pl.errors import ConfigurationError
from reconx_pl.metrics.image import METRICS


class SceneMetrics(Metric):
    """Means of scores over scenes, each scene counted once however many targets it has; gathers over ranks.

    Call ``update`` once a scene with the scores of its targets. States are sums, so that the result does not depend
    on how the scenes are spread over ranks (given the order of addition; float64).

    Args:
        names: metrics to keep; a metric that some scene lacks is not reported, because its mean would be of other
            scenes.
        **kwargs: of ``torchmetrics.Metric``.
    """

    full_state_update = False
    scenes: Tensor
    counts: Tensor
    totals: Tensor

    def __init__(self, names: Sequence[str] = METRICS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        size = len(self.names)
        self.add_state("scenes", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")  # scenes per metric
        self.add_state("totals", torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def set_dtype(self, dst_type: torch.dtype | str) -> SceneMetrics:
        """Keep float64 states: a trainer in half precision must not round the sums."""
        return self

    def update(self, scores: Mapping[str, Tensor | Sequence[float]]) -> None:
        """Add one scene.

        Args:
            scores: metric name to the scores [targets] of this scene.
        """
        self.scenes += 1
        for index, name in enumerate(self.names):
            if name in scores:
                values = torch.as_tensor(scores[name], dtype=torch.float64)
                if values.numel() == 0:
                    raise ConfigurationError(f"a scene without targets has no {name}")
                self.totals[index] += values.mean().to(self.totals.device)
                self.counts[index] += 1

    def compute(self) -> dict[str, Tensor]:
        """Metric name to its mean over scenes; empty before the first scene."""
        return {
            name: self.totals[index] / self.counts[index]
            for index, name in enumerate(self.names)
            if self.counts[index] > 0 and self.counts[index] == self.scenes
        }
