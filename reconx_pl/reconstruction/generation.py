"""Stage "generation": the frames from each photograph to the next, and back to the first where the path is closed."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.evaluation.entry_views import BenchmarkViews
from reconx_pl.files.json_files import write_json
from reconx_pl.files.tensors import camera_tensors, cameras_of, load_tensors, save_tensors, to_bytes
from reconx_pl.geometry.camera_paths import orbit_path
from reconx_pl.geometry.closed_paths import path_through
from reconx_pl.reconstruction.orbit_windows import OrbitConfig, WindowGenerator, generate_orbit
from reconx_pl.reconstruction.pair_clips import pair_clips, path_cameras
from reconx_pl.reconstruction.settings import KEY, GenerationConfig
from reconx_pl.reconstruction.stages import Step
from reconx_pl.reconstruction.view_generator import ViewGenerator, ViewGeneratorSource, checked_frames, generated_frames
from reconx_pl.reconstruction.views import CroppedViews, Views, crop_views
from reconx_pl.types import Cameras, Clip
from reconx_pl.visualization.video import write_mp4

VIDEO, SEQUENCE, PLACES = "generated.mp4", "sequence.safetensors", "places.json"
_PARTS = 1000  # of a clip, in progress
_SLOWEST = 3.0  # frames a second at which generated frames can be watched


@dataclass(frozen=True)
class GeneratedSequence:
    """All frames in their order, photographs and generated ones.

    Attributes:
        frames: [S, 3, h, w] uint8, the photographs to the bit.
        cameras: S views: those of the photographs, and between them the path that was generated along.
        input_places: places of the photographs, in the order of visiting.
    """

    frames: Tensor
    cameras: Cameras
    input_places: list[int]


@dataclass(frozen=True)
class _Work:
    """What both ways of generation need; see ``generate``."""

    views: Views
    cut: CroppedViews
    config: GenerationConfig
    source: ViewGeneratorSource
    seed: int
    device: torch.device
    folder: Path
    step: Step


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
    step: Step,
) -> list[str]:
    """Generate, and write all frames with their cameras. Returns notes.

    Raises:
        BadSceneError: frames that are not finite, or a clip with too few points; names it.
        ConfigurationError: frames or a size that the model does not generate; with ``orbit_frames`` photographs that no
            circle passes through, or a view generator that cannot extrapolate.
    """
    work = _Work(views, crop_views(views, config.height, config.width), config, source, seed, device, folder, step)
    made, note = (_orbit if config.orbit_frames else _between)(work)
    save_tensors({"frames": made.frames, **camera_tensors(made.cameras)}, folder / SEQUENCE)
    write_json(folder / PLACES, {"input_places": made.input_places})
    write_mp4(made.frames.movedim(1, -1), folder / VIDEO, max(config.fps, _SLOWEST))
    return [note]


def read_generated(folder: Path) -> GeneratedSequence:
    """What this stage left in its folder."""
    tensors = load_tensors(folder / SEQUENCE)
    input_places = json.loads((folder / PLACES).read_text(encoding="utf-8"))["input_places"]
    return GeneratedSequence(tensors["frames"], cameras_of(tensors), input_places)


def input_places_of(views: int, frames: int) -> list[int]:
    """Places of the photographs among all frames of clips of ``frames`` frames."""
    return [view * (frames - 1) for view in range(views)]


def _between(work: _Work) -> tuple[GeneratedSequence, str]:
    """From each photograph to the next. Each clip is written as soon as it is there, and not generated again."""
    cut, config = work.cut, work.config
    loop = is_loop(work.views, config)
    order = [*range(len(cut.cameras)), *([0] if loop else [])]
    clips = _clips(work, order)
    view_generator: ViewGenerator | None = None
    whole = _PARTS * len(clips)
    parts = []
    for number, clip in enumerate(clips):
        file = work.folder / f"clip-{number:02d}.safetensors"
        if not file.is_file():
            view_generator = view_generator or work.source.load()
            work.step(_PARTS * number, whole)

            def within(done: int, of: int, number: int = number) -> None:
                work.step(_PARTS * number + _PARTS * done // of, whole)

            with torch.inference_mode(False):
                frames = generated_frames(clip, view_generator, work.seed, work.device, within)
            save_tensors({"frames": to_bytes(frames)}, file)
        parts.append(load_tensors(file)["frames"])
    frames = torch.cat([parts[0], *(part[1:] for part in parts[1:])])
    cameras = path_cameras(cut.cameras[order], config.frames)
    kept = list(range(len(frames) - 1 if loop else len(frames)))  # of a loop the first photograph comes once
    input_places = input_places_of(len(cut.cameras), config.frames)
    frames = frames[kept]
    frames[input_places] = cut.images
    note = f"{config.frames - 2} frames generated between each of {len(clips)} pairs of photographs"
    return GeneratedSequence(frames, cameras[kept], input_places), note + (", in a loop" if loop else "")


class _KeptWindows:
    """A ``WindowGenerator`` that keeps every clip in a file, as 8-bit values: what the clips after it see of it."""

    def __init__(self, source: ViewGeneratorSource, folder: Path) -> None:
        self.source, self.folder = source, folder
        self.view_generator: WindowGenerator | None = None

    def generate(self, clip: Clip, generator: torch.Generator, *, end_condition_frame: int) -> Tensor:
        file = self.folder / f"{clip.key}.safetensors"
        if not file.is_file():
            generated = self._loaded().generate(clip, generator, end_condition_frame=end_condition_frame)
            save_tensors({"frames": to_bytes(checked_frames(generated, clip, "cpu"))}, file)
        return load_tensors(file)["frames"].float().div_(255)

    def _loaded(self) -> WindowGenerator:
        if self.view_generator is None:
            view_generator = self.source.load()
            if "end_condition_frame" not in inspect.signature(view_generator.generate).parameters:
                raise ConfigurationError(
                    f"{type(view_generator).__name__} cannot extrapolate; leave generation.around at 0"
                )
            self.view_generator = cast(WindowGenerator, view_generator)
        return self.view_generator


def _orbit(work: _Work) -> tuple[GeneratedSequence, str]:
    """All around, closed on the first photograph (PAPER, section 4). What is there is not generated again."""
    cut, config, cloud = work.cut, work.config, work.views.cloud
    path, places = path_through(orbit_path(cut.cameras, config.orbit_frames, cloud.points), cut.cameras)
    settings = OrbitConfig(config.frames, config.end_condition_frame, config.fps, config.caption, work.seed)
    input_places = cut.images.float() / 255
    with torch.inference_mode(False):
        frames = generate_orbit(
            input_places,
            places,
            path,
            cloud,
            _KeptWindows(work.source, work.folder),
            settings,
            work.device,
            progress=work.step,
        )
    made = to_bytes(frames)
    made[places] = cut.images
    return GeneratedSequence(
        made, path, places
    ), f"{len(frames) - len(places)} frames generated all around, closed on the first"


def _clips(work: _Work, order: list[int]) -> tuple[Clip, ...]:
    views, cut, config = work.views, work.cut, work.config
    images = cut.images[order].float() / 255
    contexts = BenchmarkViews(
        key=KEY,
        dataset=views.scene.dataset,
        scene=views.scene.name,
        context_images=images,
        context_cameras=cut.cameras[order],
        context_indices=tuple(range(len(order))),
        target_images=images[:0],
        target_cameras=cut.cameras[[]],
        target_indices=(),
        fps=config.fps,
        caption=config.caption,
    )
    depth = None if cut.depth is None else cut.depth[order]
    return pair_clips(contexts, config.frames, views.cloud, depth)
