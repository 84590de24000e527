"""Where the parameters of an alignment are going, under the trembling of the optimiser's single steps.

The loss is flat long before the cameras stand still: turns, focal lengths and centres slide along a valley in which
they nearly make up for each other. Means over windows of steps show that, where single steps do not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from reconx_pl.geometry.alignment.observations import ViewGroup, first_views
from reconx_pl.geometry.alignment.state import AlignmentState, Gauge, geometry_of, matrices

MEANS = 4  # of as many windows: the last two are compared with the two before


class Drift:
    """Movement of the parameters of ``state``, from the means of the last windows.

    Args:
        state: what is minimised in.
        gauge: what is held.
        groups: see ``grouped``.
        window: steps of a mean.
    """

    def __init__(self, state: AlignmentState, gauge: Gauge, groups: Sequence[ViewGroup], window: int) -> None:
        self.state, self.gauge, self.window = state, gauge, window
        self.first = first_views(groups)
        self.parameters = state.parameters()
        self.sums = [torch.zeros_like(value) for value in self.parameters]
        self.means: deque[list[Tensor]] = deque(maxlen=MEANS)
        self.steps = 0

    @torch.no_grad()
    def add(self) -> None:
        """Count the present values, after a step."""
        torch._foreach_add_(self.sums, self.parameters)
        self.steps += 1
        if self.steps % self.window == 0:
            self.means.append([one / self.window for one in self.sums])
            torch._foreach_zero_(self.sums)

    @property
    def known(self) -> bool:
        """Whether enough windows have been seen."""
        return len(self.means) == MEANS

    @torch.no_grad()
    def way(self, steps: float) -> list[Tensor]:
        """How far each parameter moves in so many steps."""
        a_step = steps / (MEANS * self.window)
        return [(d + c - b - a) * a_step for a, b, c, d in zip(*self.means, strict=True)]

    @torch.no_grad()
    def move(self, steps: float) -> None:
        """Move the parameters on by so many steps."""
        torch._foreach_add_(self.parameters, self.way(steps))

    @torch.no_grad()
    def of_cameras(self, steps: float) -> float:
        """How far the cameras move in so many steps, seen from the first, the farthest of them.

        The largest of: turns in radians, centres in units of the median depth, logarithms of focal lengths.
        """
        now = self.means[-1]
        turns, centers, focals = [], [], []
        for values in (now, [value + way for value, way in zip(now, self.way(steps), strict=True)]):
            pair_turn, pair_shift, pair_scale, turn, place, focal, *depths = values
            state = AlignmentState(pair_turn, pair_shift, pair_scale, turn, place, focal, depths)
            geometry = geometry_of(state, self.gauge)
            to_first = geometry.rotation[0].T
            depth = torch.cat([one.flatten() for one in state.log_depth]).median().exp()
            turns.append(to_first @ geometry.rotation)
            centers.append((geometry.translation - geometry.translation[0]) @ to_first.T / depth)
            focals.append(geometry.focal.log())
        shift = (centers[1] - centers[0]).norm(dim=1)
        return float(torch.stack([_angles(*turns), shift, (focals[1] - focals[0]).abs()]).max())

    @torch.no_grad()
    def disagreement(self) -> float:
        """Radians between the camera of a view and what a pair that it is first in says of it, the median.

        The measure of how well the pairs know the cameras at all.
        """
        pairs, views = (torch.stack([mean[part] for mean in self.means]).mean(0) for part in (0, 3))
        state = replace(self.state, view_quaternion=views)
        cameras = geometry_of(state, self.gauge).rotation[self.first]
        return float(_angles(matrices(pairs), cameras).median())


def _angles(one: Tensor, other: Tensor) -> Tensor:
    """Between rotations [*, 3, 3], in radians."""
    return 2 * ((one - other).norm(dim=(-2, -1)) / 8**0.5).clamp(max=1).asin()
