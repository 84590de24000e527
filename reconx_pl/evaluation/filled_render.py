"""The floor below every video model: the input views' depth rendered into the frames, with the holes filled."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from reconx_pl.evaluation.baselines import nearest_view, warped_views
from reconx_pl.files.tensors import to_bytes
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.reconstruction.input_views import InputViews
from reconx_pl.reconstruction.scene_builder import FitInput, FrameSequence, SceneConfig, prepare_fit
from reconx_pl.types import Cameras, PointCloud

NO_DEPTH = "the input views have no depth"


def filled_frames(views: DepthViews, cameras: Cameras) -> tuple[Tensor, list[float]]:
    """The surfaces of the input views in M cameras, holes filled from around them (``warped_views``).

    Frames are kept as 8-bit values, as generated ones are.

    Args:
        views: the input views.
        cameras: M views.

    Returns:
        [M, 3, H, W] in [0, 1], and of every frame the share of its pixels that were holes.
    """
    copies = views.images[nearest_view(cameras, views.cameras)]
    frames, holes = warped_views(views, cameras, copies)
    return to_bytes(frames).float().div_(255), holes


def filled_fit(
    inputs: InputViews, sequence: FrameSequence, frames: Tensor, start: PointCloud, config: SceneConfig
) -> FitInput:
    """What the fit gets where filled renders stand in the place of generated frames.

    They know their cameras, so that nothing is aligned; confidence is by the rule of frames that are not aligned.

    Args:
        inputs: the input views.
        sequence: of the generated frames; its cameras are those of the renders.
        frames: [S, 3, H, W] filled renders at these cameras.
        start: the points that the fit of the generated frames starts from.
        config: how generated frames become a scene.
    """
    images = frames.clone()
    images[sequence.input_places] = inputs.images
    rule = config.confidence if config.confidence in ("uniform", "render") else "reprojection"
    points = replace(config.points, views="ends")
    known = replace(config, poses="dataset", confidence=rule, points=points)
    given = prepare_fit(inputs, replace(sequence, images=images), known)
    return replace(given, start=start)
