"""An exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from reconx_pl.errors import ConfigurationError


@dataclass(frozen=True)
class AverageConfig:
    """The average that validation, sampling and exported weights use. The paper is silent; the base model has none.

    Args:
        decay: share of the old average that an optimizer step keeps.
        warmup: keep min(decay, (1 + n) / (10 + n)) at step n, so that a short run does not average its own beginning.
    """

    decay: float = 0.9999
    warmup: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigurationError(f"ema.decay lies in [0, 1), got {self.decay}")

    def decay_at(self, step: int) -> float:
        """What optimizer step number ``step`` (the first is 1) keeps of the old average."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay


class WeightAverage(nn.Module):
    """The average of every parameter of a network that asks for a gradient, under the same name.

    The averages are frozen parameters, so that a strategy saves, loads and shards them like any other: where the
    network is sharded already, they are DTensors of the same placement.

    Args:
        network: already sharded, if it is to be; the average starts from its weights.
        config: decay.
    """

    def __init__(self, network: nn.Module, config: AverageConfig) -> None:
        super().__init__()
        self.config = config
        self._swapped = False
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                *path, last = name.split(".")
                place: nn.Module = self
                for part in path:
                    if part not in place._modules:
                        place.add_module(part, nn.Module())
                    place = place.get_submodule(part)
                place.register_parameter(last, nn.Parameter(parameter.detach().clone(), requires_grad=False))

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move the average towards the weights after optimizer step number ``step`` (the first is 1)."""
        averages, weights = self._pairs(network)
        if averages:  # a rank may hold no part of anything
            torch._foreach_lerp_(averages, weights, 1 - self.config.decay_at(step))

    @contextmanager
    def swapped(self, network: nn.Module) -> Iterator[None]:
        """The network with averaged weights; its own come back, to the last bit, also after an error.

        A sharded network must be resharded before and after.
        """
        if self._swapped:
            yield
            return
        self._swap(network)
        self._swapped = True
        try:
            yield
        finally:
            self._swap(network)
            self._swapped = False

    @torch.no_grad()
    def _swap(self, network: nn.Module) -> None:
        for average, weight in zip(*self._pairs(network), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def _pairs(self, network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """This rank's parts of the averages and of the weights that they belong to."""
        own = dict(network.named_parameters())
        both = [(_local(average), _local(own[name])) for name, average in self.named_parameters()]
        both = [(average, weight) for average, weight in both if average.numel()]
        return [average for average, _ in both], [weight for _, weight in both]


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter.detach()
