"""Where the chain had two variants: which is the method (reconx_pl/reconstruction/scene_builder.py).

``python -m benchmarks.chain photographs``: fits to photographs alone, with known cameras and plane-sweep depth (real
scenes) or exact depth (procedural ones): does it help to weigh pixels by the confidence of their depth, and to start
from the points of the cloud that no depth map explains, too? PSNR on views between, three seeds.
``python -m benchmarks.chain alignment``: frames between three views held fixed, aligned all at once or from each view
to the next: errors of the frames' cameras, pairs, processor time. The pairs are made up, as in benchmarks.alignment.

The defaults were chosen on the scenes of the first group alone; those of the second confirm them or not.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.alignment import made_up_pairs
from benchmarks.posed_scenes import posed_scene
from reconx_pl.data.procedural import procedural_clip
from reconx_pl.geometry.alignment.align import align
from reconx_pl.geometry.alignment.options import AlignmentOptions, FixedViews
from reconx_pl.geometry.estimators.pair_predictions import PairPredictions
from reconx_pl.geometry.estimators.plane_sweep_estimator import PlaneSweepEstimator
from reconx_pl.geometry.point_maps import depth_from_point_map
from reconx_pl.metrics.image import psnr
from reconx_pl.reconstruction.input_views import InputViews
from reconx_pl.reconstruction.scene_builder import FitInput, SceneConfig, fit_scene, input_sequence, start_points
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.losses import LossWeights
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.types import Cameras

CHOSEN_ON = ("llff_fern", "banana", "re10k_0bf152ef84195293", "procedural-3000000", "procedural-3000001")
REPORTED_ON = (
    *("ingp_fox", "brighton_beach", "mid_templeRing", "re10k_3c35b868a8ec3433", "re10k_0f47577ab3441480"),
    *("procedural-4000000", "procedural-4000001"),
)
SPREAD = 6  # photographs from each input view to the next
WEIGHTS, POINTS = ("uniform", "confidence of depth"), ("depth alone", "and the cloud")


@dataclass(frozen=True)
class Case:
    """Input views with their geometry, and the true views between them."""

    inputs: InputViews
    images: Tensor
    cameras: Cameras


def real(folder: Path, short_side: int) -> Case:
    """Three photographs around the middle of a scene; those half-way between are scored."""
    scene = posed_scene(folder, short_side)
    middle = len(scene.frames) // 2
    chosen = [max(0, middle - SPREAD), middle, min(len(scene.frames) - 1, middle + SPREAD)]
    targets = [(a + b) // 2 for a, b in zip(chosen, chosen[1:], strict=False)]
    images, cameras = scene.frames[chosen], scene.cameras[chosen]
    found = PlaneSweepEstimator().estimate(images, cameras)
    depth = depth_from_point_map(found.point_map, cameras)
    sparse = found.cloud
    inputs = InputViews(scene.name, images, cameras, sparse, depth, found.point_map.confidence, measured=False)
    return Case(inputs, scene.frames[targets], scene.cameras[targets])


def procedural(name: str, size: int) -> Case:
    """Both ends of a procedural clip, with exact depth of nine pixels in ten, and its inner frames."""
    clip = procedural_clip(int(name.split("-")[1]), frames=5, size=(size, size))
    ends = [0, 4]
    assert clip.depth is not None
    kept = torch.rand(clip.depth.shape, generator=torch.Generator().manual_seed(0)) < 0.9
    inputs = InputViews(name, clip.images[ends], clip.cameras[ends], clip.cloud, clip.depth * kept, clip.confidence)
    return Case(inputs, clip.images[1:4], clip.cameras[1:4])


def variants(inputs: InputViews, config: SceneConfig) -> Iterator[tuple[tuple[str, str], FitInput]]:
    for weights, points in product(WEIGHTS, POINTS):
        own = inputs if points == POINTS[1] else replace(inputs, cloud=None)
        start = start_points(own, input_sequence(own), None, config)
        confidence = inputs.confidence if weights == WEIGHTS[1] else None
        given = FitInput(inputs.images, inputs.cameras, confidence, list(range(len(inputs))), start)
        yield (weights, points), given


def photographs(root: Path, size: int, steps: int, seeds: int) -> None:
    renderer = default_renderer("cpu")
    pairs = list(product(WEIGHTS, POINTS))
    print(f"{'':24s}" + "".join(f"{' / '.join(pair):>36s}" for pair in pairs))
    for title, names in (("chosen on", CHOSEN_ON), ("reported on", REPORTED_ON)):
        rows = []
        for name in names:
            case = procedural(name, size) if name.startswith("procedural") else real(root / name, size)
            scores: dict[tuple[str, str], list[float]] = {pair: [] for pair in pairs}
            for seed in range(seeds):
                loss = LossWeights(lpips=0.0)
                config = SceneConfig(fit=FitConfig(steps=steps, loss=loss), seed=seed)
                for pair, given in variants(case.inputs, config):
                    fitted = fit_scene(given, config, case.inputs.key, renderer=renderer)
                    with torch.no_grad():
                        shown = renderer.render(fitted.gaussians, case.cameras).color.clamp(0, 1)
                    scores[pair].append(float(psnr(shown, case.images).mean()))
            rows.append([statistics.mean(scores[pair]) for pair in pairs])
            spread = max(max(values) - min(values) for values in scores.values())
            text = "".join(f"{value:36.2f}" for value in rows[-1])
            print(f"{name:24s}{text}   seeds within {spread:.2f}", flush=True)
        means = "".join(f"{statistics.mean(column):36.2f}" for column in zip(*rows, strict=True))
        print(f"{title + ', mean':24s}{means}\n", flush=True)


def part_of(pairs: PairPredictions, views: Sequence[int]) -> PairPredictions:
    """The pairs among some of the views, which are numbered anew."""
    place = {view: number for number, view in enumerate(views)}
    rows = [row for row, pair in enumerate(pairs.edges.tolist()) if pair[0] in place and pair[1] in place]
    edges = torch.tensor([[place[view] for view in pairs.edges[row].tolist()] for row in rows])
    return PairPredictions(edges, [pairs.points[row] for row in rows], [pairs.confidence[row] for row in rows])


def alignment(frames: int, height: int, width: int) -> None:
    places = [0, frames - 1, 2 * (frames - 1)]
    pairs, cameras = made_up_pairs(2 * frames - 1, height, width)
    held = torch.zeros(2 * frames - 1, dtype=torch.bool)
    held[places] = True
    between = [view for view in range(len(held)) if not held[view]]
    print(f"{'':24s}{'pairs':>8s}{'centres off, %':>16s}{'turned, degrees':>17s}{'seconds':>9s}")
    for title, groups in (
        ("all frames at once", [list(range(2 * frames - 1))]),
        ("each view to the next", [list(range(frames)), list(range(frames - 1, 2 * frames - 1))]),
    ):
        found, started, count = cameras.world_to_camera.clone(), time.process_time(), 0
        for views in groups:
            chosen = part_of(pairs, views)
            fixed = FixedViews.of(cameras[views], poses=held[views], lenses=held[views])
            made = align(chosen, AlignmentOptions(), fixed)
            found[views], count = made.world_to_camera.to(found), count + len(chosen.edges)
        seconds = time.process_time() - started
        true = cameras.world_to_camera[between].double()
        ours = found[between].double()
        off = (torch.linalg.inv(ours)[:, :3, 3] - torch.linalg.inv(true)[:, :3, 3]).norm(dim=1)
        base = float((cameras.centers[places[0]] - cameras.centers[places[-1]]).norm())
        trace = torch.einsum("vij,vij->v", ours[:, :3, :3], true[:, :3, :3])
        turned = torch.rad2deg(((trace - 1) / 2).clamp(-1, 1).acos())
        print(f"{title:24s}{count:8d}{100 * float(off.mean()) / base:16.3f}{float(turned.mean()):17.4f}{seconds:9.1f}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chain", description=__doc__)
    parser.add_argument("what", choices=("photographs", "alignment"))
    parser.add_argument("--root", type=Path, default=Path("../shared/scenes"), help="folder of posed scenes")
    parser.add_argument("--size", type=int, default=128, help="short side of the images, pixels")
    parser.add_argument("--steps", type=int, default=300, help="of a fit")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=8, help="of a clip from one view to the next")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.what == "photographs":
        photographs(options.root, options.size, options.steps, options.seeds)
    else:
        alignment(options.frames, 24, 32)


if __name__ == "__main__":
    main()
