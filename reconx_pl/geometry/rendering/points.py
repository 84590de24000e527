"""Clouds rendered into cameras as ViewCrafter does it: soft discs of one size, the nearest ones composited.

It is pytorch3d's ``PointsRasterizer`` and ``AlphaCompositor`` (Ravi et al., Accelerating 3D Deep Learning with
PyTorch3D, 2020; after Wiles et al., SynSin, 2020, section 3.2), so that a model that was trained on their renders sees
what it knows. In the golden kits ``point_render_*`` are the original's images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.cameras import project, projection_matrices
from reconx_pl.geometry.rendering.backend import Backend, chosen_backend, in_threads, kernels
from reconx_pl.geometry.rendering.discs import disc_hits
from reconx_pl.geometry.rendering.rendered import Rendered
from reconx_pl.types import Cameras, PointCloud

_AT_ONCE = 2**24  # kept points of the frames that are rendered together: bounds the memory


@torch.no_grad()
def render_points(
    cloud: PointCloud,
    cameras: Cameras,
    *,
    radius: float = 0.01,
    points_per_pixel: int = 10,
    backend: Backend = "auto",
) -> Rendered:
    """Render a cloud into cameras.

    A point hits a pixel if it lies before the camera and the distance d of its projection to the pixel's centre is less
    than the radius r, which is the same at every depth. Its weight is w = 1 - d^2 / r^2. Of the points that hit a pixel
    the nearest ``points_per_pixel`` are composited front to back, ties by their number:
    sum over k of w_k prod over l < k of (1 - w_l) color_k. Nothing is divided by the alpha: thin places are dark.

    Args:
        cloud: N points, on the device that is to render.
        cameras: M views.
        radius: of the points, where the shorter side of the image is 2: 0.01 is 1.44 pixels at 288 x 512.
        points_per_pixel: points that count at a pixel, faint ones included.
        backend: "auto" takes numba on the CPU, else torch.

    Returns:
        M images on the device of ``cloud``: coverage is the alpha, depth that of the nearest point that hits.

    Raises:
        ConfigurationError: ``radius`` is not positive, ``points_per_pixel`` below 1, no such backend.
        BackendUnavailableError: numba is asked for and cannot run.
    """
    if not radius > 0 or points_per_pixel < 1:
        raise ConfigurationError(
            f"points need a positive radius and at least one point a pixel, not {radius:g} and {points_per_pixel}"
        )
    device = cloud.points.device
    backend = chosen_backend(backend, device)
    exact = cameras.to(device, torch.float64)
    height, width = cameras.height, cameras.width
    reach = 0.5 * radius * min(height, width)  # pixels
    points, colors = cloud.points.double().contiguous(), cloud.colors.float().contiguous()
    shape = (len(cameras), height, width)
    color, coverage, depth = (torch.zeros(*shape, *more, device=device) for more in ((3,), (), ()))
    together = max(1, _AT_ONCE // (points_per_pixel * height * width + 2 * len(cloud)))
    for start in range(0, len(cameras), together):
        frames = slice(start, start + together)
        images = (color[frames], coverage[frames], depth[frames])
        if backend == "numba":
            arrays = (projection_matrices(exact[frames]), *images)
            in_threads(
                kernels().draw_points,
                (
                    (points.numpy(), camera, colors.numpy(), reach, points_per_pixel, *planes)
                    for camera, *planes in zip(*(array.numpy() for array in arrays), strict=True)
                ),
            )
        else:
            pixels, z = project(points, exact[frames])  # [F, N, 2], [F, N]
            for p, d, *planes in zip(pixels, z.float(), *images, strict=True):  # equal in float32 is a tie
                made = _composited(p, d, colors, reach, points_per_pixel, height, width)
                for plane, values in zip(planes, made, strict=True):
                    plane.copy_(values)
    return Rendered(color.permute(0, 3, 1, 2).contiguous().clamp(0, 1), coverage, depth)


def _composited(
    pixels: Tensor, depth: Tensor, colors: Tensor, radius: float, count: int, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One frame by torch: color [h, w, 3], alpha [h, w], depth [h, w]."""
    radii = torch.full_like(pixels[:, 0], radius)
    hits = disc_hits(pixels, radii, (depth > 0) & torch.isfinite(depth), height, width, math.ceil(radius + 0.5))
    within = hits.gap < radius
    cell, point, gap = (part[within] for part in hits)
    order = depth[point].argsort(stable=True)
    order = order[cell[order].argsort(stable=True)]  # by pixel, then by depth, then by number
    cell, point, gap = cell[order], point[order], gap[order]
    hit = torch.bincount(cell, minlength=height * width)  # [h * w]
    place = torch.arange(len(cell), device=cell.device) - (hit.cumsum(0) - hit)[cell]
    kept = place < count
    cell, point, gap, place = cell[kept], point[kept], gap[kept], place[kept]
    weights = gap.new_zeros(height * width, count)
    weights[cell, place] = 1 - (gap / radius) ** 2
    behind = (1 - weights).cumprod(1)  # what is left behind each
    share = weights * torch.cat([torch.ones_like(behind[:, :1]), behind[:, :-1]], 1)
    image = torch.zeros(height * width, 3, dtype=gap.dtype, device=gap.device)
    image.index_add_(0, cell, share[cell, place, None] * colors[point])
    nearest = depth.new_zeros(height * width)
    nearest[cell[place == 0]] = depth[point[place == 0]]
    size = (height, width)
    return image.view(*size, 3), (1 - behind[:, -1]).view(size), nearest.view(size)
