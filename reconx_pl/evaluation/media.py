"""Pictures, videos and the splat file of an evaluated scene."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from reconx_pl.evaluation.color_maps import confidence_colors, depth_colors
from reconx_pl.evaluation.contact_sheet import SheetRow, contact_sheet, error_image, spread
from reconx_pl.evaluation.flight import Flight, fly
from reconx_pl.evaluation.scene_result import SceneResult
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.evaluation.video import write_mp4
from reconx_pl.geometry.cameras import interpolate_cameras
from reconx_pl.splatting.ply import save_ply
from reconx_pl.splatting.renderer import Renderer
from reconx_pl.types import Cameras, Gaussians
from reconx_pl.whole_file import written_whole

FLIGHT_FRAMES, FLIGHT_FPS = 60, 24.0
SLOWEST, FASTEST = 3.0, 30.0  # frames a second at which a painted clip can be watched


def scene_sheet(result: SceneResult, config: EvaluationConfig) -> Image.Image:
    """Contact sheet of a scene: input, painting, truth, splats and error, time to the right.

    Of a clip the truth stands below the painted frames; of a benchmark entry, whose targets are elsewhere, to the right
    of them.
    """
    columns = _clip_columns(result, config) if result.task.in_painting else _entry_columns(result, config)
    gain = config.error_gain
    rows = [
        SheetRow("input", [column.input for column in columns]),
        SheetRow("generated", [column.painted for column in columns]),
        SheetRow("ground truth", [column.truth for column in columns]),
        SheetRow("splat render", [column.render for column in columns]),
        SheetRow(f"error × {gain:g}\nof the splat render", [column.error(gain) for column in columns]),
    ]
    return contact_sheet(rows, [column.header for column in columns], gain=gain)


@dataclass(frozen=True)
class _Column:
    header: str
    input: Tensor | None = None  # [3, H, W], as all of these
    painted: Tensor | None = None
    truth: Tensor | None = None
    render: Tensor | None = None

    def error(self, gain: float) -> Tensor | None:
        return None if self.render is None or self.truth is None else error_image(self.render, self.truth, gain)


def _clip_columns(result: SceneResult, config: EvaluationConfig) -> list[_Column]:
    """The ends and targets between."""
    truth, frames = result.task.views, len(result.painted)
    between = result.targets or list(range(1, frames - 1))
    shown = [0, *(between[index] for index in spread(len(between), config.sheet_columns - 2)), frames - 1]
    return [
        _Column(
            f"frame {index}",
            truth[index] if index in (0, frames - 1) else None,
            None if index in (0, frames - 1) else result.painted[index],
            truth[index],
            result.rendered[index],
        )
        for index in shown
    ]


def _entry_columns(result: SceneResult, config: EvaluationConfig) -> list[_Column]:
    """Context views and painted frames in the order of visiting, then targets; about half of the sheet each."""
    task, half = result.task, -(-config.sheet_columns // 2)
    known = [task.known[index] for index in spread(len(task.known), half)]
    painted = [place for place in range(len(result.painted)) if place not in task.known]
    room = max(half - len(known), 1)
    inner = {painted[round((at + 0.5) * len(painted) / room - 0.5)] for at in range(room)} if painted else set()
    columns = []
    for place in sorted({*known, *inner}):
        if place in known:
            view = task.known.index(place)
            columns.append(_Column(f"context {task.indices[view]}", input=task.images[view]))
        else:
            columns.append(_Column(f"painted {place}", painted=result.painted[place]))
    for target in spread(len(task.targets), max(config.sheet_columns - len(columns), 1)):
        place = task.targets[target]
        header = f"target {task.target_indices[target]}"
        columns.append(_Column(header, truth=task.views[place], render=result.rendered[place]))
    return columns


def flight(gaussians: Gaussians, cameras: Cameras, renderer: Renderer) -> Flight:
    """The scene along the camera path of the clip, smooth however few frames the clip has."""
    count = max(FLIGHT_FRAMES, len(cameras))
    path = interpolate_cameras(cameras, torch.linspace(0, len(cameras) - 1, count, dtype=torch.float64))
    return fly(gaussians, path, renderer)


def write_media(result: SceneResult, config: EvaluationConfig, renderer: Renderer, folder: Path) -> dict[str, str]:
    """Write contact_sheet.png, painted.mp4 with confidence.mp4, rendered.mp4 with depth.mp4, and scene.ply.

    Returns:
        the names by what they are.
    """
    with written_whole(folder / "contact_sheet.png") as unfinished:
        scene_sheet(result, config).save(unfinished)
    fps = min(max(result.task.clips[0].fps, SLOWEST), FASTEST)
    write_mp4(result.painted, folder / "painted.mp4", fps)
    write_mp4(confidence_colors(result.confidence), folder / "confidence.mp4", fps)
    flown = flight(result.gaussians, result.task.view_cameras if result.task.in_painting else result.cameras, renderer)
    write_mp4(flown.frames, folder / "rendered.mp4", FLIGHT_FPS)
    write_mp4(depth_colors(flown.depth), folder / "depth.mp4", FLIGHT_FPS)
    save_ply(result.gaussians, folder / "scene.ply")
    return {
        "contact_sheet": "contact_sheet.png",
        "painted": "painted.mp4",
        "confidence": "confidence.mp4",
        "rendered": "rendered.mp4",
        "depth": "depth.mp4",
        "splats": "scene.ply",
    }
