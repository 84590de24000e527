"""Which pixels of the views to score the input views have seen: every score is split into these and the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reconx_pl.geometry.rendering.cloud_view import view_cloud
from reconx_pl.geometry.rendering.surface import render_surface
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.reconstruction.input_views import InputViews
from reconx_pl.types import Cameras

HALVES = ("covered", "uncovered")
LEAST = 0.005  # share of the scored pixels: the score of a part with fewer says nothing, and is left out
BY_DEPTH = "the depth of the input views, rendered into the targets"
BY_CLOUD = "the points, drawn into the targets as discs: the input views have no depth"


@dataclass(frozen=True)
class Coverage:
    """What the input views have seen of M views.

    Attributes:
        covered: [M, H, W] bool.
        by: how it was found, for the record.
    """

    covered: Tensor
    by: str

    def shares(self, places: Sequence[int], masks: Tensor | None = None) -> list[float]:
        """Of the views at ``places`` the covered share of the pixels that are scored.

        Args:
            places: K of the M views.
            masks: [K, H, W] bool, the pixels that are scored; None scores all.
        """
        covered, scored = self._at(places, masks)
        return (_count(covered & scored) / _count(scored)).tolist()

    def parts(self, places: Sequence[int], masks: Tensor | None = None) -> dict[str, Tensor]:
        """Covered and uncovered pixels of the views at ``places``, by name: [K, H, W] bool.

        A part that has fewer than ``LEAST`` of all scored pixels is not there; where it has fewer of a single view, it
        is empty in that view.

        Args:
            places, masks: see ``shares``.
        """
        covered, scored = self._at(places, masks)
        found = {}
        for name, pixels in zip(HALVES, (covered, ~covered), strict=True):
            counted = _count(pixels & scored)  # [K]
            if float(counted.sum() / scored.sum()) >= LEAST:
                found[name] = pixels & (counted / _count(scored) >= LEAST)[:, None, None]
        return found

    def _at(self, places: Sequence[int], masks: Tensor | None) -> tuple[Tensor, Tensor]:
        covered = self.covered[list(places)]
        return covered, torch.ones_like(covered) if masks is None else masks.to(covered.device)


def _count(pixels: Tensor) -> Tensor:  # [K] of [K, H, W] bool
    return pixels.double().sum(dim=(1, 2))


def depth_views(inputs: InputViews) -> DepthViews | None:
    """The input views as what is rendered; None where no pixel of theirs has a depth."""
    if inputs.depth is None or not bool((inputs.depth > 0).any()):
        return None
    return DepthViews(inputs.images, inputs.depth, inputs.cameras, inputs.confidence)


def input_coverage(inputs: InputViews, cameras: Cameras) -> Coverage:
    """What the input views have seen of the views of ``cameras``: by their depth, or else by their cloud.

    Args:
        inputs: C views with depth or a cloud.
        cameras: M views, on the device of the inputs.
    """
    views = depth_views(inputs)
    if views is not None:
        return Coverage(render_surface(views, cameras).coverage > 0.5, BY_DEPTH)
    assert inputs.cloud is not None
    return Coverage(view_cloud(inputs.cloud, cameras).covered, BY_CLOUD)
