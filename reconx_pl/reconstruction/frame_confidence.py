"""The confidence of all frames of a fit where no global alignment gives one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError
from reconx_pl.geometry.estimators.base import agreement, reprojection_confidence
from reconx_pl.geometry.rendering.surface import render_surface
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.reconstruction.input_views import InputViews
from reconx_pl.types import Cameras

AT_ONCE = 32  # frames whose agreement with the cloud is found together, against memory


def frame_confidence(
    frames: Tensor, cameras: Cameras, inputs: InputViews, input_places: Sequence[int], *, surfaces: bool = False
) -> Tensor:
    """[S, H, W] on DUSt3R's scale: of the input views their own, of other frames by agreement with what these saw.

    Args:
        frames: [S, 3, H, W] in [0, 1].
        cameras: S views.
        inputs: the input views; without a confidence of their own they are judged as the others.
        input_places: places of the input views.
        surfaces: agreement with the depth of the input views as surfaces, sky included; else with their cloud.

    Raises:
        BadSceneError: surfaces of input views without depth.
    """
    if surfaces and inputs.depth is None:
        raise BadSceneError(f"{inputs.key}: confidence 'render' needs depth of the input views; take 'reprojection'")

    def judged(part: list[int]) -> Tensor:
        if inputs.depth is None or not surfaces:
            assert inputs.cloud is not None
            return reprojection_confidence(frames[part], cameras[part], inputs.cloud)
        seen = render_surface(
            DepthViews(inputs.images, inputs.depth, inputs.cameras, inputs.confidence), cameras[part]
        ).to(frames.device)
        return agreement(frames[part], seen.color, seen.coverage > 0.5)

    confidence = torch.cat([judged(part.tolist()) for part in torch.arange(len(frames)).split(AT_ONCE)])
    if inputs.confidence is not None:
        confidence[list(input_places)] = inputs.confidence.detach().clone().to(confidence)
    return confidence
