"""Renders of clips, the condition of guidance by rendering, from depth, from a cloud, and from a short fit."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from reconx_pl.data.shards.caches import GuidanceInputs, cache_name
from reconx_pl.diffusion.conditioning.render_config import RenderConfig
from reconx_pl.diffusion.confirmed import confirmed_pixels
from reconx_pl.diffusion.splat_renders import ShortFits, fit_steps, seen_by, splat_renders, splats_fingerprint
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import resize_cameras, unproject
from reconx_pl.geometry.rendering.cloud_view import view_cloud
from reconx_pl.geometry.rendering.points import render_points
from reconx_pl.geometry.rendering.rendered import Rendered
from reconx_pl.geometry.rendering.sky import finite_depth
from reconx_pl.geometry.rendering.surface import render_surface
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.types import Cameras, Clip, ClipBatch, ClipRenders, PointCloud

log = logging.getLogger(__name__)
NOISE_CELLS = 8  # along the longer side of a depth map: how smooth its noise is (ours)


def clip_renders(
    clip: Clip,
    config: RenderConfig,
    device: torch.device | str = "cpu",
    views: DepthViews | None = None,
    fits: ShortFits | None = None,
    confirmed: bool = False,
    fewest_steps: int | None = None,
) -> ClipRenders:
    """Renders of one clip, B = 1.

    Args:
        clip: the cameras of its frames are those that are rendered into.
        config: what is rendered.
        device: where.
        views: the input views with depth; None takes the first and the last frame of the clip.
        fits: those of clips before, which may look at the same views.
        confirmed: find the pixels that the input views confirm, too, of a configuration with splats.
        fewest_steps: of the short fit, see ``fit_steps``; None takes ``config.splat_steps``.

    Raises:
        BadSceneError: the clip lacks a source; names it.
    """
    if "depth" in config.sources or "splats" in config.sources:
        views = known_views(depth_views(clip) if views is None else views, config, clip.key).to(device)
    cameras = clip.cameras.to(device)
    splats = sure = None
    if "splats" in config.sources:
        assert views is not None
        steps = config.splat_steps if fewest_steps is None else fit_steps(views.depth, fewest_steps, config.splat_steps)
        gaussians = (fits or ShortFits()).of(views, clip.cloud, steps)
        seen = seen_by(cameras, gaussians)
        splats = splat_renders(seen)
        sure = confirmed_pixels(seen, cameras, views, gaussians)[None] if confirmed else None
    made = [_source(source, views, clip.cloud, cameras, config, clip.key, splats) for source in config.sources]
    return replace(_stacked([[render for renders in made for render in renders]]), confirmed=sure)


def depth_views(clip: Clip) -> DepthViews:
    """The first and the last frame of a clip with their depth, or with that of its cloud, drawn as discs.

    Raises:
        BadSceneError: it has neither.
    """
    ends = clip.cameras[[0, -1]]
    if clip.depth is not None:
        return DepthViews(clip.images[[0, -1]], clip.depth, ends, clip.confidence)
    if clip.cloud is None or len(clip.cloud) == 0:
        raise BadSceneError(
            f"clip {clip.key} has neither depth nor points to render, and the model is guided by renders: pack it with "
            "its geometry, or name an estimator that finds some"
        )
    log.info("clip %s has no depth maps: renders are made of its %d points, as discs", clip.key, len(clip.cloud))
    seen = view_cloud(clip.cloud, ends)
    depth = torch.where(seen.covered, seen.depth, 0.0)
    return DepthViews(clip.images[[0, -1]], depth, ends, seen.confidence.clamp(min=1.0))


def known_views(views: DepthViews, config: RenderConfig, key: str) -> DepthViews:
    """The views with their depth where it is confident enough.

    Raises:
        BadSceneError: it is so nowhere; names the clip.
    """
    try:
        return views.known(config.min_confidence)
    except BadSceneError as error:
        raise BadSceneError(f"clip {key}: {error}") from error


def batch_renders(batch: ClipBatch, config: RenderConfig, generator: torch.Generator | None = None) -> ClipRenders:
    """Renders of a batch of clips, on its device.

    Args:
        batch: with what ``GuidanceInputs`` names.
        config: what is rendered.
        generator: on the CPU; draws the disturbances of the depth in training. None disturbs nothing.

    Raises:
        BadSceneError: nothing of a clip is confident enough; names it.
        ConfigurationError: the batch lacks what a source needs.
    """
    needed = {"depth": "depth", "cloud": "colors", "splats": "splats"}
    if missing := [needed[source] for source in config.sources if needed[source] not in batch]:
        raise ConfigurationError(
            f"the batch lacks {', '.join(missing)}, of which renders are made (render.sources {list(config.sources)}); "
            "does the data module know the network (GuidanceInputs)?"
        )
    whole = batch.get("frames")
    if whole is not None and whole.shape[1] == batch["world_to_camera"].shape[1]:
        pixels = whole[:, [0, -1]]
    else:  # caches stand in for frames
        pixels = batch["views"]
    images = pixels.float() / 255.0  # [B, 2, 3, H, W]
    made = []
    for clip, key in enumerate(batch["key"]):
        cameras = Cameras(batch["world_to_camera"][clip], batch["intrinsics"][clip], *images.shape[-2:])
        views = cloud = None
        if "depth" in config.sources:
            views = DepthViews(images[clip], batch["depth"][clip], cameras[[0, -1]], batch["confidence"][clip])
            views = known_views(views, config, key)
            views = replace(views, depth=disturbed(views.depth, config, generator))
        if "cloud" in config.sources:
            points = batch["points"][clip]
            trust = batch["point_confidence"][clip] if "point_confidence" in batch else torch.ones_like(points[:, 0])
            cloud = PointCloud(points, batch["colors"][clip], trust)
        splats = None
        if "splats" in config.sources:
            stored = batch["splats"][clip].float() / 255.0  # [T, 4, H, W]
            splats = stored[:, :3], stored[:, 3]
        made.append(
            [
                render
                for source in config.sources
                for render in _source(source, views, cloud, cameras, config, key, splats)
            ]
        )
    return _stacked(made)


def guidance_inputs(config: RenderConfig | None, colors: bool = False) -> GuidanceInputs | None:
    """What a data loader has to read for ``batch_renders``, and the ``colors`` of points; None for nothing."""
    if config is None:
        return GuidanceInputs(colors=True) if colors else None
    splats = None
    if "splats" in config.sources:
        splats = cache_name("splats", splats_fingerprint(config.splat_steps, config.min_confidence))
    cloud = "cloud" in config.sources
    return GuidanceInputs(
        views=True,
        depth="depth" in config.sources,
        colors=colors or cloud,
        point_confidence=cloud and config.min_confidence > 1,
        splats=splats,
        min_confidence=config.min_confidence,
    )


def disturbed(depth: Tensor, config: RenderConfig, generator: torch.Generator | None) -> Tensor:
    """Depth [V, H, W] with the errors of an estimator: a smooth factor on every map, and patches that are missing.

    A network that sees perfect depth alone passes its errors on (ours).
    """
    if generator is None or not (config.depth_noise or config.point_dropout):
        return depth
    if config.depth_noise:
        factor = _smooth_noise(depth, generator).mul(config.depth_noise).exp()
        depth = torch.where(torch.isfinite(depth), depth * factor, depth)
    if config.point_dropout:
        field = _smooth_noise(depth, generator).flatten(1)
        limit = field.quantile(config.point_dropout, dim=1, keepdim=True)
        depth = torch.where((field < limit).view_as(depth), 0.0, depth)
    return depth


def _smooth_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """[V, H, W] standard normal at every pixel, and smooth: bicubic between the cells of a coarse grid."""
    views, *sides = like.shape
    weights = []
    for side in sides:
        cells = max(2, round(NOISE_CELLS * side / max(sides)))
        between = functional.interpolate(torch.eye(cells)[None, None], (side, cells), mode="bicubic")[0, 0]
        weights.append(between / between.norm(dim=1, keepdim=True))  # else pixels between cells would vary less
    drawn = torch.randn(views, *(part.shape[1] for part in weights), generator=generator)
    return (weights[0] @ drawn @ weights[1].T).to(like)


def _source(
    source: str,
    views: DepthViews | None,
    cloud: PointCloud | None,
    cameras: Cameras,
    config: RenderConfig,
    key: str,
    splats: tuple[Tensor, Tensor] | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Colour [T, 3, H, W] and coverage [T, H, W] of the renders of one source: one, or one of each view."""
    if source == "cloud":
        if cloud is None or len(cloud) == 0:
            raise BadSceneError(
                f"clip {key} has no points to render; pack it with a cloud, and let data.points be some"
            )
        kept = cloud[cloud.confidence >= config.min_confidence].to(cameras.world_to_camera.device, torch.float32)
        if len(kept) == 0:
            raise BadSceneError(
                f"clip {key}: no point has a confidence of at least {config.min_confidence:g}; lower min_confidence"
            )
        return [_enlarged(lambda small: _points(kept, small, config), cameras, config)]
    if source == "splats":
        assert splats is not None
        return [splats]
    assert views is not None
    groups = [views] if config.views == "fused" else [_only(views, view) for view in range(len(views))]
    return [_enlarged(_renderer(group, config), cameras, config) for group in groups]


def _renderer(views: DepthViews, config: RenderConfig) -> Callable[[Cameras], Rendered]:
    if not bool((views.depth > 0).any()):  # one view of several, or all that was known has been disturbed away
        return lambda cameras: _nothing(cameras, views.images)
    if config.mode == "surface":
        return lambda cameras: render_surface(views, cameras)
    cloud = cloud_of_views(views)
    return lambda cameras: _points(cloud, cameras, config)


def _nothing(cameras: Cameras, like: Tensor) -> Rendered:
    empty = like.new_zeros(len(cameras), cameras.height, cameras.width)
    return Rendered(empty[:, None].repeat(1, 3, 1, 1), empty, empty)


def _points(cloud: PointCloud, cameras: Cameras, config: RenderConfig) -> Rendered:
    return render_points(cloud, cameras, radius=config.radius, points_per_pixel=config.points_per_pixel)


def cloud_of_views(views: DepthViews) -> PointCloud:
    """Every pixel with depth as a point; one that is known to be far lies far away (``finite_depth``)."""
    depth = finite_depth(views.depth)
    there = torch.isfinite(depth) & (depth > 0)
    points = unproject(torch.where(there, depth, 0.0), views.cameras)[there]
    colors = views.images.permute(0, 2, 3, 1)[there]
    return PointCloud(points.float(), colors.float(), torch.ones_like(points[:, 0], dtype=torch.float32))


def _only(views: DepthViews, view: int) -> DepthViews:
    confidence = None if views.confidence is None else views.confidence[[view]]
    return DepthViews(views.images[[view]], views.depth[[view]], views.cameras[[view]], confidence)


def _enlarged(render: Callable[[Cameras], Rendered], cameras: Cameras, config: RenderConfig) -> tuple[Tensor, Tensor]:
    small = cameras
    if config.shrink > 1:
        small = resize_cameras(cameras, cameras.height // config.shrink, cameras.width // config.shrink)
    return told_apart(render(small), cameras.height, cameras.width)


def told_apart(seen: Rendered, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Colour [T, 3, H, W] and coverage [T, H, W] of a render, enlarged to ``height`` x ``width`` pixels.

    A render is dark where it covers a pixel in part, and is enlarged so, bilinearly, corners not aligned (ViewCrafter).
    Then the darkening is taken back: colour times coverage is the enlarged render.
    """
    dark = torch.cat([seen.color, seen.coverage[:, None]], dim=1)  # [T, 4, h, w]
    if dark.shape[-2:] != (height, width):
        dark = functional.interpolate(dark, (height, width), mode="bilinear", align_corners=False)
    coverage = dark[:, 3]
    return dark[:, :3] / coverage.clamp(min=1e-6)[:, None], coverage


def _stacked(clips: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> ClipRenders:
    color = torch.stack([torch.stack([color for color, _ in renders]) for renders in clips])
    coverage = torch.stack([torch.stack([coverage for _, coverage in renders]) for renders in clips])
    return ClipRenders(color.float().clamp(0, 1), coverage.float())
