"""The confidence of all frames of a fit where no global alignment gives one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reconx_pl.geometry.estimators.base import reprojection_confidence
from reconx_pl.types import Cameras, PointCloud

AT_ONCE = 32  # frames whose agreement with the cloud is found together, against memory


def frame_confidence(
    frames: Tensor, cameras: Cameras, cloud: PointCloud, input_places: Sequence[int], input_confidence: Tensor | None
) -> Tensor:
    """[S, H, W] on DUSt3R's scale: of the input views their own, of other frames by agreement with their cloud.

    Args:
        frames: [S, 3, H, W] in [0, 1].
        cameras: S views.
        cloud: of the input views.
        input_places: places of the input views.
        input_confidence: [C, H, W] of these; None judges them as the others.
    """
    places = torch.arange(len(frames)).split(AT_ONCE)
    confidence = torch.cat([reprojection_confidence(frames[part], cameras[part.tolist()], cloud) for part in places])
    if input_confidence is not None:
        confidence[list(input_places)] = input_confidence.detach().clone().to(confidence)
    return confidence
