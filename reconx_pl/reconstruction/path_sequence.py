"""Generates the frames along any path of cameras, by a model that is guided by renders of the input views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.files.tensors import to_bytes
from reconx_pl.geometry.cameras import camera_distance, interpolate_cameras
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.reconstruction.camera_path import CameraPath
from reconx_pl.reconstruction.input_views import InputViews
from reconx_pl.reconstruction.scene_builder import FrameSequence
from reconx_pl.reconstruction.view_generator import checked_frames, seeded_generator
from reconx_pl.types import Cameras, Clip, Progress


class PathGenerator(Protocol):
    """Generates a clip of which the first frame, and maybe a second one, is given, guided by renders of views."""

    def generate(
        self, clip: Clip, generator: torch.Generator, *, end_condition_frame: int, views: DepthViews
    ) -> Tensor:
        """All T frames [T, 3, H, W] in [0, 1]; ``end_condition_frame`` 0 says that the first alone is given."""
        ...


@dataclass(frozen=True)
class PathWindow:
    """A clip of the path.

    Attributes:
        start: frame of the path that it begins with, which is there already.
        end_condition_frame: frame of the clip that is there too; 0 where none is.
        stop: last frame of the path that is kept of it.
    """

    start: int
    end_condition_frame: int
    stop: int


def plan_path(total: int, known: set[int], frames: int) -> tuple[PathWindow, ...]:
    """Cover a path with clips, each from a frame that is there to the next that is known, or as far as it reaches.

    Args:
        total: M frames of the path.
        known: frames that are there from the start; 0 is among them.
        frames: T of a clip.
    """
    reach, windows, newest = frames - 1, [], 0
    while newest < total - 1:
        following = min((frame for frame in known if frame > newest), default=total + reach)
        if following - newest <= reach:
            if following - newest > 1:
                windows.append(PathWindow(newest, following - newest, following - 1))
            newest = following
        else:
            stop = min(newest + reach, total - 1)
            windows.append(PathWindow(newest, 0, stop))
            newest = stop
    return tuple(windows)


def generate_path(
    inputs: InputViews,
    path: CameraPath,
    view_generator: PathGenerator,
    frames: int,
    seed: int,
    device: torch.device,
    *,
    keep: Callable[[int, Callable[[], Tensor]], Tensor] | None = None,
    progress: Progress | None = None,
) -> FrameSequence:
    """Generate the frames of a path, clip after clip; each begins with a frame that is there.

    A path that starts elsewhere than at an input view is reached from the nearest one; the frames on the way there are
    thrown away. Every frame is a render of all input views first, so that errors do not add up from clip to clip as
    they do where a model knows the frames before alone.

    Args:
        inputs: C >= 1 input views with depth.
        path: M cameras; ``camera_path.path_of`` makes it.
        view_generator: guided by renders.
        frames: T of a clip.
        seed: of the noise, together with the key of the inputs and the number of the clip.
        device: of the noise.
        keep: where the frames of a clip, [T, 3, H, W] uint8, may be found, or are kept.
        progress: counts clips.

    Returns:
        The M frames of the path, and after them the input views that it does not pass through.

    Raises:
        BadSceneError: no depth, or frames that cannot be used.
        ConfigurationError: a model that is not guided by renders.
    """
    if inputs.depth is None:
        raise BadSceneError(
            f"{inputs.key}: the input views have no depth, and a path is generated from renders of it; take an "
            "estimator that gives every pixel one (--geometry)"
        )
    if frames < 2:
        raise ConfigurationError(f"a clip of a path has at least 2 frames, got {frames}")
    keep = keep or (lambda number, make: make())
    views = DepthViews(inputs.images, inputs.depth, inputs.cameras, inputs.confidence)
    cameras, images, known, lead = _laid_out(inputs, path, frames)
    windows = plan_path(len(cameras), known, frames)
    for number, window in enumerate(windows):
        clip = _clip(inputs, cameras, images, window, frames, number)

        def make(clip: Clip = clip, window: PathWindow = window) -> Tensor:
            generated = view_generator.generate(
                clip,
                seeded_generator(seed, clip.key, "generate", device),
                end_condition_frame=window.end_condition_frame,
                views=views,
            )
            return to_bytes(checked_frames(generated, clip, "cpu"))

        made = keep(number, make)[1 : window.stop - window.start + 1]
        images[window.start + 1 : window.stop + 1] = made.to(images.device).float().div_(255)
        if progress is not None:
            progress("generating along the path", number + 1, len(windows))
    return _sequence(inputs, path, images[lead : lead + len(path)])


def _laid_out(inputs: InputViews, path: CameraPath, frames: int) -> tuple[Cameras, Tensor, set[int], int]:
    """All cameras with the way to the path before it and the way back after it, the images so far, and which are known.

    The last number says how many frames the way to the path has.
    """
    cameras = path.cameras.to(inputs.images.device)
    places = {place: view for view, place in enumerate(path.places) if place is not None}
    lead = 0
    if 0 not in places:
        nearest = int(camera_distance(cameras[0], inputs.cameras).argmin())
        ends = _joined([inputs.cameras[nearest], cameras[0]])
        way = interpolate_cameras(ends, torch.linspace(0, 1, frames, dtype=torch.float64))[: frames - 1]
        lead = frames - 1
        cameras = _joined([way, cameras])
        places = {0: nearest} | {place + lead: view for place, view in places.items()}
    elif path.closed:  # the first frame is the next one after the last
        cameras = _joined([cameras, cameras[0]])
        places[len(path)] = places[0]
    images = inputs.images.new_zeros(len(cameras), *inputs.images.shape[1:])
    for place, view in places.items():
        images[place] = inputs.images[view]
    return cameras, images, set(places), lead


def _joined(parts: list[Cameras]) -> Cameras:
    first = parts[0]
    return replace(
        first,
        world_to_camera=torch.cat([part.world_to_camera.to(first.world_to_camera) for part in parts]),
        intrinsics=torch.cat([part.intrinsics.to(first.intrinsics) for part in parts]),
    )


def _clip(inputs: InputViews, cameras: Cameras, images: Tensor, window: PathWindow, frames: int, number: int) -> Clip:
    """The clip of a window, blind but for what is there; beyond the end of the path the camera stands still."""
    inside = [min(window.start + frame, len(cameras) - 1) for frame in range(frames)]
    stored = torch.zeros(frames, *images.shape[1:], dtype=torch.uint8)
    known = [0, window.end_condition_frame]
    stored[known] = to_bytes(images[[inside[frame] for frame in known]].cpu())
    return Clip(
        key=f"{inputs.key}+path-{number}",
        dataset=inputs.dataset,
        scene=inputs.scene,
        frames=stored,
        cameras=cameras[inside].to("cpu"),
        frame_indices=tuple(inside),
        fps=inputs.fps,
        caption=inputs.caption,
        cloud=None if inputs.cloud is None else inputs.cloud.to("cpu"),
        geometry=inputs.geometry,
    )


def _sequence(inputs: InputViews, path: CameraPath, images: Tensor) -> FrameSequence:
    beside = [view for view, place in enumerate(path.places) if place is None]
    numbers = {view: len(path) + number for number, view in enumerate(beside)}
    places = [numbers[view] if place is None else place for view, place in enumerate(path.places)]
    whole = torch.cat([images, inputs.images[beside]])
    whole[places] = inputs.images
    cameras = path.cameras.to(inputs.images.device)
    if beside:
        cameras = _joined([cameras, inputs.cameras[beside]])
    return FrameSequence(whole, cameras, places, posed=True, beside=len(beside))
