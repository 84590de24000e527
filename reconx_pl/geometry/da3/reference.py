"""Which view is the reference, the one whose camera the others are told apart from."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from reconx_pl.errors import ConfigurationError

ReferenceView = Literal["saddle_balanced", "first", "middle"]
_FEW = 3  # views: below, the first is the reference


def reference_view(tokens: Tensor, choice: ReferenceView = "saddle_balanced") -> Tensor:
    """The number of the reference view.

    Args:
        tokens: [B, V, C], token 0 of every view, two blocks before views see each other.
        choice: "first"; "middle", V // 2; or "saddle_balanced", the view that is nearest to the middle between the
            least and the most, by three numbers at once: mean cosine to the other views, norm, and variance over the
            channels of the unit vector. The original's "saddle_sim_range" is a tie by its design and not here.

    Returns:
        [B] int64; 0 of fewer than three views.

    Raises:
        ConfigurationError: another choice.
    """
    batch, views, _ = tokens.shape
    if choice not in get_args(ReferenceView):
        raise ConfigurationError(f"the reference view is one of {', '.join(get_args(ReferenceView))}, not {choice!r}")
    if views < _FEW or choice == "first":
        return torch.zeros(batch, dtype=torch.long, device=tokens.device)
    if choice == "middle":
        return torch.full((batch,), views // 2, device=tokens.device)
    with torch.autocast(tokens.device.type, enabled=False):
        norm = tokens.float().norm(dim=-1)  # [B, V]
        unit = tokens.float() / norm[..., None]
        cosine = unit @ unit.transpose(1, 2)  # [B, V, V]
    likeness = (cosine.sum(-1) - cosine.diagonal(dim1=1, dim2=2)) / (views - 1)
    measures = torch.stack([likeness, norm, unit.var(dim=-1)])  # [3, B, V]
    least, most = measures.amin(-1, keepdim=True), measures.amax(-1, keepdim=True)
    return ((measures - least) / (most - least + 1e-8) - 0.5).abs().sum(0).argmin(-1)
