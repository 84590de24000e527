"""Which pixels of a render the photographs confirm, so that nothing has to be generated there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reconx_pl.diffusion.conditioning.render_latents import COVERED
from reconx_pl.geometry.cameras import project, unproject
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.types import Cameras, Gaussians

SAME_COLOR = 0.1  # mean over the channels, colours in [0, 1]
SAME_DEPTH = 0.05  # of the depth: a view whose own surface lies farther off than that does not see the point


def confirmed_pixels(gaussians: Gaussians, cameras: Cameras, views: DepthViews) -> Tensor:
    """Pixels whose point a photograph sees, and all that see it in the colour that it is rendered in.

    A fit is right there, and on a bare wall whatever its depth: a wrong one shows the same colour. What is left is what
    no photograph shows, and what they show differently.

    Args:
        gaussians: fitted to the views.
        cameras: T views that are rendered into.
        views: V photographs, of the same size.

    Returns:
        [T, H, W] bool.

    Raises:
        BackendUnavailableError: no renderer can run on the device.
    """
    device = gaussians.means.device
    with torch.inference_mode(False), torch.no_grad():
        cameras, views = cameras.copied(), views.copied()
        renderer = default_renderer(device)
        seen, own = renderer.render(gaussians, cameras), renderer.render(gaussians, views.cameras)
        size = cameras.height, cameras.width
        confirmed = []
        for color, alpha, depth, frame in zip(seen.color, seen.alpha, seen.depth, range(len(cameras)), strict=True):
            points = unproject(depth[None], cameras[[frame]])[0].flatten(0, 1)  # [H W, 3]
            pixels, z = (part.unflatten(1, size) for part in project(points, views.cameras))  # [V, H, W, 2], [V, H, W]
            grid = 2 * pixels / pixels.new_tensor([views.cameras.width, views.cameras.height]) - 1
            there = _sampled(torch.cat([views.images, own.depth[:, None]], 1), grid)  # [V, 4, H, W]
            near = (z / there[:, 3].clamp_min(1e-6) - 1).abs() < SAME_DEPTH
            visible = (z > 0) & (grid.abs() <= 1).all(-1) & near
            agrees = (there[:, :3] - color).abs().mean(1) < SAME_COLOR
            confirmed.append((alpha >= COVERED) & (visible.any(0)) & (agrees | ~visible).all(0))
        return torch.stack(confirmed)


def _sampled(maps: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(maps, grid.to(maps), padding_mode="border", align_corners=False)
