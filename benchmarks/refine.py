"""Rough poses, polished by bundle adjustment: how far from the true ones before and after?

``python -m benchmarks.refine [SCENE=FIRST,STEP,COUNT ...]``: neighbouring photographs of posed scenes. Their true poses
are turned and moved by what an estimator could be off, each view by itself and in a random direction, and their depth
is scaled by a factor a view. ``reconx_pl.geometry.refinement`` gets these. The depth is that of the scene, or else that
of a plane sweep with the true poses. A row has, over all seeds, the mean of the largest error of a view before and
after: of rotation in degrees, of the centre in percent of the extent (both after alignment by a similarity), and of the
depth in percent; and in how many runs the poses became better, stayed, and became worse.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from reconx_pl.data.formats.readers import only_scene
from reconx_pl.geometry.estimators.base import KnownDepth, Reconstruction
from reconx_pl.geometry.estimators.lenses import Lenses
from reconx_pl.geometry.estimators.plane_sweep_estimator import PlaneSweepEstimator
from reconx_pl.geometry.point_maps import depth_from_point_map
from reconx_pl.geometry.refinement.estimator import RefinedEstimator
from reconx_pl.geometry.similarity import alignment_quality, fit_cameras
from reconx_pl.types import Cameras

ROWS = (
    "llff_fern=0,2,5", "banana=1,2,4", "re10k_2c80f9eb0d3b2bb4=0,4,6", "re10k_0bf152ef84195293=0,6,5",
    "ingp_fox=10,2,6", "pi3_room=0,1,3", "dtu_scan24=20,1,5", "mid_templeRing=0,1,6", "brighton_beach=0,1,5",
    "re10k_0c11dbe781b1c11c=0,6,5",
)  # fmt: skip
LEVELS = ("0.5,1", "1,2", "2,3", "4,5")
DEPTH = 0.05  # standard deviation of the logarithm of a view's depth scale
# A change of the largest error that counts as one: degrees, and percent. The scenes' own poses are no better than this.
ROTATION, TRANSLATION = 0.1, 0.3


@dataclass(frozen=True)
class Photographs:
    """Images [V, 3, H, W] in [0, 1], true cameras, and depth [V, H, W], 0 = none."""

    images: Tensor
    cameras: Cameras
    depth: Tensor


@dataclass(frozen=True)
class Errors:
    """The largest of a view: degrees, percent of the extent, percent of the depth."""

    rotation: float
    translation: float
    depth: float


class Rough:
    """An estimator that is off: it gives the cameras and depth that it was made with."""

    def __init__(self, cameras: Cameras, depth: Tensor) -> None:
        self.cameras, self.depth = cameras, depth

    def estimate(self, images: Tensor, cameras: Cameras | None = None) -> Reconstruction:
        return KnownDepth(self.depth, points=4096).estimate(images, self.cameras)


def photographs(root: Path, text: str) -> Photographs:
    """Those that SCENE=FIRST,STEP,COUNT names, with depth of the scene or of a plane sweep."""
    name, _, numbers = text.partition("=")
    first, step, count = map(int, numbers.split(","))
    views = [first + step * at for at in range(count)]
    raw = only_scene(root / name)
    images = torch.stack([torch.from_numpy(raw.load_image(view).copy()) for view in views])
    images, cameras = images.permute(0, 3, 1, 2).float() / 255, raw.cameras[views].to(dtype=torch.float32)
    loaders = [raw.frames[view].load_depth for view in views]
    if all(loader is not None for loader in loaders):
        depth = torch.stack([torch.from_numpy(np.asarray(loader())).float() for loader in loaders if loader])
    else:
        depth = depth_from_point_map(PlaneSweepEstimator().estimate(images, cameras).point_map, cameras)
    return Photographs(images, cameras, depth)


def roughened(true: Photographs, degrees: float, percent: float, focal: float, seed: int) -> Rough:
    """Every view turned by so many degrees, moved by so many percent of the extent, and its depth scaled."""
    draw = np.random.default_rng(seed)
    pose, centers = true.cameras.world_to_camera.double().numpy().copy(), true.cameras.centers.double().numpy()
    extent = np.linalg.norm(centers[:, None] - centers[None], axis=-1).max()
    axes, ways = (draw.normal(size=centers.shape) for _ in range(2))
    axes, ways = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (axes, ways))
    pose[:, :3, :3] = Rotation.from_rotvec(math.radians(degrees) * axes).as_matrix() @ pose[:, :3, :3]
    pose[:, :3, 3] = -np.einsum("vij,vj->vi", pose[:, :3, :3], centers + percent / 100 * extent * ways)
    intrinsics = true.cameras.intrinsics.clone()
    intrinsics[:, [0, 1], [0, 1]] *= focal
    cameras = replace(true.cameras, world_to_camera=torch.from_numpy(pose).float(), intrinsics=intrinsics)
    scales = torch.from_numpy(np.exp(DEPTH * draw.normal(size=len(centers)))).float()
    return Rough(cameras, true.depth * scales[:, None, None])


def errors(cameras: Cameras, depth: Tensor, true: Photographs) -> Errors:
    """How far cameras and depth are from the true ones once the cameras are aligned."""
    similarity = fit_cameras(cameras, true.cameras)
    quality = alignment_quality(similarity.transform_cameras(cameras), true.cameras)
    off = [
        float((float(similarity.scale) * one / other)[(one > 0) & (other > 0)].log().abs().median())
        for one, other in zip(depth, true.depth, strict=True)
    ]
    return Errors(max(quality.rotation_degrees), max(quality.translation_percent), 100 * max(off))


def verdict(before: Errors, after: Errors) -> str:
    """Of the poses: better, same or worse."""
    turn, way = after.rotation - before.rotation, after.translation - before.translation
    if turn > ROTATION or way > TRANSLATION:
        return "worse"
    return "better" if turn < -ROTATION or way < -TRANSLATION else "same"


def row(true: Photographs, degrees: float, percent: float, options: argparse.Namespace) -> str:
    """Cells of one scene and one size of the errors."""
    runs = []
    for seed in range(options.seeds):
        rough = roughened(true, degrees, percent, options.focal, seed)
        known = float(true.cameras.intrinsics[0, 0, 0]) if options.exif else None
        lenses = Lenses((0,) * len(true.images), (known,) * len(true.images))
        found = RefinedEstimator(rough).estimate(true.images, lenses=lenses)
        after = errors(found.cameras, depth_from_point_map(found.point_map, found.cameras), true)
        runs.append((errors(rough.cameras, rough.depth, true), after))
    means = [
        " → ".join(f"{sum(getattr(run[at], name) for run in runs) / len(runs):.{digits}f}{unit}" for at in range(2))
        for name, digits, unit in (("rotation", 2, "°"), ("translation", 1, " %"), ("depth", 1, " %"))
    ]
    verdicts = [verdict(*run) for run in runs]
    counts = " / ".join(str(verdicts.count(word)) for word in ("better", "same", "worse"))
    return f"{degrees:g}°, {percent:g} % | " + " | ".join(means) + f" | {counts}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refine", description=__doc__)
    parser.add_argument("rows", nargs="*", default=ROWS, help="SCENE=FIRST,STEP,COUNT")
    parser.add_argument("--root", type=Path, default=Path("../shared/scenes"), help="folder of posed scenes")
    parser.add_argument("--levels", nargs="+", default=LEVELS, help="DEGREES,PERCENT by which poses are off")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the errors")
    parser.add_argument("--focal", type=float, default=1.0, help="factor by which focal lengths are off")
    parser.add_argument("--exif", action="store_true", help="the true focal length is known from EXIF")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| photographs | off by | rotation | centre | depth | better / same / worse |\n|" + "---|" * 6)
    for text in options.rows:
        true = photographs(options.root, text)
        for level in options.levels:
            degrees, percent = map(float, level.split(","))
            name = f"{len(true.images)} of {text.partition('=')[0]}"
            print(f"| {name} | {row(true, degrees, percent, options)} |", flush=True)


if __name__ == "__main__":
    main()
