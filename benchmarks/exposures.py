"""Gains of photographs: found how well, and when are photographs evened that should be left alone?

``python -m benchmarks.exposures --root FOLDER SCENE=COUNT...``. Photographs are chosen as in ``benchmarks.views``; the
true cameras and the points of a plane sweep give the gains: of the photographs as they were taken, and of the same with
known exposures. A row has, of the photographs as they were taken, the span of their exposures, the greatest departure
from the neighbours' (``geometry.exposure_gains.departures``) with how many times its error that is, and whether they
are evened; of the others whether they are, and by how much their gains are off.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.views import chosen_views
from reconx_pl.data.formats.readers import only_scene
from reconx_pl.data.packing.clip_sampling import crop_images
from reconx_pl.errors import BadSceneError
from reconx_pl.geometry.estimators.plane_sweep_estimator import PlaneSweepEstimator
from reconx_pl.geometry.exposure_gains import departures, exposure_gains, exposures_differ

SIZE = 192  # short side, pixels


def row(scene: Path, count: int, exposure: float) -> str:
    """Cells of one scene and number of photographs."""
    raw = only_scene(scene)
    given, _ = chosen_views(len(raw), count)
    height, width = raw.frames[0].height, raw.frames[0].width
    scale = SIZE / min(height, width)
    images, cameras = crop_images(raw, given, round(height * scale), round(width * scale))
    images, cameras = images.float() / 255, cameras.to(dtype=torch.float32)
    points = PlaneSweepEstimator().estimate(images, cameras).cloud.points
    found = exposure_gains(images, cameras, points)
    levels = found.brightness
    off = departures(levels, cameras.centers).abs()
    most = int(off.argmax())
    certain = off[most] / found.errors[most].mean()
    gains = 1.0 + exposure * torch.tensor([(1.0, -1.0, 0.0)[at % 3] for at in range(count)])
    other = exposure_gains((images * gains[:, None, None, None]).clamp(0, 1), cameras, points)
    wrong = other.brightness + gains.log() - levels
    wrong = (wrong - wrong.median()).abs().max()
    cells = [
        f"{100 * float((levels.max() - levels.min()).exp() - 1):.0f} %",
        f"{100 * float(off[most]):.1f} %, {float(certain):.0f}",
        *("yes" if exposures_differ(one, cameras) else "no" for one in (found, other)),
        f"{100 * float(wrong):.1f} %",
    ]
    return " | ".join(cells)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exposures", description=__doc__)
    parser.add_argument("rows", nargs="+", metavar="SCENE=COUNT")
    parser.add_argument("--root", type=Path, required=True, help="folder of posed scenes")
    parser.add_argument("--exposure", type=float, default=0.2, help="share by which photographs are brighter or darker")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| photographs | span | departure, times its error | evened | evened | gains off by |\n|" + "---|" * 6)
    for text in options.rows:
        name, _, count = text.partition("=")
        try:
            cells = row(options.root / name, int(count), options.exposure)
        except BadSceneError as error:
            cells = f"{str(error)[:60]} | | | | "
        print(f"| {count} of {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
