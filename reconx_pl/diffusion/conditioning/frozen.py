"""Pretrained parts that are never trained: who they are, and what they gave for constants before."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from reconx_pl.files.weights import fingerprint


class FrozenModule(nn.Module):
    """A pretrained part that is never trained: always in evaluation mode, no parameter asks for a gradient.

    It knows the hash of its weights, and remembers its outputs for inputs that come again and again. Loading weights
    forgets both, moving to another device or number type forgets the outputs.

    Where the parameters are sharded over ranks, remembering would let one rank skip a call in which the others wait
    for it: keep frozen parts whole.
    """

    remembered = 64  # outputs; of a 77 x 1024 text encoder 20 MB

    def __init__(self) -> None:
        super().__init__()
        self._outputs: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._fingerprints: dict[str, str] = {}
        self.register_load_state_dict_post_hook(_forget_all)

    def freeze(self) -> None:
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> FrozenModule:
        return super().train(False)

    def settings(self) -> object:
        """What decides about the output beside the weights."""
        return getattr(self, "config", None)

    def fingerprint(self) -> str:
        """:func:`fingerprint` of the weights and settings, computed once; the same on every device.

        It is the identity of the weights as they were loaded: a later change of their number type keeps it.
        """
        settings = self.settings()
        key = repr(settings)
        if key not in self._fingerprints:
            self._fingerprints[key] = fingerprint(self, settings)
        return self._fingerprints[key]

    @property
    def knows_fingerprint(self) -> bool:
        """Whether the hash has been computed already, which reads every weight."""
        return repr(self.settings()) in self._fingerprints

    def stand_in(self, fingerprint: str) -> None:
        """Answer for weights of this hash: a meta-device model without values has none to compute one from."""
        self._fingerprints[repr(self.settings())] = fingerprint

    def recall(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """``compute()``, or what it gave for this key before; an ordinary tensor without a graph.

        The last ``remembered`` outputs are kept, apart for each autocast type.

        Args:
            key: names the input.
            compute: a pure function of the input and this module.
        """
        device = next((parameter.device.type for parameter in self.parameters()), "cpu")
        autocasts = device != "meta" and torch.is_autocast_enabled(device)  # torch knows no autocast on meta
        autocast = torch.get_autocast_dtype(device) if autocasts else None
        key = (key, autocast)
        if key in self._outputs:
            self._outputs.move_to_end(key)
            return self._outputs[key]
        # Asked first by a view generator under inference_mode, the output must still be good for training afterwards:
        # an inference tensor cannot be saved for a backward pass.
        with torch.inference_mode(False), torch.no_grad():
            output = self._outputs[key] = compute()
        if len(self._outputs) > self.remembered:
            self._outputs.popitem(last=False)
        return output

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenModule:
        self._outputs.clear()
        return super()._apply(fn, recurse)


def _forget_all(module: Any, incompatible: object) -> None:  # not a lambda: modules are pickled by spawned ranks
    module._outputs.clear()
    module._fingerprints.clear()


def frozen_encoders(network: nn.Module) -> dict[str, frozenset[str]]:
    """Names of the tensors of each frozen encoder in ``network``; such a part has a weights file of its own."""
    parts = [(prefix, module) for prefix, module in network.named_modules() if isinstance(module, FrozenModule)]
    return {prefix: frozenset(f"{prefix}.{name}" for name in module.state_dict()) for prefix, module in parts}
