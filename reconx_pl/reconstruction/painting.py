"""Stage "painting": the frames from each photograph to the next, and back to the first where the path is closed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reconx_pl.evaluation.benchmark_views import BenchmarkViews
from reconx_pl.evaluation.painter import Painter, painted_frames
from reconx_pl.evaluation.task import pair_clips
from reconx_pl.evaluation.video import write_mp4
from reconx_pl.reconstruction.settings import PaintingConfig
from reconx_pl.reconstruction.stages import Step
from reconx_pl.reconstruction.tensors import load_tensors, save_tensors, to_bytes
from reconx_pl.reconstruction.views import CutViews, Views, cut_views
from reconx_pl.types import Cameras, Clip

VIDEO = "painted.mp4"
_SLOWEST = 3.0  # frames a second at which painted frames can be watched


@dataclass(frozen=True)
class PainterSource:
    """Who paints: loaded only if something has to be painted.

    Args:
        identity: what its frames follow from, weights and sampling.
        load: gives the painter.
    """

    identity: str
    load: Callable[[], Painter]


def is_loop(views: Views, config: PaintingConfig) -> bool:
    """Whether frames are painted from the last photograph back to the first."""
    return views.closed and config.loop == "auto"


def context_cameras(cut: CutViews, loop: bool) -> Cameras:
    """Cameras of the photographs in the order of visiting; of a loop the first comes again at the end."""
    return cut.cameras[_visited(cut, loop)]


def paint(
    views: Views,
    config: PaintingConfig,
    source: PainterSource,
    seed: int,
    device: torch.device,
    folder: Path,
    step: Step,
) -> list[str]:
    """Paint every clip that is not in ``folder`` yet; each is written as soon as it is there. Returns notes.

    Raises:
        BadSceneError: frames that are not finite, or a clip with too few points; names it.
        ConfigurationError: frames or a size that the model does not paint.
    """
    loop = is_loop(views, config)
    cut = cut_views(views, config.height, config.width)
    clips = _clips(views, cut, config, loop)
    painter: Painter | None = None
    whole = 1000 * len(clips)
    for number, clip in enumerate(clips):
        file = folder / f"clip-{number:02d}.safetensors"
        if file.is_file():
            continue
        painter = painter or source.load()
        step(1000 * number, whole)

        def within(done: int, of: int, number: int = number) -> None:
            step(1000 * number + 1000 * done // of, whole)

        with torch.inference_mode(False):
            frames = painted_frames(clip, painter, seed, device, within)
        save_tensors({"frames": to_bytes(frames)}, file)
    write_mp4(read_painted(folder, cut, loop).float() / 255, folder / VIDEO, max(config.fps, _SLOWEST))
    between = config.frames - 2
    return [f"{between} frames painted between each of {len(clips)} pairs of photographs{', in a loop' * loop}"]


def read_painted(folder: Path, cut: CutViews, loop: bool) -> Tensor:
    """[S, 3, h, w] uint8: the photographs as they are, every one once, and the painted frames between them."""
    files = sorted(folder.glob("clip-*.safetensors"))
    parts = [load_tensors(file)["frames"] for file in files]
    frames = torch.cat([parts[0], *(part[1:] for part in parts[1:])])
    frames = frames[:-1] if loop else frames
    frames[known_places(len(cut.cameras), len(parts[0]))] = cut.images
    return frames


def known_places(views: int, frames: int) -> list[int]:
    """Places of the photographs among all frames of clips of ``frames`` frames."""
    return [view * (frames - 1) for view in range(views)]


def _visited(cut: CutViews, loop: bool) -> list[int]:
    every = list(range(len(cut.cameras)))
    return [*every, 0] if loop else every


def _clips(views: Views, cut: CutViews, config: PaintingConfig, loop: bool) -> tuple[Clip, ...]:
    order = _visited(cut, loop)
    images = cut.images[order].float() / 255
    contexts = BenchmarkViews(
        key=views.scene.name,
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
