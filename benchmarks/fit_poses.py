"""Should the fit move the cameras of real photographs that an estimator found? With and without, on held-out ones.

``python -m benchmarks.fit_poses --root FOLDER SCENE=COUNT...``. Photographs are chosen, given without poses and fitted
as in ``benchmarks.views``: with the cameras as they were found, and with ``PoseRefinement`` of all but the first, at
each of ``--rates``. "Posed" is PSNR at the held-out cameras, which a similarity brings to those of the fit, "refined"
with each of them moved to where the scene explains its photograph best.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.reconstruct import REFINING, configuration, withheld
from benchmarks.views import chosen_views
from reconx_pl.data.formats.readers import only_scene
from reconx_pl.data.packing.clip_sampling import crop_images
from reconx_pl.evaluation.target_poses import refined_targets
from reconx_pl.geometry.default_estimator import named_estimator
from reconx_pl.geometry.similarity import alignment_quality, fit_cameras
from reconx_pl.metrics.image import psnr
from reconx_pl.reconstruction.frames import read_fit_input
from reconx_pl.reconstruction.run import reconstruct
from reconx_pl.reconstruction.settings import FRAMES
from reconx_pl.splatting.fit import fit
from reconx_pl.splatting.pose_refinement import PoseRefinement
from reconx_pl.splatting.renderers.choose import default_renderer


def rows(scene: Path, count: int, options: argparse.Namespace) -> list[str]:
    """Lines of the table: the cameras as found, and refined at each rate."""
    raw = only_scene(scene)
    given, held_out = chosen_views(len(raw), count)
    folder = options.out / f"{scene.name}-{count}"
    names = withheld(raw, given, folder / "given")
    config = configuration(Path("configs/reconstruct_cpu.yaml"))
    config = replace(config, short_side=options.size, fit=replace(config.fit, steps=options.steps))
    estimator = named_estimator("colmap")
    made = reconstruct([folder / "given"], folder / "made", config, estimator, None, stages=[FRAMES], overwrite=True)
    assert made.views is not None
    numbers = [names[name] for name in made.views.names]
    frames = read_fit_input(made.stages[-1].folder)
    images, cameras = crop_images(raw, held_out, frames.cameras.height, frames.cameras.width)
    truth, true = images.float() / 255, raw.cameras[numbers]
    renderer, lines = default_renderer(torch.device("cpu")), []
    for rate in (None, *options.rates):
        # a share of the distance that moves the picture as far as the turn does
        poses = None if rate is None else PoseRefinement(rotation=rate, translation=rate * 0.02)
        own = replace(config.fit, poses=poses)
        done = fit(frames.images, frames.cameras, None, frames.start, own, renderer=renderer, input_views=(0,))
        found = done.cameras.to(dtype=torch.float64)
        placed = fit_cameras(true, found).transform_cameras(cameras).to(dtype=torch.float32)
        best = refined_targets(done.gaussians, truth, placed, frames.cameras[0], REFINING, renderer)
        with torch.no_grad():
            drawn = [renderer.render(done.gaussians, views).color.clamp(0, 1) for views in (placed, best)]
        scores = " | ".join(f"{float(psnr(one, truth).mean()):.2f}" for one in drawn)
        off = alignment_quality(fit_cameras(found, true).transform_cameras(found), true)
        poses_off = f"{max(off.rotation_degrees):.2f}°, {max(off.translation_percent):.1f} %"
        lines.append(
            f"| {count} of {scene.name} | {'as found' if rate is None else f'{rate:g}°'} | {scores} | {poses_off} |"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fit_poses", description=__doc__)
    parser.add_argument("rows", nargs="+", metavar="SCENE=COUNT")
    parser.add_argument("--root", type=Path, required=True, help="folder of posed scenes")
    parser.add_argument("--rates", type=float, nargs="*", default=[0.02, 0.2], help="degrees, see PoseRefinement")
    parser.add_argument("--steps", type=int, default=400, help="of the fit")
    parser.add_argument("--size", type=int, default=192, help="short side of the fit, pixels")
    parser.add_argument("--out", type=Path, default=Path("runs/fit_poses"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| photographs | cameras of the fit | posed | refined | rotation, centre |\n|---|---|---|---|---|")
    for text in options.rows:
        name, _, count = text.partition("=")
        for line in rows(options.root / name, int(count), options):
            print(line, flush=True)


if __name__ == "__main__":
    main()
