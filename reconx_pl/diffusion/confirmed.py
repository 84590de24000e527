"""Which pixels of a render the photographs confirm, so that nothing has to be generated there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reconx_pl.diffusion.conditioning.render_latents import COVERED
from reconx_pl.diffusion.splat_renders import seen_by
from reconx_pl.geometry.cameras import in_view, project, unproject
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.splatting.renderers.base import RenderOutput
from reconx_pl.types import Cameras, Gaussians

SAME_COLOR = 0.1  # mean over the channels, colours in [0, 1]
SAME_DEPTH = 0.05  # of the depth: a view whose own surface lies farther off than that does not see the point


def confirmed_pixels(seen: RenderOutput, cameras: Cameras, views: DepthViews, gaussians: Gaussians) -> Tensor:
    """Pixels whose point a photograph sees, and all that see it in the colour that it is rendered in.

    A fit is right there, and on a bare wall whatever its depth: a wrong one shows the same colour. What is left is what
    no photograph shows, and what they show differently.

    Args:
        seen: what the cameras see of the Gaussians (``seen_by``).
        cameras: T views that were rendered into.
        views: V photographs, of the same size.
        gaussians: fitted to the photographs.

    Returns:
        [T, H, W] bool.

    Raises:
        BackendUnavailableError: no renderer can run on the device.
    """
    surfaces = seen_by(views.cameras, gaussians).depth
    photographs = torch.cat([views.images, surfaces[:, None]], 1)  # [V, 4, H, W]
    size = surfaces.new_tensor([views.cameras.width, views.cameras.height])
    confirmed = []
    for frame in range(len(cameras)):  # one by one, against memory
        points = unproject(seen.depth[[frame]], cameras[[frame]]).flatten(0, 2)  # [H W, 3]
        pixels, z = project(points, views.cameras)  # [V, H W, 2], [V, H W]
        grid = (2 * pixels / size - 1).unflatten(1, (cameras.height, cameras.width))
        there = F.grid_sample(photographs, grid.to(photographs), padding_mode="border", align_corners=False)
        near = (z.view_as(there[:, 3]) / there[:, 3].clamp_min(1e-6) - 1).abs() < SAME_DEPTH
        visible = near & in_view(points, views.cameras).view_as(near)
        agrees = (there[:, :3] - seen.color[frame]).abs().mean(1) < SAME_COLOR
        confirmed.append((seen.alpha[frame] >= COVERED) & visible.any(0) & (agrees | ~visible).all(0))
    return torch.stack(confirmed)
