"""A short fit of the input views, rendered into other cameras: a source of guidance by rendering."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from reconx_pl.files.identity import hash_of
from reconx_pl.geometry.point_maps import point_map_from_depth
from reconx_pl.geometry.rendering.limits import FAR
from reconx_pl.geometry.rendering.sky import finite_depth
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.splatting.fit import FitConfig, fit
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.splatting.points import PointsConfig, points_from_maps
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.types import Cameras

SEEN = 0.02  # opacity below which a colour says nothing


def short_fit(steps: int) -> FitConfig:
    """The fit's settings: those of any fit, without LPIPS."""
    return FitConfig(steps=steps, loss=LossWeights(lpips=0.0))


def splats_fingerprint(steps: int, min_confidence: float = 1.0) -> str:
    """What the renders follow from, beside the clip: hex digits."""
    parts = [hash_of(short_fit(steps)), hash_of(PointsConfig()), str(FAR)]
    if min_confidence > 1:
        parts.append(f"{min_confidence:g}")
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def splat_renders(views: DepthViews, cameras: Cameras, steps: int, key: str) -> tuple[Tensor, Tensor]:
    """Colour [T, 3, H, W] in [0, 1] and coverage [T, H, W] of 3D Gaussians that were fitted to the views.

    The fit starts from every pixel with depth; what is known to be far lies far away (``finite_depth``).

    Args:
        views: V views with depth (``DepthViews.known``).
        cameras: T cameras to render into.
        steps: of the fit.
        key: of the clip; seeds the fit.

    Raises:
        BadSceneError: the views have no depth.
        BackendUnavailableError: no renderer can run on the device.
    """
    device = views.depth.device
    renderer = default_renderer(device)
    seed = int.from_bytes(hashlib.sha256(f"{key}:splats".encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.enable_grad():
        views = views.copied()
        maps = point_map_from_depth(finite_depth(views.depth), views.cameras, views.confidence)
        start = points_from_maps(maps, views.images, PointsConfig(views="all"), generator)
        result = fit(
            views.images,
            views.cameras,
            None,
            start,
            short_fit(steps),
            renderer=renderer,
            input_views=list(range(len(views.images))),
            generator=generator,
        )
        with torch.no_grad():
            seen = renderer.render(result.gaussians, cameras.copied())
    coverage = seen.alpha.clamp(0, 1)
    return (seen.color / coverage.clamp(min=SEEN)[:, None]).clamp(0, 1), coverage
