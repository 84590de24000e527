"""Do more photographs ever score worse? The same held-out photographs, from 2, 3, 4, ... photographs without poses.

``python -m benchmarks.views --root FOLDER --scenes NAME... --counts 3 8 --json FILE``. Of a window in the middle of a
scene every fourth photograph is held out. Of the others so many are given as a count says, evenly, to ``reconx
reconstruct`` without poses and without generation, with their focal length in EXIF. "Posed" is PSNR at the held-out
cameras, "refined" with each of them moved to where the scene explains its photograph best.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.reconstruct import configuration, score, withheld
from reconx_pl.data.formats.readers import only_scene
from reconx_pl.errors import BadCameraError, BadDataError, BadSceneError, ConfigurationError
from reconx_pl.files.json_files import write_json
from reconx_pl.geometry.default_estimator import named_estimator
from reconx_pl.reconstruction.run import reconstruct

COUNTS = (2, 3, 4, 6, 8, 12)
WINDOW = 17  # photographs: thirteen are left where every fourth is held out
WORSE = 0.3  # dB that a scene may lose by more photographs


def chosen_views(total: int, count: int) -> tuple[list[int], list[int]]:
    """Photographs that are given, and those that are held out, of a scene of ``total``; the latter for any count."""
    first = max(0, (total - WINDOW) // 2)
    window = range(first, min(total, first + WINDOW))
    held_out = [view for view in window if (view - first) % 4 == 2 and view != window[-1]]
    others = [view for view in window if view not in held_out]
    if count > len(others):
        raise BadSceneError(f"{len(others)} of {total} photographs are not held out, fewer than {count}")
    return [others[round(at * (len(others) - 1) / (count - 1))] for at in range(count)], held_out


def row(scene: Path, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Score of one scene from so many photographs; what went wrong where it has none."""
    try:
        raw = only_scene(scene)
        given, held_out = chosen_views(len(raw), count)
        folder = options.out / f"{scene.name}-{count}"
        names = withheld(raw, given, folder / "given", options.exposure)
        config = configuration(options.config)
        fit = replace(config.fit, steps=options.steps)
        config = replace(config, short_side=options.size, even_exposures=options.even_exposures, fit=fit)
        estimator = named_estimator(options.geometry)
        made = reconstruct([folder / "given"], folder / "made", config, estimator, None, overwrite=True)
        found = score(raw, made, names, held_out, folder / "held_out.png", any_exposure=options.exposure > 0)
    except (BadSceneError, BadCameraError, BadDataError) as error:
        return {"count": count, "failed": str(error)}
    return {
        "count": count,
        "posed_psnr": found.psnr["posed"],
        "refined_psnr": found.psnr["refined"],
        "nearest_psnr": found.psnr["nearest photograph"],
        "posed_ssim": found.ssim["posed"],
        "refined_ssim": found.ssim["refined"],
        "rotation_degrees": max(found.poses.rotation_degrees),
        "translation_percent": max(found.poses.translation_percent),
        "focal": found.focal,
    }


def losses(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Counts that score more than ``WORSE`` below a smaller one, posed, or fail where a smaller one does not."""
    found, best = [], None
    for one in sorted(rows, key=lambda one: one["count"]):
        if best is not None and one.get("posed_psnr", -1.0) < best["posed_psnr"] - WORSE:
            lost = f"{best['posed_psnr'] - one['posed_psnr']:.2f} dB worse" if "posed_psnr" in one else "no scene"
            found.append(f"{one['count']} photographs: {lost} than {best['count']}")
        if "posed_psnr" in one and (best is None or one["posed_psnr"] > best["posed_psnr"]):
            best = one
    return found


def table(scenes: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = [
        "| scene | photographs | posed | refined | nearest | rotation, centre, focal length |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows in scenes.items():
        for one in rows:
            if "failed" in one:
                lines.append(f"| {name} | {one['count']} | {one['failed'].split(':')[0][:60]} | | | |")
                continue
            scores = " | ".join(f"{one[key]:.2f}" for key in ("posed_psnr", "refined_psnr", "nearest_psnr"))
            poses = f"{one['rotation_degrees']:.2f}°, {one['translation_percent']:.1f} %, {100 * one['focal']:+.1f} %"
            lines.append(f"| {name} | {one['count']} | {scores} | {poses} |")
    return "\n".join(lines)


def plot(scenes: Mapping[str, Sequence[Mapping[str, Any]]], file: Path) -> None:
    """Posed PSNR over the number of photographs, a line a scene."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, rows in scenes.items():
        scored = [one for one in rows if "posed_psnr" in one]
        axes.plot([one["count"] for one in scored], [one["posed_psnr"] for one in scored], marker="o", label=name)
    axes.set(xlabel="photographs", ylabel="PSNR at held-out cameras, dB")
    axes.legend(fontsize="small")
    figure.savefig(file)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.views", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of posed scenes")
    parser.add_argument("--scenes", nargs="+", required=True, help="folders in --root")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--geometry", default="colmap", choices=("auto", "da3-base", "da3-small", "dust3r", "colmap"))
    parser.add_argument("--config", type=Path, default=Path("configs/reconstruct_cpu.yaml"))
    parser.add_argument("--steps", type=int, default=400, help="of the fit")
    parser.add_argument("--size", type=int, default=192, help="short side of the fit, pixels")
    parser.add_argument("--exposure", type=float, default=0.0, help="share by which photographs are brighter or darker")
    parser.add_argument("--even_exposures", default="auto", choices=("auto", "always", "never"))
    parser.add_argument("--out", type=Path, default=Path("runs/views"), help="for scenes and pictures")
    parser.add_argument("--json", type=Path, help="the figures")
    parser.add_argument("--plot", type=Path, help="a picture of them")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if min(options.counts) < 2:
        raise ConfigurationError(f"--counts are 2 or more photographs, got {options.counts}")
    torch.set_num_threads(options.threads)
    scenes: dict[str, list[dict[str, Any]]] = {}
    for name in options.scenes:
        for count in sorted(options.counts):
            scenes.setdefault(name, []).append(row(options.root / name, count, options))
            print(json.dumps({name: scenes[name][-1]}), flush=True)
            if options.json:
                write_json(options.json, {"geometry": options.geometry, "scenes": scenes})
    print(table(scenes))
    for name, rows in scenes.items():
        for line in losses(rows):
            print(f"{name}: {line}")
    if options.plot:
        plot(scenes, options.plot)


if __name__ == "__main__":
    main()
