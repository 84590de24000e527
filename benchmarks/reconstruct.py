"""``reconx reconstruct`` on photographs whose poses are withheld, scored on photographs that it never saw.

The found cameras are brought to those of the data set by a similarity, and the scene is rendered where the held-out
photographs were taken ("posed"). That counts errors of the found poses as errors of the scene. Beside it stands the
score with each held-out camera moved to where the finished scene explains its photograph best ("refined").
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from reconx_pl.cli.reconstruct import config_of, reconstruct_parser
from reconx_pl.data.formats.posed import write_posed
from reconx_pl.data.formats.readers import only_scene
from reconx_pl.data.formats.scene import RawScene, frames_in_memory
from reconx_pl.data.packing.clip_sampling import crop_images
from reconx_pl.data.procedural import procedural_scene, render_scene
from reconx_pl.evaluation.target_poses import refined_targets
from reconx_pl.geometry.default_estimator import named_estimator
from reconx_pl.geometry.estimators.colmap import ColmapEstimator
from reconx_pl.geometry.similarity import alignment_quality, fit_cameras
from reconx_pl.metrics.image import psnr, ssim
from reconx_pl.reconstruction.frames import read_input_cameras
from reconx_pl.reconstruction.run import Reconstructed, reconstruct
from reconx_pl.reconstruction.settings import FRAMES, ReconstructionConfig
from reconx_pl.reconstruction.views import input_views
from reconx_pl.splatting.io.scene_files import load_scene
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.training.models import model_source
from reconx_pl.types import AlignmentQuality
from reconx_pl.visualization.contact_sheet import SheetRow, contact_sheet, error_image

GAIN = 4.0  # of the error row
ROOM_SIZE = 384, 384  # rows, columns of a procedural photograph
REFINING = 60  # steps
PIXELS_PER_MM = 100  # of a sensor; any number goes


@dataclass(frozen=True)
class Case:
    """Which photographs of a scene are given, and which score it."""

    scene: str
    given: tuple[int, ...]
    held_out: tuple[int, ...]


CASES = (
    Case("ingp_fox", (10, 14), (11, 12, 13)),
    Case("llff_fern", (6, 9, 13), (7, 8, 10, 11, 12)),
    Case("llff_fern", (0, 3, 6, 8, 11, 13, 16, 19), (4, 7, 10, 14)),
)


def configuration(path: Path) -> ReconstructionConfig:
    """What a file for ``reconx reconstruct --config`` says."""
    parser = reconstruct_parser()
    chosen = parser.parse_args(["photographs", "-o", "out", "--config", str(path)])
    return config_of(vars(parser.instantiate_classes(chosen)))


def write_room(folder: Path, seed: int) -> None:
    """Nine photographs along the path of a procedural room, as a posed scene."""
    made = procedural_scene(seed, "room", 1.0)
    cameras = made.path.cameras(np.linspace(0.0, 1.0, 9), *ROOM_SIZE)
    images = render_scene(made.scene, cameras, 2).frames.permute(0, 2, 3, 1).numpy()
    frames = frames_in_memory(images, cameras, [f"view {view}" for view in range(len(images))])
    write_posed(RawScene(f"room-{seed}", "procedural", frames, folder), folder)


def withheld(raw: RawScene, given: Sequence[int], folder: Path, exposure: float = 0.0) -> dict[str, int]:
    """Write the given photographs as a camera would: focal length in EXIF, no poses, in an order that says nothing.

    Args:
        raw: the scene.
        given: numbers of the photographs.
        folder: gets them.
        exposure: share by which the first is brighter and the second darker, the third as it was, and so on.

    Returns:
        name -> number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shuffled = list(given)
    random.Random(0).shuffle(shuffled)
    names = {f"img{place}.jpg": view for place, view in enumerate(shuffled)}
    for name, view in names.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Maker", "Camera"
        exif.get_ifd(ExifTags.IFD.Exif).update(
            {
                ExifTags.Base.FocalLength: float(raw.frames[view].intrinsics[0, 0]) / PIXELS_PER_MM,
                ExifTags.Base.FocalPlaneXResolution: 10.0 * PIXELS_PER_MM,
                ExifTags.Base.FocalPlaneResolutionUnit: 3,  # centimetres
            }
        )
        gain = 1.0 + exposure * (1.0, -1.0, 0.0)[list(given).index(view) % 3]
        image = np.rint(raw.load_image(view) * gain).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / name, quality=95, exif=exif)
    return names


@dataclass(frozen=True)
class Score:
    """PSNR and SSIM of each way to place the held-out cameras, and how far the found cameras are off."""

    psnr: dict[str, float]
    ssim: dict[str, float]
    poses: AlignmentQuality
    focal: float  # median of found over true, less 1
    order: list[int]
    closed: bool


def score(
    raw: RawScene,
    made: Reconstructed,
    names: dict[str, int],
    held_out: Sequence[int],
    picture: Path,
    any_exposure: bool = False,
) -> Score:
    """Score a scene at the held-out photographs, and draw them; ``any_exposure`` takes the best one gain of all."""
    views = made.views
    assert views is not None and made.scene is not None
    numbers = [names[name] for name in views.names]
    true = raw.cameras
    found = views.scene.cameras
    placed = fit_cameras(true[numbers], found)  # the data set's world into the one that was found
    quality = alignment_quality(fit_cameras(found, true[numbers]).transform_cameras(found), true[numbers])
    fitted = next(stage.folder for stage in made.stages if stage.name == FRAMES)
    size = read_input_cameras(fitted)
    height, width = size.height, size.width
    images, cameras = crop_images(raw, held_out, height, width)
    moved = placed.transform_cameras(cameras).to(dtype=torch.float32)
    gaussians, renderer = load_scene(made.scene), default_renderer(torch.device("cpu"))
    truth = images.float() / 255
    with torch.no_grad():
        posed = renderer.render(gaussians, moved).color.clamp(0, 1)
    anchor = input_views(views, height, width).cameras[0]
    refined = refined_targets(gaussians, truth, moved, anchor, REFINING, renderer)
    with torch.no_grad():
        best = renderer.render(gaussians, refined).color.clamp(0, 1)
    nearest = truth.new_tensor(_nearest(raw, numbers, held_out, height, width))
    rows = [
        SheetRow("photograph", list(truth)),
        SheetRow("posed", list(posed)),
        SheetRow("refined", list(best)),
        SheetRow(f"error × {GAIN:g}", [error_image(a, b, GAIN) for a, b in zip(best, truth, strict=True)]),
    ]
    contact_sheet(rows, [f"view {view}" for view in held_out], gain=GAIN).save(picture)
    pictures = {"posed": posed, "refined": best, "nearest photograph": nearest}
    if any_exposure:
        pictures = {label: drawn * one_gain(drawn, truth) for label, drawn in pictures.items()}
    # of photographs whose shape was changed nothing but their size, so that focal lengths compare by the width
    share = found.intrinsics[:, 0, 0] / found.width / (true.intrinsics[numbers, 0, 0] / true.width)
    return Score(
        {label: float(psnr(drawn, truth).mean()) for label, drawn in pictures.items()},
        {label: float(ssim(drawn, truth).mean()) for label, drawn in pictures.items()},
        quality,
        float(share.median()) - 1,
        numbers,
        views.closed,
    )


def one_gain(pictures: Tensor, truth: Tensor) -> Tensor:
    """The factor of all pictures together that brings them nearest to the truth, by least squares."""
    return (pictures * truth).sum() / pictures.square().sum()


def as_text(scored: Score, made: Reconstructed) -> str:
    parts = [f"{label} {value:.2f} dB, SSIM {scored.ssim[label]:.3f}" for label, value in scored.psnr.items()]
    stages = ", ".join(
        f"{stage.name} {stage.seconds:.0f} s {stage.peak_memory / 2**30:.1f} GiB" for stage in made.stages
    )
    return (
        f"{'; '.join(parts)}\n  poses: {scored.poses}; focal length {100 * scored.focal:+.1f} %\n"
        f"  order: {scored.order}, closed: {scored.closed}\n  stages: {stages}"
    )


def _nearest(raw: RawScene, given: Sequence[int], held_out: Sequence[int], height: int, width: int) -> np.ndarray:
    """[M, 3, H, W]: of each held-out view the given photograph whose camera stands nearest."""
    centers = raw.cameras.centers
    distance = torch.cdist(centers[list(held_out)], centers[list(given)])
    images, _ = crop_images(raw, [given[at] for at in distance.argmin(dim=1).tolist()], height, width)
    return (images.float() / 255).numpy()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reconstruct", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("../shared/scenes"), help="folder of posed scenes")
    parser.add_argument("--scenes", nargs="*", help="of them, as NAME-COUNT; default: all three cases")
    parser.add_argument("--procedural", type=int, nargs="*", help="seeds of procedural rooms in place of --root")
    parser.add_argument("--out", type=Path, default=Path("runs/reconstruct"))
    parser.add_argument("--config", type=Path, default=Path("configs/reconstruct_cpu.yaml"))
    parser.add_argument("--model", help="who generates; default: nobody")
    parser.add_argument(
        "--geometry",
        default="colmap",
        choices=("auto", "da3-base", "da3-small", "dust3r", "colmap", "sparse"),
        help="sparse: colmap without the plane sweep",
    )
    parser.add_argument("--steps", type=int, help="of the fit; default: the file's")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    config = configuration(options.config)
    if options.steps is not None:
        config = replace(config, fit=replace(config.fit, steps=options.steps))
    view_generator = None if options.model is None else model_source(options.model)
    if options.procedural is None:
        cases = [
            (case, options.root / case.scene)
            for case in CASES
            if not options.scenes or f"{case.scene}-{len(case.given)}" in options.scenes
        ]
    else:
        cases = []
        for seed in options.procedural:
            folder = options.out / f"room-{seed}"
            if not folder.exists():
                write_room(folder, seed)
            cases.append((Case(folder.name, (0, 4, 8), (1, 2, 3, 5, 6, 7)), folder))
    for case, folder in cases:
        raw = only_scene(folder)
        name = f"{case.scene}-{len(case.given)}-{'generated' if view_generator else 'photographs'}"
        given = options.out / f"{case.scene}-{len(case.given)}-given"
        names = withheld(raw, case.given, given)
        made = reconstruct(
            [given],
            options.out / name,
            config,
            ColmapEstimator() if options.geometry == "sparse" else named_estimator(options.geometry),
            view_generator,
        )
        line = as_text(score(raw, made, names, case.held_out, options.out / f"{name}.png"), made)
        print(f"{name}: {len(case.given)} photographs, {len(case.held_out)} held out: {line}", flush=True)


if __name__ == "__main__":
    main()
