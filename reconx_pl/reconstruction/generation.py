"""Stage "generation": the frames from each photograph to the next, and back to the first where the path is closed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from reconx_pl.files.json_files import write_json
from reconx_pl.files.tensors import camera_tensors, cameras_of, load_tensors, save_tensors, to_bytes
from reconx_pl.geometry.camera_paths import orbit_path
from reconx_pl.geometry.closed_paths import path_through
from reconx_pl.geometry.point_maps import point_map_from_depth
from reconx_pl.reconstruction.camera_path import PathConfig, path_of
from reconx_pl.reconstruction.input_views import InputViews
from reconx_pl.reconstruction.orbit_windows import OrbitConfig, generate_orbit
from reconx_pl.reconstruction.pair_clips import pair_clips
from reconx_pl.reconstruction.path_sequence import generate_path
from reconx_pl.reconstruction.scene_builder import FrameSequence, generate_sequence
from reconx_pl.reconstruction.settings import GenerationConfig
from reconx_pl.reconstruction.view_generator import ViewGeneratorSource, checked_frames
from reconx_pl.reconstruction.views import Views, input_views
from reconx_pl.types import Clip, Progress
from reconx_pl.visualization.html import plural
from reconx_pl.visualization.video import write_mp4

VIDEO, SEQUENCE, PLACES = "generated.mp4", "sequence.safetensors", "places.json"
BETWEEN = ("interpolated", "viewcrafter")  # paths from each photograph to the next, which any model generates
_SLOWEST = 3.0  # frames a second at which generated frames can be watched


def is_loop(views: Views, config: GenerationConfig) -> bool:
    """Whether the generated frames lead from the last photograph back to the first."""
    return config.orbit_frames > 0 or (views.closed and config.loop == "auto")


def generate(
    views: Views,
    config: GenerationConfig,
    source: ViewGeneratorSource,
    seed: int,
    device: torch.device,
    folder: Path,
    progress: Progress,
) -> list[str]:
    """Generate, and write all frames with their cameras. Each clip is written as soon as it is there. Returns notes.

    Raises:
        BadSceneError: frames that are not finite, or a clip with too few points; names it.
        ConfigurationError: frames or a size that the model does not generate; with ``orbit_frames`` photographs that
            no circle passes through, or a model that cannot extrapolate.
    """
    _, height, width, fps = config.clip
    inputs = replace(
        input_views(views, height, width),
        closed=is_loop(views, config),
        fps=fps,
        caption=config.caption,
    )
    work = _Work(inputs, config, source, seed, device, folder, progress)
    with torch.inference_mode(False):
        if config.orbit_frames:
            made, note = _orbit(work)
        else:
            made, note = _between(work) if config.path in BETWEEN else _along(work)
    frames = to_bytes(made.images)
    save_tensors({"frames": frames, **camera_tensors(made.cameras)}, folder / SEQUENCE)
    write_json(folder / PLACES, {name: getattr(made, name) for name in ("input_places", "posed", "beside")})
    write_mp4(frames[: made.way].movedim(1, -1), folder / VIDEO, max(fps, _SLOWEST))
    return [note]


def read_sequence(folder: Path) -> FrameSequence:
    """What this stage left in its folder."""
    tensors = load_tensors(folder / SEQUENCE)
    described = json.loads((folder / PLACES).read_text(encoding="utf-8"))
    return FrameSequence(tensors.pop("frames").float().div_(255), cameras_of(tensors), **described)


@dataclass(frozen=True)
class _Work:
    """What both ways of generating need; see ``generate``."""

    inputs: InputViews
    config: GenerationConfig
    source: ViewGeneratorSource
    seed: int
    device: torch.device
    folder: Path
    progress: Progress


def _between(work: _Work) -> tuple[FrameSequence, str]:
    """From each photograph to the next. What is there is not generated again."""
    inputs, frames = work.inputs, work.config.clip.frames
    clips = pair_clips(inputs, frames)

    def keep(number: int, make: Callable[[], Tensor]) -> Tensor:
        file = work.folder / f"clip-{number:02d}.safetensors"
        if not file.is_file():
            save_tensors({"frames": make()}, file)
        return load_tensors(file)["frames"]

    path = path_of(PathConfig.parse(work.config.path), inputs.cameras, frames, closed=inputs.closed)
    made = generate_sequence(
        inputs, clips, work.source, work.seed, work.device, cameras=path.cameras, keep=keep, progress=work.progress
    )
    note = f"{frames - 2} frames generated between each of {len(clips)} pairs of photographs"
    return made, note + (", in a loop" if inputs.closed else "")


def _along(work: _Work) -> tuple[FrameSequence, str]:
    """Along any path of cameras. What is there is not generated again."""
    inputs, config, frames = work.inputs, work.config, work.config.clip.frames
    points = None if inputs.cloud is None else inputs.cloud.points
    if inputs.depth is not None:  # every pixel counts alike; the cloud, spread evenly in space, is mostly far away
        maps = point_map_from_depth(inputs.depth, inputs.cameras)
        points = maps.points[maps.valid]
    chosen = PathConfig.parse(config.path, config.path_frames)
    path = path_of(chosen, inputs.cameras, frames, points, inputs.closed)

    def keep(number: int, make: Callable[[], Tensor]) -> Tensor:
        file = work.folder / f"path-{number:03d}.safetensors"
        if not file.is_file():
            save_tensors({"frames": make()}, file)
        return load_tensors(file)["frames"]

    made = generate_path(inputs, path, work.source, frames, work.seed, work.device, keep=keep, progress=work.progress)
    through = sum(place is not None for place in path.places)
    met = f"through {through} of {plural(len(inputs), 'photograph')}"
    return made, f"{len(path)} frames generated along the path {chosen}, {met}"


class _KeptWindows:
    """A ``WindowGenerator`` that keeps every clip in a file, as 8-bit values: what the clips after it see of it."""

    def __init__(self, source: ViewGeneratorSource, folder: Path) -> None:
        self.source, self.folder = source, folder

    def generate(self, clip: Clip, generator: torch.Generator, *, end_condition_frame: int) -> Tensor:
        file = self.folder / f"{clip.key}.safetensors"
        if not file.is_file():
            generated = self.source.generate(clip, generator, end_condition_frame=end_condition_frame)
            save_tensors({"frames": to_bytes(checked_frames(generated, clip, "cpu"))}, file)
        return load_tensors(file)["frames"].float().div_(255)


def _orbit(work: _Work) -> tuple[FrameSequence, str]:
    """All around, closed on the first photograph (ReconX, V-D). What is there is not generated again."""
    inputs, config, cloud = work.inputs, work.config, work.inputs.cloud
    assert cloud is not None
    path, places = path_through(orbit_path(inputs.cameras, config.orbit_frames, cloud.points), inputs.cameras)
    clip = config.clip
    settings = OrbitConfig(clip.frames, config.end_condition_frame, clip.fps, config.caption, work.seed)
    windows = _KeptWindows(work.source, work.folder)
    frames = generate_orbit(inputs.images, places, path, cloud, windows, settings, work.device, work.progress)
    frames[places] = inputs.images
    made = FrameSequence(to_bytes(frames).float().div_(255), path, places)
    return made, f"{len(frames) - len(places)} frames generated all around, closed on the first"
