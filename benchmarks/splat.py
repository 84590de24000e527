"""The Gaussian fit: what a step costs, how fast it converges, how exact the renderers are.

``python -m benchmarks.splat``: one step on the CPU by parts (seconds). ``python -m benchmarks.splat WHAT``, WHAT one of

- ``grid [--sizes 128 256 512] [--counts 5000 ...] [--device cuda] [--no-plain]``: a step beside plain torch, minutes
- ``converge [SCENE ...] [--sizes 128] [--steps 1000] [--device cuda]``: PSNR of held-out views over the steps
- ``thousand [--device cuda]``: 1,000 steps with L1 + SSIM and with LPIPS
- ``oracle [--device cuda]``: figures against the kits of RECONX_GOLDEN
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import splat_converge, splat_grid, splat_oracle
from benchmarks.timing import processor_seconds, table
from reconx_pl.data.procedural import procedural_clip
from reconx_pl.metrics.lpips import LpipsDistance
from reconx_pl.metrics.lpips_weights import Net
from reconx_pl.splatting.initialise import InitialiseConfig, gaussians_from_points
from reconx_pl.splatting.losses import LossWeights, TargetStatistics, confidence_loss
from reconx_pl.splatting.renderers.cpu import CpuRenderer


def parts() -> None:
    """Where the time of 1,000 steps goes."""
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.splat", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", default="parts", choices=[*MEASUREMENTS, "parts", "memory"])
    parser.add_argument("scenes", nargs="*", type=Path, help="folders of posed photographs with points, for converge")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--sizes", nargs="+", type=int, help="of the images, pixels")
    parser.add_argument("--counts", nargs="+", type=int, default=list(splat_grid.COUNTS), help="of Gaussians, for grid")
    parser.add_argument("--steps", type=int, default=1000, help="of a fit, for converge")
    parser.add_argument("--rounds", type=int, default=3, help="of timing, for grid")
    parser.add_argument("--no-plain", action="store_true", help="leave plain torch out of grid")
    parser.add_argument("--renderer", choices=[splat_grid.OURS, splat_grid.PLAIN], help="for memory, which grid calls")
    options = parser.parse_args(arguments if arguments is not None else [])
    if options.what == "parts":
        parts()
    elif options.what == "memory":
        splat_grid.report_memory(options.sizes[0], options.counts[0], options.renderer, options.device)
    else:
        MEASUREMENTS[options.what](options)


def _oracle(options: argparse.Namespace) -> None:
    kits = splat_oracle.find_kits()
    if not kits:
        sys.exit("no kits splat_*.json: set RECONX_GOLDEN to their folder, or put them into tests/golden")
    if not splat_oracle.report(kits, options.device):
        sys.exit(1)


MEASUREMENTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "grid": lambda o: splat_grid.main(o.sizes or list(splat_grid.SIZES), o.counts, o.device, o.rounds, not o.no_plain),
    "converge": lambda o: splat_converge.main(o.scenes, o.sizes or [128], o.device, o.steps),
    "thousand": lambda o: splat_converge.thousand(o.device),
    "oracle": _oracle,
}


if __name__ == "__main__":
    main(sys.argv[1:])
