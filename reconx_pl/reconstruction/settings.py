"""What a reconstruction does, in one typed place; every stage is kept under the hash of the part that it uses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from reconx_pl.errors import ConfigurationError
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.points import PointsConfig

StageName = Literal["photographs", "geometry", "painting", "frames", "fit", "flythrough"]
STAGES: tuple[StageName, ...] = get_args(StageName)
PHOTOGRAPHS, GEOMETRY, PAINTING, FRAMES, FIT, FLIGHT = STAGES
KEY = "scene"  # seeds everything random, together with ``seed``: the same whatever the folder of results is called


@dataclass(frozen=True)
class PaintingConfig:
    """What is painted between neighbouring photographs. Frames and size are what the model was trained with.

    Args:
        frames: T of each clip, the two photographs included (the paper has 32).
        height: rows of a frame, pixels; photographs are reduced and cropped to it.
        width: columns of a frame, pixels.
        fps: frame rate that the model is told; one that it was trained with.
        caption: what the model is told about the scene.
        loop: "auto" paints from the last photograph back to the first where they are neighbours, "never" leaves the
            path open.
        around: frames of a closed sequence all around the scene (360 degrees), along a circle bent through the
            photographs; 0 paints between photographs alone. Needs a model that was trained to extrapolate
            (configs/extrapolation.yaml), and photographs from around one place.
        second: frame of a clip that is its second condition where it extrapolates, with ``around``.
        poses: of the painted frames. "aligned": by a global alignment with the photographs held fixed; needs an
            estimator that can do it (DUSt3R). "interpolated": between the photographs. "auto": aligned where possible.
    """

    frames: int = 32
    height: int = 512
    width: int = 512
    fps: float = 8.0
    caption: str = ""
    loop: Literal["auto", "never"] = "auto"
    around: int = 0
    second: int = 16
    poses: Literal["auto", "aligned", "interpolated"] = "auto"

    def __post_init__(self) -> None:
        if self.frames < 2 or min(self.height, self.width) < 8 or not self.fps > 0:
            raise ConfigurationError(
                f"painting needs at least 2 frames of 8 x 8 pixels and a positive frame rate, got {self.frames} frames "
                f"of {self.height} x {self.width} at {self.fps} a second"
            )
        if self.around < 0 or (self.around and not 0 < self.second < self.frames - 1):
            raise ConfigurationError(
                f"painting.around is 0 or more frames, in clips of {self.frames} that extrapolate from a frame "
                f"painting.second in 1 to {self.frames - 2}; got around {self.around} and second {self.second}"
            )


@dataclass(frozen=True)
class ReconstructionConfig:
    """How photographs become a scene.

    Args:
        max_side: longer side of the photographs that geometry sees, pixels; larger ones are reduced.
        views: frames taken out of a video; None takes 16.
        skip_unplaced: go on without photographs that geometry finds no place for; False refuses, and names them.
        short_side: of the photographs that a scene without painting is fitted to, pixels; smaller ones stay.
        painting: see ``PaintingConfig``.
        fit: the 3D Gaussian fit.
        points: which points it starts from.
        flight: camera path of the video: through the photographs, around what they look at, or a spiral before it.
        flight_frames: frames of the video.
        flight_fps: frames a second.
        seed: of everything random.
    """

    max_side: int = 1024
    views: int | None = None
    skip_unplaced: bool = False
    short_side: int = 512
    painting: PaintingConfig = field(default_factory=PaintingConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    points: PointsConfig = field(default_factory=lambda: PointsConfig(at_least=30_000))
    flight: Literal["interpolated", "orbit", "spiral"] = "interpolated"
    flight_frames: int = 120
    flight_fps: float = 24.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.max_side, self.short_side) < 32:
            raise ConfigurationError(
                f"max_side {self.max_side} and short_side {self.short_side} are pixels, at least 32 of them"
            )
        if self.flight_frames < 2 or not self.flight_fps > 0:
            raise ConfigurationError("a flythrough has at least 2 frames and a positive frame rate")
