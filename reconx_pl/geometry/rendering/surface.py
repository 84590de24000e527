"""Views with depth rendered into other cameras as surfaces: a mesh a view, a z-buffer, and a blend of the views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.cameras import camera_distance, project, projection_matrices, unproject
from reconx_pl.geometry.rendering.backend import Backend, chosen_backend, in_threads, kernels
from reconx_pl.geometry.rendering.limits import EDGE, FAR, MIN_AREA, NEAR, SKY_TRIANGLE, SURFACE
from reconx_pl.geometry.rendering.rendered import Rendered
from reconx_pl.geometry.rendering.surface_torch import draw_meshes
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.types import Cameras

_AT_ONCE = 2**21  # corners and pixels of the frames that are rendered together: bounds the memory
_NEAREST = 1e-6  # of the farthest source: a source nearer than that has all the weight it can get
_SAME = 1e-5  # rounding of float32 poses and intrinsics, relative


@dataclass(frozen=True)
class Mesh:
    """The views as triangles between pixel centres.

    Args:
        corners: [V, H, W, 3] float64, world units.
        triangles: [V, H - 1, W - 1, 2] uint8, the upper left and the lower right half of every quad, as in
            ``limits``.
        colors: [V, H, W, 3] float32.
        near: depth up to which corners count as behind the camera, world units.
    """

    corners: Tensor  # [V, H, W, 3]
    triangles: Tensor  # [V, H - 1, W - 1, 2]
    colors: Tensor  # [V, H, W, 3]
    near: float


@torch.no_grad()
def render_surface(
    views: DepthViews,
    cameras: Cameras,
    *,
    discontinuity: float = 1.15,
    tolerance: float = 0.03,
    min_confidence: float = 1.0,
    backend: Backend = "auto",
) -> Rendered:
    """Render views with depth into other cameras.

    Every depth map is a mesh of its pixel centres, two triangles a quad. It is cut at edges of objects, drawn with a
    z-buffer, perspectively correct, and not seen from behind. Of several views the nearest surface wins; views that
    agree with it are blended by the inverse distance of their cameras (between two views on a straight path the weights
    are linear in the position). Sky lies at ``limits.FAR`` times the largest finite depth, or, where nothing is finite,
    times the largest distance of a camera to a view. A camera that is a view's own gets that photograph back wherever
    its depth is known. Unknown pixels are holes. A surface less than two pixels wide has no triangle: it is seen
    from its own camera alone.

    Args:
        views: V views, on the device that is to render.
        cameras: M targets, of any image size.
        discontinuity: a triangle whose largest depth exceeds its smallest by this factor is cut.
        tolerance: share of the nearest depth within which views are one surface.
        min_confidence: pixels of less are unknown.
        backend: "auto" takes numba on the CPU, else torch.

    Returns:
        M images on the device of ``views``; coverage is 0 or 1.

    Raises:
        BadSceneError: no pixel has a depth, or none is confident enough.
        ConfigurationError: a ``discontinuity`` below 1, a negative ``tolerance``, no such backend.
        BackendUnavailableError: numba is asked for and cannot run.
    """
    if discontinuity < 1 or tolerance < 0:
        raise ConfigurationError(
            f"discontinuity is a factor of at least 1 and tolerance at least 0, not {discontinuity:g} and {tolerance:g}"
        )
    device = views.images.device
    backend = chosen_backend(backend, device)
    views = views.known(min_confidence).to(device)
    exact, sources = cameras.to(device, torch.float64), views.cameras.to(device, torch.float64)
    distance = camera_distance(exact, sources)  # [M, V]
    extent = _extent(views, exact, sources)
    mesh = _mesh(views, sources, discontinuity, extent)
    weights = _weights(distance)
    own = _own_views(exact, sources, extent)
    shape = (len(cameras), cameras.height, cameras.width)
    color, depth = torch.zeros(shape[0], 3, *shape[1:], device=device), torch.zeros(shape, device=device)
    complete = (views.depth > 0).flatten(1).all(1)  # of a view's own camera there is nothing left to find out
    wanted = (~(own & complete).any(1)).nonzero().squeeze(1)
    size = len(views) * (mesh.corners[0].numel() // 3 + cameras.height * cameras.width)
    for at in wanted.split(max(1, _AT_ONCE // size)):
        color[at], depth[at] = _blended(*_drawn(mesh, exact[at], backend), weights[at], tolerance)
    for target, view in own.nonzero().flip(0).tolist():  # of two views of one camera the first one is left
        there = views.depth[view] > 0
        color[target] = torch.where(there, views.images[view].float(), color[target])
        depth[target] = torch.where(there, views.depth[view].float(), depth[target])
    return Rendered(color, (depth > 0).float(), depth)


def _extent(views: DepthViews, cameras: Cameras, sources: Cameras) -> float:
    """The largest finite depth; where there is none the largest distance to a view's camera, or 1. World units."""
    finite = views.finite
    if bool(finite.any()):
        return float(views.depth[finite].max())
    return float(torch.cdist(cameras.centers, sources.centers).max()) or 1.0


def _mesh(views: DepthViews, sources: Cameras, discontinuity: float, extent: float) -> Mesh:
    far = FAR * extent
    depth = torch.where(views.sky, far, views.depth.double())  # 0 where unknown
    nearest, farthest = _of_corners(depth, torch.minimum), _of_corners(depth, torch.maximum)
    sky = nearest == far
    whole = (nearest > 0) & (farthest <= discontinuity * nearest) & (sky | (farthest < far))
    kind = whole.to(torch.uint8) * torch.where(sky, SKY_TRIANGLE, SURFACE).to(torch.uint8)
    colors = views.images.float().permute(0, 2, 3, 1).contiguous()
    return Mesh(unproject(depth, sources).contiguous(), kind, colors, NEAR * extent)


def _of_corners(values: Tensor, choose: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Least or greatest of the values [V, H, W] at the corners of every triangle: [V, H - 1, W - 1, 2]."""
    a, b, c, d = values[:, :-1, :-1], values[:, :-1, 1:], values[:, 1:, :-1], values[:, 1:, 1:]
    middle = choose(b, c)
    return torch.stack([choose(middle, a), choose(middle, d)], -1)


def _weights(distance: Tensor) -> Tensor:
    """Distances [M, V] of targets to sources as weights [M, V] that add up to 1."""
    smallest = _NEAREST * distance.amax(1, keepdim=True)
    weights = 1 / torch.maximum(distance, smallest).clamp(min=torch.finfo(torch.float64).tiny)
    weights = weights.clamp(max=torch.finfo(torch.float64).max / (1 + distance.shape[1]))
    return (weights / weights.sum(1, keepdim=True)).float()


def _own_views(cameras: Cameras, sources: Cameras, extent: float) -> Tensor:
    """Which targets are the cameras of which views: [M, V] bool."""
    if (cameras.height, cameras.width) != (sources.height, sources.width):
        return torch.zeros(len(cameras), len(sources), dtype=torch.bool, device=cameras.intrinsics.device)
    pose = (cameras.world_to_camera[:, None] - sources.world_to_camera).abs()  # [M, V, 4, 4]
    inner = (cameras.intrinsics[:, None] - sources.intrinsics).abs()  # [M, V, 3, 3]
    turned, moved = pose[..., :3].amax((-1, -2)), pose[..., 3].amax(-1)
    side = max(cameras.height, cameras.width)
    return (turned <= _SAME) & (moved <= _SAME * extent) & (inner.amax((-1, -2)) <= _SAME * side)


def _drawn(mesh: Mesh, cameras: Cameras, backend: str) -> tuple[Tensor, Tensor]:
    """Every view's mesh in every frame: color [F, V, h, w, 3], and depth [F, V, h, w], 0 in holes, infinite for sky."""
    frames, (views, height, width, _) = len(cameras), mesh.corners.shape
    if backend == "torch":
        pixels, z = project(mesh.corners.view(-1, 3), cameras)
        corners = torch.cat([pixels, z[..., None]], -1).view(frames, views, height, width, 3)
        return draw_meshes(corners, mesh.triangles, mesh.colors, mesh.near, cameras.height, cameras.width)
    shape = (frames * views, cameras.height, cameras.width)
    color, depth = torch.zeros(*shape, 3), torch.zeros(shape)
    matrices = projection_matrices(cameras).repeat_interleave(views, 0)
    points, kinds, images = mesh.corners.numpy(), mesh.triangles.numpy(), mesh.colors.numpy()
    in_threads(
        kernels().draw_mesh,
        (
            (points[n % views], camera, kinds[n % views], images[n % views], mesh.near, EDGE, MIN_AREA, *planes)
            for n, (camera, *planes) in enumerate(zip(matrices.numpy(), color.numpy(), depth.numpy(), strict=True))
        ),
    )
    return color.view(frames, views, *shape[1:], 3), depth.view(frames, views, *shape[1:])


def _blended(color: Tensor, depth: Tensor, weights: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """One image of the views' images: color [F, 3, h, w], depth [F, h, w] of the nearest."""
    hit = depth > 0  # [F, V, h, w]
    nearest = torch.where(hit, depth, torch.inf).amin(1)  # [F, h, w]
    one_surface = hit & (depth <= nearest[:, None] * (1 + tolerance))
    share = weights[:, :, None, None] * one_surface
    total = share.sum(1)
    share = share / torch.where(total > 0, total, 1.0)[:, None]
    mixed = torch.zeros_like(color[:, 0])  # [F, h, w, 3]
    for view in range(color.shape[1]):
        mixed.addcmul_(share[:, view, ..., None], color[:, view])
    return mixed.permute(0, 3, 1, 2).clamp(0, 1), torch.where(total > 0, nearest, 0.0)
