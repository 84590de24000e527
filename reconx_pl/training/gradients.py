"""The gradients of all parameters together, whole or sharded: their norm, and clipping by it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


def gradient_norm(optimizer: Optimizer) -> Tensor:
    """Norm of the gradients of all parameters together, over all shards; before clipping. [] float32."""
    return _norm(_gradients(optimizer))


def clip_gradients(optimizer: Optimizer, largest: float) -> None:
    """Scale the gradients of all parameters together, over all shards, so that their norm is at most ``largest``."""
    gradients = _gradients(optimizer)
    if not gradients:
        return  # of a step that is left out
    factor = (largest / (_norm(gradients) + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
    torch._foreach_mul_(_local_parts(gradients), factor)


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def _norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, whole or all sharded over one row of ranks, which call together: []."""
    norm = torch.nn.utils.get_total_norm(_local_parts(tensors))
    sharded = next((tensor for tensor in tensors if isinstance(tensor, DTensor)), None)
    if sharded is None:
        return norm
    squared = norm.square()
    dist.all_reduce(squared, group=sharded.device_mesh.get_group())
    return squared.sqrt()


def _local_parts(tensors: list[Tensor]) -> list[Tensor]:
    """This rank's parts, sharing memory; of every operation on a sharded tensor torch first seeks the sharding."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
