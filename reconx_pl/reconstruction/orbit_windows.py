"""Generates all around a scene from two photographs or more, closed on the first (ReconX, V-D)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.reconstruction.view_generator import checked_frames, seeded_generator
from reconx_pl.reconstruction.windows import Window, plan_windows
from reconx_pl.types import Cameras, Clip, PointCloud, Progress


class WindowGenerator(Protocol):
    """Generates a clip of which the first frame and frame ``end_condition_frame`` are given."""

    def generate(self, clip: Clip, generator: torch.Generator, *, end_condition_frame: int) -> Tensor:
        """All T frames [T, 3, H, W] in [0, 1]; in the clip every other frame is black."""
        ...


@dataclass(frozen=True)
class OrbitConfig:
    """How a sequence is divided into clips. The paper says nothing of it.

    Args:
        frames: T of a clip; those of the model.
        end_condition_frame: k, frame of a clip that is its second condition where it extrapolates; one that the model
            was trained with (``ExtrapolationConfig``). The less it is, the fewer clips a sequence takes, and the nearer
            to each other are the two frames that a clip knows.
        fps: frame rate that the model is told; one that it was trained with.
        caption: of all clips.
        seed: of the noise, with the number of the clip.
    """

    frames: int = 32
    end_condition_frame: int = 16
    fps: float = 8.0
    caption: str = ""
    seed: int = 0


def generate_orbit(
    photographs: Tensor,
    places: Sequence[int],
    path: Cameras,
    geometry: PointCloud | PointMapEstimator,
    view_generator: WindowGenerator,
    config: OrbitConfig | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Tensor:
    """Generate a closed sequence along a path, clip after clip as ``plan_windows`` says.

    Generated frames are conditions of later clips, as 8-bit values, and their errors add up until the sequence closes.

    Args:
        photographs: [V, 3, H, W] float in [0, 1], in their order along the path, V >= 2.
        places: V places in the path, from 0. ``path_through`` and ``closed_loop`` give them with the path.
        path: M cameras, closed; at ``places`` those of the photographs.
        geometry: the structure condition. A cloud, in world coordinates and farthest-point order, of which a clip is
            told what its two known frames see; or an estimator, which makes a cloud of these two frames for each clip.
            The photographs' cloud ends where they do not see: to go further takes an estimator.
        view_generator: with a model that was trained to extrapolate, unless all clips interpolate.
        config: see ``OrbitConfig``.
        device: of the view generator's generator.
        progress: counts clips.

    Returns:
        [M, 3, H, W] in [0, 1] on the CPU, with the photographs at their places to the bit.

    Raises:
        ConfigurationError: shapes or numbers that do not go together; see ``plan_windows``.
        BadSceneError: a clip cannot be generated; names it.
    """
    config = config or OrbitConfig()
    if photographs.ndim != 4 or len(places) != len(photographs):
        raise ConfigurationError(f"{len(places)} places do not go with photographs {tuple(photographs.shape)}")
    if tuple(photographs.shape[1:]) != (3, path.height, path.width):
        raise ConfigurationError(
            f"photographs {tuple(photographs.shape)} are not of the path's {path.height} x {path.width} pixels; "
            "resize or crop both alike"
        )
    windows = plan_windows(len(path), places, config.frames, config.end_condition_frame)
    sequence = photographs.new_full((len(path), *photographs.shape[1:]), torch.nan, dtype=torch.float32, device="cpu")
    sequence[list(places)] = photographs.float().cpu()
    for number, window in enumerate(windows):
        clip = _clip(sequence, path, window, number, geometry, config)
        generator = seeded_generator(config.seed, clip.key, "generate", device)
        generated = checked_frames(
            view_generator.generate(clip, generator, end_condition_frame=window.end_condition_frame), clip, "cpu"
        )
        sequence[list(window.generates)] = generated[[frame - window.start for frame in window.generates]]
        if progress is not None:
            progress("generating clips", number + 1, len(windows))
    return sequence


def _clip(
    sequence: Tensor,
    path: Cameras,
    window: Window,
    number: int,
    geometry: PointCloud | PointMapEstimator,
    config: OrbitConfig,
) -> Clip:
    """The clip of a window, blind but for its two conditions."""
    total, inside = len(path), [0, window.end_condition_frame]
    indices = [(window.start + step) % total for step in range(config.frames)]
    input_places, cameras = sequence[[indices[step] for step in inside]], path[indices]
    frames = torch.zeros(config.frames, *sequence.shape[1:], dtype=torch.uint8)
    frames[inside] = (input_places * 255).round().clamp(0, 255).to(torch.uint8)
    key = f"window-{number}"
    if isinstance(geometry, PointCloud):
        cloud = geometry
    else:
        try:
            cloud = geometry.estimate(input_places, cameras[inside]).cloud
        except BadSceneError as error:
            raise BadSceneError(
                f"{key}, frames {indices[0]} and {indices[window.end_condition_frame]}: {error}"
            ) from error
    return Clip(
        key=key,
        dataset="",
        scene="",
        frames=frames,
        cameras=cameras,
        frame_indices=tuple(indices),
        fps=config.fps,
        caption=config.caption,
        cloud=cloud,
    )
