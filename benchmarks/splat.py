"""One step of the Gaussian fit on the CPU, by parts: where the time of 1,000 steps goes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.timing import processor_seconds, table
from reconx_pl.data.procedural import procedural_clip
from reconx_pl.splatting.cpu import CpuRenderer
from reconx_pl.splatting.initialise import InitialiseConfig, gaussians_from_points
from reconx_pl.splatting.losses import LossWeights, TargetStatistics, confidence_loss
from reconx_pl.splatting.perceptual import LpipsDistance
from reconx_pl.splatting.perceptual_weights import Net


def main() -> None:
    clip = procedural_clip(0, frames=2, points=16384)
    assert clip.cloud is not None
    gaussians = gaussians_from_points(clip.cloud, clip.cameras, InitialiseConfig())
    parameters = [gaussians.means, gaussians.quaternions, gaussians.log_scales, gaussians.opacity_logits, gaussians.sh]
    for parameter in parameters:
        parameter.requires_grad_()
    renderer, camera, target = CpuRenderer(threads=1), clip.cameras[0], clip.images[:1]
    picture = renderer.render(gaussians, camera).color.detach().requires_grad_()
    confidence, statistics = torch.ones(1, *target.shape[-2:]), TargetStatistics.of(target)

    def render() -> None:
        renderer.render(gaussians, camera).color.square().mean().backward()

    def plain_loss() -> None:
        weights = LossWeights(lpips=0.0)
        confidence_loss(picture, target, confidence, weights, statistics=statistics).backward()

    def perceptual(net: Net) -> Callable[[], None]:
        distance = LpipsDistance(net)
        features = distance.features(target)
        return lambda: distance(picture, features).sum().backward()

    drawing = "render 128 x 128, 16,384 Gaussians, and back"
    table(
        processor_seconds(
            {
                drawing: render,
                "L1 + SSIM, and back": plain_loss,
                "LPIPS, AlexNet, and back": perceptual("alex"),
                "LPIPS, VGG, and back": perceptual("vgg"),
            },
            rounds=15,
        ),
        drawing,
    )


if __name__ == "__main__":
    main()
