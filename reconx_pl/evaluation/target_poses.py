"""Cameras of targets moved to where a finished scene explains the target best; for a row of its own, never the main."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from reconx_pl.splatting.losses import LossWeights, confidence_loss
from reconx_pl.splatting.pose_refinement import PoseRefinement, RefinedPoses
from reconx_pl.splatting.renderers.base import Renderer
from reconx_pl.types import Cameras, Gaussians


@torch.enable_grad()
def refined_targets(
    gaussians: Gaussians,
    images: Tensor,
    cameras: Cameras,
    anchor: Cameras,
    steps: int,
    renderer: Renderer,
    weights: Tensor | None = None,
    config: PoseRefinement = PoseRefinement(),  # noqa: B008 (frozen)
) -> Cameras:
    """Refine each camera on its own by Adam against 0.8 L1 + 0.2 L_ssim of its image; the Gaussians are held.

    The same twists, rates and decay as for generated frames (``splatting.pose_refinement``). NeRF-- (Wang et al. 2021)
    and BARF (Lin et al. 2021) score with test cameras refined like this, since their worlds are their own; where the
    world is that of the data set it hides errors of pose, which is why it is not the score.

    Args:
        gaussians: the scene, without gradients.
        images: [V, 3, H, W] in [0, 1].
        cameras: V views of the data set, where each search starts.
        anchor: one view that stays.
        steps: of Adam, for each target.
        renderer: of the device.
        weights: [V, H, W], how much each pixel counts; None counts all alike.
        config: how far a step goes.

    Returns:
        V views.
    """
    both = replace(
        cameras,
        world_to_camera=torch.cat([anchor.world_to_camera.to(cameras.world_to_camera), cameras.world_to_camera]),
        intrinsics=torch.cat([anchor.intrinsics.to(cameras.intrinsics), cameras.intrinsics]),
    )
    poses = RefinedPoses(both, {0}, gaussians.means, config).to(images.device)
    counting = torch.ones_like(images[:, 0]) if weights is None else weights.to(images)
    photometric = LossWeights(lpips=0.0)
    for view in range(len(cameras)):
        adam = torch.optim.Adam([poses.twists[str(view + 1)]], lr=1.0)
        for step in range(steps):
            adam.param_groups[0]["lr"] = config.factor(step / steps)
            adam.zero_grad(set_to_none=True)
            picture = renderer.render(gaussians, poses.pick([view + 1])).color
            confidence_loss(picture, images[[view]], counting[[view]], photometric).backward()
            adam.step()
    return poses.refined()[list(range(1, len(both)))]
