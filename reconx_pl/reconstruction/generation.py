"""Stage "painting": the frames from each photograph to the next, and back to the first where the path is closed."""

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
from reconx_pl.reconstruction.orbit_windows import AroundConfig, WindowPainter, paint_around
from reconx_pl.reconstruction.pair_clips import pair_clips, path_cameras
from reconx_pl.reconstruction.settings import KEY, PaintingConfig
from reconx_pl.reconstruction.stages import Step
from reconx_pl.reconstruction.view_generator import Painter, PainterSource, checked_frames, painted_frames
from reconx_pl.reconstruction.views import CutViews, Views, cut_views
from reconx_pl.types import Cameras, Clip
from reconx_pl.visualization.video import write_mp4

VIDEO, SEQUENCE, PLACES = "painted.mp4", "sequence.safetensors", "places.json"
_PARTS = 1000  # of a clip, in progress
_SLOWEST = 3.0  # frames a second at which painted frames can be watched


@dataclass(frozen=True)
class Painted:
    """All frames in their order, photographs and painted ones.

    Attributes:
        frames: [S, 3, h, w] uint8, the photographs to the bit.
        cameras: S views: those of the photographs, and between them the path that was painted along.
        known: places of the photographs, in the order of visiting.
    """

    frames: Tensor
    cameras: Cameras
    known: list[int]


@dataclass(frozen=True)
class _Work:
    """What both ways of painting need; see ``paint``."""

    views: Views
    cut: CutViews
    config: PaintingConfig
    source: PainterSource
    seed: int
    device: torch.device
    folder: Path
    step: Step


def is_loop(views: Views, config: PaintingConfig) -> bool:
    """Whether the painted frames lead from the last photograph back to the first."""
    return config.around > 0 or (views.closed and config.loop == "auto")


def paint(
    views: Views,
    config: PaintingConfig,
    source: PainterSource,
    seed: int,
    device: torch.device,
    folder: Path,
    step: Step,
) -> list[str]:
    """Paint, and write all frames with their cameras. Returns notes.

    Raises:
        BadSceneError: frames that are not finite, or a clip with too few points; names it.
        ConfigurationError: frames or a size that the model does not paint; with ``around`` photographs that no circle
            passes through, or a painter that cannot extrapolate.
    """
    work = _Work(views, cut_views(views, config.height, config.width), config, source, seed, device, folder, step)
    made, note = (_around if config.around else _between)(work)
    save_tensors({"frames": made.frames, **camera_tensors(made.cameras)}, folder / SEQUENCE)
    write_json(folder / PLACES, {"known": made.known})
    write_mp4(made.frames.movedim(1, -1), folder / VIDEO, max(config.fps, _SLOWEST))
    return [note]


def read_painted(folder: Path) -> Painted:
    """What this stage left in its folder."""
    tensors = load_tensors(folder / SEQUENCE)
    known = json.loads((folder / PLACES).read_text(encoding="utf-8"))["known"]
    return Painted(tensors["frames"], cameras_of(tensors), known)


def known_places(views: int, frames: int) -> list[int]:
    """Places of the photographs among all frames of clips of ``frames`` frames."""
    return [view * (frames - 1) for view in range(views)]


def _between(work: _Work) -> tuple[Painted, str]:
    """From each photograph to the next. Each clip is written as soon as it is there, and not painted again."""
    cut, config = work.cut, work.config
    loop = is_loop(work.views, config)
    order = [*range(len(cut.cameras)), *([0] if loop else [])]
    clips = _clips(work, order)
    painter: Painter | None = None
    whole = _PARTS * len(clips)
    parts = []
    for number, clip in enumerate(clips):
        file = work.folder / f"clip-{number:02d}.safetensors"
        if not file.is_file():
            painter = painter or work.source.load()
            work.step(_PARTS * number, whole)

            def within(done: int, of: int, number: int = number) -> None:
                work.step(_PARTS * number + _PARTS * done // of, whole)

            with torch.inference_mode(False):
                frames = painted_frames(clip, painter, work.seed, work.device, within)
            save_tensors({"frames": to_bytes(frames)}, file)
        parts.append(load_tensors(file)["frames"])
    frames = torch.cat([parts[0], *(part[1:] for part in parts[1:])])
    cameras = path_cameras(cut.cameras[order], config.frames)
    kept = list(range(len(frames) - 1 if loop else len(frames)))  # of a loop the first photograph comes once
    known = known_places(len(cut.cameras), config.frames)
    frames = frames[kept]
    frames[known] = cut.images
    note = f"{config.frames - 2} frames painted between each of {len(clips)} pairs of photographs"
    return Painted(frames, cameras[kept], known), note + (", in a loop" if loop else "")


class _KeptWindows:
    """A ``WindowPainter`` that keeps every clip in a file, as 8-bit values: what the clips after it see of it."""

    def __init__(self, source: PainterSource, folder: Path) -> None:
        self.source, self.folder = source, folder
        self.painter: WindowPainter | None = None

    def paint(self, clip: Clip, generator: torch.Generator, *, second: int) -> Tensor:
        file = self.folder / f"{clip.key}.safetensors"
        if not file.is_file():
            painted = self._loaded().paint(clip, generator, second=second)
            save_tensors({"frames": to_bytes(checked_frames(painted, clip, "cpu"))}, file)
        return load_tensors(file)["frames"].float().div_(255)

    def _loaded(self) -> WindowPainter:
        if self.painter is None:
            painter = self.source.load()
            if "second" not in inspect.signature(painter.paint).parameters:
                raise ConfigurationError(f"{type(painter).__name__} cannot extrapolate; leave painting.around at 0")
            self.painter = cast(WindowPainter, painter)
        return self.painter


def _around(work: _Work) -> tuple[Painted, str]:
    """All around, closed on the first photograph (PAPER, section 4). What is there is not painted again."""
    cut, config, cloud = work.cut, work.config, work.views.cloud
    path, places = path_through(orbit_path(cut.cameras, config.around, cloud.points), cut.cameras)
    settings = AroundConfig(config.frames, config.second, config.fps, config.caption, work.seed)
    known = cut.images.float() / 255
    with torch.inference_mode(False):
        frames = paint_around(
            known,
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
    return Painted(made, path, places), f"{len(frames) - len(places)} frames painted all around, closed on the first"


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
