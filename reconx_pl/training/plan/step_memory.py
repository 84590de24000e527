"""Memory of a training step on a GPU, estimated on a meta-device model: not a measurement.

Left out are what the allocator wastes, the workspaces of libraries, gradients of activations on their way back, and
what frozen encoders hold while they run.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from reconx_pl.diffusion.conditioning.frozen import FrozenModule
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.transformers import Block
from reconx_pl.training.plan.meta_model import AnyValue, blank_draws, hollow, remember_constants
from reconx_pl.training.sharding import sharded_units
from reconx_pl.training.stages import frozen_names
from reconx_pl.types import ClipBatch

FLOAT32, BFLOAT16 = 4, 2  # bytes


@dataclass(frozen=True)
class Kept:
    """Bytes that the forward pass leaves for the backward pass.

    Attributes:
        activations: what is saved between the two.
        copies: weights in the type of autocast, of which it keeps one copy.
        block: what a block that is recomputed in the backward pass holds meanwhile, the largest of them.
    """

    activations: int
    copies: int
    block: int = 0


@dataclass(frozen=True)
class Held:
    """Bytes that a rank holds from the first step to the last.

    Attributes:
        weights: trained and frozen ones of everything but the frozen encoders, float32.
        gradients: of the trained ones, float32.
        moments: two for each trained weight (AdamW), float32.
        average: of the trained weights, if one is kept, float32.
        frozen_encoders: pretrained frozen parts, whole on every rank.
        exchange: DDP's copy of the gradients; of sharded training the weights and gradients of two units that are
            together for the time of their work.
    """

    weights: int
    gradients: int
    moments: int
    average: int
    frozen_encoders: int
    exchange: int

    @property
    def total(self) -> int:
        return sum(getattr(self, item.name) for item in fields(self))


def held(
    network: ReconXDiffusion,
    *,
    average: bool,
    half_encoders: bool,
    ranks: int,
    sharded: bool,
    mixed: bool,
    buckets: bool = True,
) -> Held:
    """What a rank holds of a network whose stage is applied.

    Args:
        network: on any device, meta included.
        average: an exponential moving average is kept.
        half_encoders: frozen CLIP encoders are in bfloat16.
        ranks: GPUs.
        sharded: weights, gradients, moments and average are divided among them.
        mixed: sharded weights travel in bfloat16.
        buckets: where several ranks are not sharded, gradients are copied into buckets.
    """
    frozen_encoders = frozen_names(network)
    own = [(name, parameter) for name, parameter in network.named_parameters() if name not in frozen_encoders]
    trained = sum(parameter.numel() for _, parameter in own if parameter.requires_grad)
    parts = ranks if sharded else 1

    def share(count: int) -> int:
        return -(-FLOAT32 * count // parts)

    exchange = 0
    if sharded and ranks > 1:
        units = [*sharded_units(network), network]
        exchange = 2 * max(_own_size(unit, units, frozen_encoders, network) for unit in units)
        exchange *= 2 * (BFLOAT16 if mixed else FLOAT32)  # weights and gradients
    elif ranks > 1 and buckets:
        exchange = FLOAT32 * trained
    small = {id(p) for part in (network.image_tokens, network.text_tokens) for p in _encoder_parameters(part)}
    return Held(
        weights=share(sum(parameter.numel() for _, parameter in own)),
        gradients=share(trained),
        moments=2 * share(trained),
        average=share(trained) if average else 0,
        frozen_encoders=sum(
            parameter.numel() * (BFLOAT16 if half_encoders and id(parameter) in small else FLOAT32)
            for name, parameter in network.named_parameters()
            if name in frozen_encoders
        ),
        exchange=exchange,
    )


def _own_size(unit: nn.Module, units: list[nn.Module], frozen_encoders: frozenset[str], network: nn.Module) -> int:
    """Parameters of a unit that are neither of a unit inside it nor of a frozen encoder."""
    whole = {parameter for name, parameter in network.named_parameters() if name in frozen_encoders}
    inner = {p for other in units if other is not unit and other is not network for p in other.parameters()}
    return sum(p.numel() for p in unit.parameters() if p not in whole and (unit is not network or p not in inner))


def _encoder_parameters(part: nn.Module) -> list[nn.Parameter]:
    return [p for module in part.modules() if isinstance(module, FrozenModule) for p in module.parameters()]


def kept_for_backward(
    meta_model: ReconXDiffusion, batch: ClipBatch, structure: bool, autocast: torch.dtype | None, kinds: frozenset[str]
) -> tuple[Kept, Kept]:
    """What a step keeps on a GPU where all activations are stored, and where some are recomputed.

    Args:
        meta_model: of ``build_meta_model``, or another network on the meta device that stores all activations.
        batch: of the shapes that matter.
        structure: whether the stage trains with the structure condition.
        autocast: type of mixed precision, None for none.
        kinds: of blocks, recomputed in the backward pass.
    """
    everything, blocks = _forward(meta_model, batch, structure, autocast)
    meta_model.unet.set_activation_checkpointing(tuple(kinds))
    try:
        outside, _ = _forward(meta_model, batch, structure, autocast)
    finally:
        meta_model.unet.set_activation_checkpointing(False)
    largest = max((size for block, size in blocks.items() if block.kind in kinds), default=0)
    return everything, replace(outside, block=largest)


def _forward(
    meta_model: ReconXDiffusion, batch: ClipBatch, structure: bool, autocast: torch.dtype | None
) -> tuple[Kept, Counter[Block]]:
    """What the forward pass keeps, and how much of that inside each block of the U-Net."""
    running: list[Block] = []  # the block that runs now
    saved: dict[int, tuple[torch.UntypedStorage, Block | None]] = {}  # each storage counts once
    meta_model = copy.deepcopy(meta_model)
    for block in meta_model.unet.blocks():
        block.register_forward_pre_hook(lambda module, _: running.append(module))
        block.register_forward_hook(lambda *_: running.clear())
    # fake tensors say that they are on a GPU, whether there is one or not: autocast and fused attention ask for that
    with FakeTensorMode(allow_non_fake_inputs=True):
        meta_model.to_empty(device="cuda")
        batch = hollow(batch, "cuda")
        weights = {_address(parameter): parameter.requires_grad for parameter in meta_model.parameters()}
        watch = _Copies(weights)

        def pack(tensor: Tensor) -> Tensor:
            if _address(tensor) not in weights:
                saved.setdefault(_address(tensor), (tensor.untyped_storage(), running[-1] if running else None))
            return tensor

        with _autocast(autocast), AnyValue(), _FusedAttention():
            remember_constants(meta_model, batch)
            with watch, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                meta_model.loss(batch, None, structure=structure, recorded=blank_draws(meta_model, batch))
    blocks: Counter[Block] = Counter()
    activations = 0
    for address, (storage, owner) in saved.items():
        if address not in watch.copies:
            activations += storage.nbytes()
        if owner is not None:
            blocks[owner] += storage.nbytes()
    copies = {a: s for a, (s, cached) in watch.copies.items() if cached or a in saved}
    return Kept(activations, sum(storage.nbytes() for storage in copies.values())), blocks


@contextmanager
def _autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast for GPUs on a machine that need not have one, where ``torch.autocast`` would do nothing."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", dtype is not None)
    torch.set_autocast_dtype("cuda", dtype or before[1])
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.clear_autocast_cache()


class _Copies(TorchDispatchMode):
    """Sees the copies that autocast makes of weights; it keeps those of trained weights for the next use."""

    def __init__(self, weights: dict[int, bool]) -> None:
        super().__init__()
        self.weights = weights  # by address, whether trained
        self.copies: dict[int, tuple[torch.UntypedStorage, bool]] = {}  # held, so that no address comes twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and _address(args[0]) in self.weights:
            self.copies[_address(result)] = result.untyped_storage(), self.weights[_address(args[0])]
        return result


class _FusedAttention(TorchFunctionMode):
    """Attention as GPUs do it, without the matrix of scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention and len(args) == 3 and not kwargs:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args)[0]
        return func(*args, **(kwargs or {}))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
