"""Pictures, videos and the splat file of an evaluated scene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from reconx_pl.evaluation.scene_result import SceneResult
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.files.atomic import atomic_write
from reconx_pl.geometry.cameras import interpolate_cameras
from reconx_pl.reconstruction.scene_builder import NEUTRAL_CONFIDENCE
from reconx_pl.splatting.io.ply import save_ply
from reconx_pl.splatting.renderers.base import Renderer
from reconx_pl.types import Cameras, Gaussians
from reconx_pl.visualization.color_maps import confidence_colors, depth_colors
from reconx_pl.visualization.contact_sheet import SheetRow, contact_sheet, error_image, spread, stacked
from reconx_pl.visualization.flythrough import Flythrough, render_flythrough
from reconx_pl.visualization.scene_page import write_fit_page
from reconx_pl.visualization.video import write_mp4

FLYTHROUGH_FRAMES, FLYTHROUGH_FPS = 60, 24.0
SLOWEST, FASTEST = 3.0, 30.0  # frames a second at which a generated clip can be watched


def scene_sheet(result: SceneResult, config: EvaluationConfig) -> Image.Image:
    """Contact sheet of a scene: input, generation, truth, splats and error.

    Of a clip each column is a frame, time to the right. Of a protocol entry, whose targets are elsewhere, the context
    views and what was generated between them stand above, the targets below.
    """
    if not result.task.views_in_clip:
        return stacked([_context_sheet(result, config), _target_sheet(result, config)])
    truth, images = result.task.views, result.given.images
    frames = len(truth)
    has = len(images) == frames  # something was generated
    between = result.targets or list(range(1, frames - 1))
    shown = [0, *(between[index] for index in spread(len(between), config.sheet_columns - 2)), frames - 1]
    ends = {0, frames - 1}
    rows = [
        SheetRow("input", [truth[index] if index in ends else None for index in shown]),
        *([SheetRow("generated", [None if at in ends else images[at] for at in shown])] if has else []),
        *_filled_row(result, [None if at in ends else at for at in shown]),
        *_scored_rows([(truth[index], result.rendered[index]) for index in shown], config),
    ]
    return contact_sheet(rows, [f"frame {index}" for index in shown], gain=config.error_gain)


def _filled_row(result: SceneResult, shown: Sequence[int | None]) -> list[SheetRow]:
    """What the depth of the input views gives without a network, beside what the network makes."""
    filled = result.filled
    if filled is None:
        return []
    return [SheetRow("filled render\nno network", [None if at is None else filled[at] for at in shown])]


def _scored_rows(pairs: Sequence[tuple[Tensor, Tensor]], config: EvaluationConfig) -> list[SheetRow]:
    """Truth, render, and their difference."""
    gain = config.error_gain
    return [
        SheetRow("ground truth", [truth for truth, _ in pairs]),
        SheetRow("splat render", [render for _, render in pairs]),
        SheetRow(
            f"error × {gain:g}\nof the splat render", [error_image(render, truth, gain) for truth, render in pairs]
        ),
    ]


def _context_sheet(result: SceneResult, config: EvaluationConfig) -> Image.Image:
    """Context views and generated frames in the order of visiting; generated ones fill what room the contexts leave."""
    task, images, places = result.task, result.given.images, result.given.input_places
    input_places = [places[index] for index in spread(len(places), config.sheet_columns - 1)]
    generated = [place for place in range(len(images)) if place not in places]
    room = min(config.sheet_columns - len(input_places), len(generated))
    shown = sorted({*input_places, *(generated[int((at + 0.5) * len(generated) / room)] for at in range(room))})
    names = {place: f"context {index}" for place, index in zip(places, task.inputs.indices, strict=True)}
    row = SheetRow("input and\ngenerated" if generated else "input", [images[place] for place in shown])
    return contact_sheet([row], [names.get(place, f"generated {place}") for place in shown])


def _target_sheet(result: SceneResult, config: EvaluationConfig) -> Image.Image:
    task = result.task
    if not task.targets:  # nothing is held out: the views that were fitted
        shown = spread(len(task.views), config.sheet_columns)
        pairs = [(task.views[at], result.rendered[at]) for at in shown]
        return contact_sheet(_scored_rows(pairs, config), [f"fitted {at}" for at in shown], gain=config.error_gain)
    shown = spread(len(task.targets), config.sheet_columns)
    pairs = [(task.views[task.targets[at]], result.rendered[task.targets[at]]) for at in shown]
    headers = [f"target {task.target_indices[at]}" for at in shown]
    rows = [*_filled_row(result, [task.targets[at] for at in shown]), *_scored_rows(pairs, config)]
    return contact_sheet(rows, headers, gain=config.error_gain)


def flythrough(gaussians: Gaussians, cameras: Cameras, renderer: Renderer) -> Flythrough:
    """The scene along the camera path of the clip, smooth however few frames the clip has."""
    count = max(FLYTHROUGH_FRAMES, len(cameras))
    path = interpolate_cameras(cameras, torch.linspace(0, len(cameras) - 1, count, dtype=torch.float64))
    return render_flythrough(gaussians, path, renderer)


def write_media(result: SceneResult, config: EvaluationConfig, renderer: Renderer, folder: Path) -> dict[str, str]:
    """Write contact_sheet.png, generated.mp4 with confidence.mp4 if something was, rendered.mp4, depth.mp4, scene.ply
    and scene.html.

    Returns:
        the names by what they are.
    """
    with atomic_write(folder / "contact_sheet.png") as unfinished:
        scene_sheet(result, config).save(unfinished)
    given = result.given
    files = {"contact_sheet": "contact_sheet.png"}
    if config.sheet_only:  # the others take as long as a short fit
        return files
    if len(given.images) > len(result.task.inputs):  # something was generated
        fps = min(max(result.task.inputs.fps, SLOWEST), FASTEST)
        neutral = torch.full_like(given.images[:, 0], NEUTRAL_CONFIDENCE)
        confidence = neutral if given.confidence is None else given.confidence
        write_mp4(given.images, folder / "generated.mp4", fps)
        write_mp4(confidence_colors(confidence), folder / "confidence.mp4", fps)
        files |= {"generated": "generated.mp4", "confidence": "confidence.mp4"}
    flown = flythrough(
        result.gaussians, result.task.view_cameras if result.task.views_in_clip else given.cameras, renderer
    )
    write_mp4(flown.frames, folder / "rendered.mp4", FLYTHROUGH_FPS)
    write_mp4(depth_colors(flown.depth), folder / "depth.mp4", FLYTHROUGH_FPS)
    save_ply(result.gaussians, folder / "scene.ply")
    key = result.task.inputs.key
    write_fit_page(folder / "scene.html", result.gaussians, given.images, given.cameras, given.input_places, key)
    made = {"rendered": "rendered.mp4", "depth": "depth.mp4", "splats": "scene.ply", "page": "scene.html"}
    return files | made
