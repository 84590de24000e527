"""Group normalisation in float32, whatever the precision around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm

from reconx_pl.diffusion.config import NORM_GROUPS


class GroupNorm32(nn.GroupNorm):
    """GroupNorm whose statistics and arithmetic are float32; the result has the dtype of the input.

    Autocast on a GPU would return float32 and double the memory of what follows; on a processor, PyTorch's kernel for
    bfloat16 input and float32 weights takes four to six times as long as in float32.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(NORM_GROUPS, channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> [B, C, ...]."""
        if x.dtype not in (torch.bfloat16, torch.float16):
            return super().forward(x)
        return group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)
