"""A short fit of the input views, rendered into other cameras: a source of guidance by rendering."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from reconx_pl.diffusion.conditioning.render_latents import COVERED
from reconx_pl.files.identity import hash_of
from reconx_pl.geometry.point_maps import point_map_from_depth, with_unexplained
from reconx_pl.geometry.rendering.limits import FAR
from reconx_pl.geometry.rendering.sky import finite_depth
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.splatting.fit import FitConfig, fit
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.splatting.points import PointsConfig, points_from_maps
from reconx_pl.splatting.renderers.base import RenderOutput
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.types import Cameras, Gaussians, PointCloud, Tensors

REVISION = 2  # raise it when the same clip gives other renders
SEEN = 0.04  # share of half coverage below which a colour says nothing


def short_fit(steps: int) -> FitConfig:
    """The fit's settings: those of any fit, without LPIPS."""
    return FitConfig(steps=steps, loss=LossWeights(lpips=0.0))


def fit_steps(depth: Tensor, fewest: int, most: int) -> int:
    """Steps of a short fit by how much of the input views has depth.

    Where every pixel starts a Gaussian, few steps do, and more overfit two photographs. Where few do, Gaussians have to
    grow over the pixels between, which takes longer; and a step costs less.

    Args:
        depth: [V, H, W], 0 where there is none.
        fewest: steps where every pixel has depth.
        most: steps at most.
    """
    known = float((depth > 0).float().mean())
    return most if known * most <= fewest else min(most, round(fewest / known))


def splats_fingerprint(steps: int, min_confidence: float = 1.0) -> str:
    """What the renders follow from, beside the clip: hex digits."""
    parts = [f"revision {REVISION}", hash_of(short_fit(steps)), hash_of(PointsConfig()), str(FAR)]
    if min_confidence > 1:
        parts.append(f"{min_confidence:g}")
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


class ShortFits:
    """Short fits of input views. The last one is kept: all windows of a path look at the same views."""

    def __init__(self) -> None:
        self._kept: tuple[str, Gaussians] | None = None

    def of(self, views: DepthViews, cloud: PointCloud | None, steps: int) -> Gaussians:
        """3D Gaussians that were fitted to the views, as a scene of the views alone is; these inputs seed the fit.

        It starts from every pixel with depth, what is known to be far far away (``finite_depth``), and from the points
        of the cloud that tell what no depth does.

        Args:
            views: V views with depth (``DepthViews.known``).
            cloud: of the clip.
            steps: of the fit.

        Raises:
            BadSceneError: the views have no depth.
            BackendUnavailableError: no renderer can run on the device.
        """
        content = f"{_digest(views)} {'' if cloud is None else _digest(cloud)} {steps}"
        if self._kept is None or self._kept[0] != content:
            self._kept = content, _fitted(views, cloud, steps, content)
        return self._kept[1]


def seen_by(cameras: Cameras, gaussians: Gaussians) -> RenderOutput:
    """What T cameras see of Gaussians (``ShortFits``), against black, without gradients.

    Raises:
        BackendUnavailableError: no renderer can run on the device.
    """
    with torch.inference_mode(False), torch.no_grad():
        return default_renderer(gaussians.means.device).render(gaussians, cameras.copied())


def splat_renders(seen: RenderOutput) -> tuple[Tensor, Tensor]:
    """Colour [T, 3, H, W] in [0, 1] and coverage [T, H, W] of what was rendered (``seen_by``).

    Where a pixel is covered by half or more, its colour is the render's: the fit made it right against black. Below,
    it is brightened as if it were covered by half.
    """
    coverage = seen.alpha.clamp(0, 1)
    share = (coverage / COVERED).clamp(SEEN, 1)
    return (seen.color / share[:, None]).clamp(0, 1), coverage


def _fitted(views: DepthViews, cloud: PointCloud | None, steps: int, content: str) -> Gaussians:
    seed = int.from_bytes(hashlib.sha256(content.encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(False), torch.enable_grad():
        views = views.copied()
        device = views.depth.device
        maps = point_map_from_depth(finite_depth(views.depth), views.cameras, views.confidence)
        start = points_from_maps(maps, views.images, PointsConfig(views="all"), generator)
        if cloud is not None and len(cloud):
            start = with_unexplained(start, cloud.copied().to(device), maps, views.cameras)
        return fit(
            views.images,
            views.cameras,
            None,
            start,
            short_fit(steps),
            renderer=default_renderer(device),
            input_views=list(range(len(views.images))),
            generator=generator,
        ).gaussians


def _digest(part: Tensors) -> str:
    digest = hashlib.sha256()

    def add(tensor: Tensor) -> Tensor:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return tensor

    part.mapped(add)
    return digest.hexdigest()
