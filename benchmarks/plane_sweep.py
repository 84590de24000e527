"""Dense depth by plane sweep: its error where depth is known, and the fit from it beside the fit from sparse points.

Poses are those of the scenes. Points and depth come from the fitted views alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.posed_scenes import posed_scene
from reconx_pl.data.formats.readers import only_scene
from reconx_pl.geometry.estimators.base import Reconstruction
from reconx_pl.geometry.estimators.colmap import ColmapEstimator
from reconx_pl.geometry.estimators.plane_sweep_estimator import PlaneSweepEstimator
from reconx_pl.geometry.point_maps import depth_from_point_map, point_map_from_depth, with_unexplained
from reconx_pl.metrics.image import psnr, ssim
from reconx_pl.splatting.fit import FitConfig, fit
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.splatting.points import PointsConfig, points_from_maps
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.types import Cameras, PointCloud
from reconx_pl.visualization.color_maps import depth_colors


@dataclass(frozen=True)
class Views:
    """Which photographs of a scene are fitted, and which are scored (none: depth alone is measured)."""

    fitted: tuple[int, ...]
    held_out: tuple[int, ...] = ()


SCENES = {
    "llff_fern": Views((1, 9, 17), (4, 6, 12, 14)),
    "banana": Views((1, 4, 7), (2, 3, 5, 6)),
    "dtu_scan24": Views((20, 22, 24), (21, 23)),
    "re10k_0bf152ef84195293": Views((0, 12, 24), (6, 18)),
    "re10k_2c80f9eb0d3b2bb4": Views((0, 12, 24), (6, 18)),
    "pi3_room": Views((0, 1, 2)),
    "motorcycle_stereo": Views((0, 1)),
}


def depth_report(found: Tensor, true: Tensor) -> str:
    """Of [V, H, W] each: how much of the true depth was found, and how well."""
    both = (found > 0) & (true > 0)
    error = ((found - true).abs() / true)[both]
    shares = ", ".join(
        f"{100 * float((error < bound).float().mean()):.1f} % within {bound:.0%}" for bound in (0.01, 0.05)
    )
    complete = 100 * float(both.sum() / (true > 0).sum())
    return f"depth at {complete:.1f} % of the pixels, median error {100 * float(error.median()):.2f} %, {shares}"


def dense_start(found: Reconstruction, images: Tensor, cameras: Cameras) -> tuple[PointCloud, Tensor]:
    """Points of the maps at the size of the fit's images, as ``reconx reconstruct`` takes them, and confidence."""
    size = images.shape[-2:]
    depth = depth_from_point_map(found.point_map, found.cameras)
    depth, confidence = (
        F.interpolate(maps[:, None], size, mode="nearest-exact")[:, 0] for maps in (depth, found.point_map.confidence)
    )
    maps = point_map_from_depth(depth, cameras, confidence)
    points = points_from_maps(maps, images, PointsConfig(views="all"))
    return with_unexplained(points, found.cloud, maps, cameras), confidence


def measure(name: str, root: Path, size: int, steps: int, pictures: Path | None) -> None:
    views, raw = SCENES[name], only_scene(root / name)
    full = posed_scene(root / name, min(raw.cameras.height, raw.cameras.width))
    fitted, held_out = list(views.fitted), list(views.held_out)
    images, cameras = full.frames[fitted], full.cameras[fitted]
    sparse = ColmapEstimator().estimate(images, cameras)
    started = time.process_time()
    dense = PlaneSweepEstimator(_Found(sparse)).estimate(images, cameras)
    seconds = (time.process_time() - started) / len(fitted)
    depth = depth_from_point_map(dense.point_map, cameras)
    print(f"{name}: {len(sparse.cloud)} sparse points; {seconds:.1f} s of processor time a view, depth at "
          f"{100 * float((depth > 0).float().mean()):.1f} % of the pixels")  # fmt: skip
    loaders = {view: load for view in fitted if (load := raw.frames[view].load_depth) is not None}
    if loaders:
        true = torch.stack([torch.from_numpy(np.asarray(load())).float() for load in loaders.values()])
        print(f"  {depth_report(depth[[fitted.index(view) for view in loaders]], true)}", flush=True)
    shown = [torch.cat(list(images), dim=-1), torch.cat(list(_colors(depth)), dim=-1)]
    if held_out:
        small = posed_scene(root / name, size)
        truth = small.frames[held_out]
        start, confidence = dense_start(dense, small.frames[fitted], small.cameras[fitted])
        rendered = [truth]
        for kind, points, trust in (("sparse", sparse.cloud, None), ("dense", start, confidence)):
            began = time.process_time()
            config = FitConfig(steps=steps, loss=LossWeights(l1=0.8, ssim=0.2, lpips=0.0))
            result = fit(small.frames[fitted], small.cameras[fitted], trust, points, config)
            with torch.no_grad():
                picture = torch.cat(
                    [default_renderer("cpu").render(result.gaussians, small.cameras[view]).color for view in held_out]
                ).clamp(0, 1)
            rendered.append(picture)
            print(
                f"  {kind:7s} {len(points):7d} points  PSNR {float(psnr(picture, truth).mean()):6.2f}  "
                f"SSIM {float(ssim(picture, truth).mean()):.3f}  {time.process_time() - began:5.0f} s",
                flush=True,
            )
        if pictures:
            _save(torch.cat([torch.cat(list(part), dim=-1) for part in rendered], dim=-2), pictures / f"{name}_fit.png")
    if pictures:
        _save(torch.cat(shown, dim=-2), pictures / f"{name}_depth.png")


class _Found:
    """What was found already, so that structure from motion runs once."""

    def __init__(self, found: Reconstruction) -> None:
        self.found = found

    def estimate(self, images: Tensor, cameras: Cameras | None = None) -> Reconstruction:
        return self.found


def _colors(depth: Tensor) -> Tensor:  # [V, 3, H, W] in [0, 1]
    return torch.from_numpy(depth_colors(depth)).permute(0, 3, 1, 2).float() / 255


def _save(picture: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()).save(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plane_sweep", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("scenes", nargs="*", default=list(SCENES), help=f"of {', '.join(SCENES)}")
    parser.add_argument("--root", type=Path, default=Path("../shared/scenes"), help="folder of posed scenes")
    parser.add_argument("--size", type=int, default=128, help="short side of the fit, pixels")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pictures", type=Path, help="folder for pictures of depth and renderings")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for name in options.scenes:
        measure(name, options.root, options.size, options.steps, options.pictures)


if __name__ == "__main__":
    main()
