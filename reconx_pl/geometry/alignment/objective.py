"""The objective of DUSt3R's global alignment (section 3.4, eq. 5), with distances that are not squared.

    mean over pixels of first views of  w |P_i - s_e (R_e X_ii + t_e)|  +  the same mean over second views

The distance is the same in every camera's frame. Each view is therefore compared in its own, where its points are depth
times ray: the pose goes into the small matrices of the pairs, and the pixels see one matrix product.

With ``Gauge.ruler`` (ours) every distance is divided by s_e: it then counts in the unit of the pair that says it, and
does not shrink with the scene. See ``AlignmentOptions.distances``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reconx_pl.geometry.alignment.observations import ViewGroup
from reconx_pl.geometry.alignment.state import AlignmentState, Gauge, Geometry, geometry_of


def objective(state: AlignmentState, gauge: Gauge, groups: list[ViewGroup]) -> Tensor:
    """The loss, a scalar in world units, differentiable in the raw parameters of ``state``."""
    geometry = geometry_of(state, gauge)
    terms = []
    for group, log_depth in zip(groups, state.log_depth, strict=True):
        matrix, offset = in_view(geometry, group)
        ruler = None if geometry.ruler is None else geometry.ruler[group.edges]
        terms.append(_Distances.apply(matrix, offset, geometry.focal[group.views], log_depth, ruler, group))
    return torch.stack(terms).sum()


@torch.no_grad()
def edge_distances(state: AlignmentState, gauge: Gauge, groups: list[ViewGroup]) -> Tensor:
    """How badly each edge fits, the weighted mean distance over both of its views: [E], world units."""
    geometry = geometry_of(state, gauge)
    summed = geometry.pair_offset.new_zeros(len(geometry.pair_offset), 2, dtype=torch.float64)
    for group, log_depth in zip(groups, state.log_depth, strict=True):
        _, distance, _ = _residuals(*in_view(geometry, group), geometry.focal[group.views], log_depth, group)
        both = torch.stack([(group.weights * distance).sum(-1), group.weights.sum(-1)], -1).double()
        summed.index_add_(0, group.edges.flatten(), both.flatten(0, 1))
    return summed[:, 0] / summed[:, 1]


def in_view(geometry: Geometry, group: ViewGroup) -> tuple[Tensor, Tensor]:
    """Per view and point map of the group: what takes the points to the view's camera, [Vg, D, 3, 3] and [Vg, D, 3]."""
    to_camera = geometry.rotation[group.views].transpose(1, 2)[:, None]  # [Vg, 1, 3, 3]
    offset = geometry.pair_offset[group.edges] - geometry.translation[group.views][:, None]
    return to_camera @ geometry.pair_matrix[group.edges], (to_camera @ offset[..., None]).squeeze(-1)


def camera_points(focal: Tensor, log_depth: Tensor, pixels: Tensor) -> Tensor:
    """Depth times ray: focal [Vg], log depth [Vg, N], pixels [Vg, 2, N] to points [Vg, 3, N] in the cameras' frames."""
    depth = log_depth.exp()[:, None]
    return torch.cat([pixels * (depth / focal[:, None, None]), depth], 1)


def _residuals(
    matrix: Tensor, offset: Tensor, focal: Tensor, log_depth: Tensor, group: ViewGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Pair points less view points [Vg, D, 3, N] and their length [Vg, D, N], in the workspace; view points."""
    difference, distance = group.buffers()
    torch.baddbmm(
        offset.flatten(0, 1)[..., None],
        matrix.flatten(0, 1),
        group.points.flatten(0, 1),
        out=difference.flatten(0, 1),
    )
    points = camera_points(focal, log_depth, group.pixels)
    difference -= points[:, None]
    x, y, z = difference.unbind(2)
    torch.mul(x, x, out=distance)  # a reduction over an axis of three takes a hundred times as long on a CPU
    distance.addcmul_(y, y).addcmul_(z, z).sqrt_()
    return difference, distance, points


_TINY = 1e-20  # world units; keeps the division finite


class _Distances(torch.autograd.Function):
    """Weighted sum of the distances of one group, with its gradient made in the same pass over the pixels."""

    @staticmethod
    def forward(
        ctx: Any,
        matrix: Tensor,
        offset: Tensor,
        focal: Tensor,
        log_depth: Tensor,
        ruler: Tensor | None,
        group: ViewGroup,
    ) -> Tensor:
        difference, distance, points = _residuals(matrix, offset, focal, log_depth, group)
        sums = (group.weights[:, :, None] @ distance[..., None])[..., 0, 0]  # [Vg, D]
        # d|r|/dr = r/|r|, and 0 where r = 0
        pull = torch.div(group.weights, distance.clamp_(min=_TINY), out=distance)
        if ruler is not None:
            pull *= ruler[..., None]
        difference *= pull[:, :, None]  # now the gradient in the moved pair points
        to_points = difference.sum(1).neg_()  # [Vg, 3, N]
        along = to_points * points
        ctx.save_for_backward(
            torch.bmm(difference.flatten(0, 1), group.points.flatten(0, 1).transpose(1, 2)).view_as(matrix),
            difference.sum(-1),
            -along[:, :2].sum((1, 2)) / focal,
            along.sum(1),
            sums,
        )
        ctx.ruled = ruler is not None
        return sums.sum() if ruler is None else (sums * ruler).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *gradients, sums = (gradient * saved for saved in ctx.saved_tensors)
        return *gradients, sums if ctx.ruled else None, None
