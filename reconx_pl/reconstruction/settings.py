"""What a reconstruction does, in one typed place; every stage is kept under the hash of the part that it uses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, get_args

from reconx_pl.diffusion.weights.generation import ClipDefaults
from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.exposure_gains import EvenExposures, check_even_exposures
from reconx_pl.reconstruction.scene_builder import Alignment, FrameConfidence, SceneConfig
from reconx_pl.splatting.fit import FitConfig
from reconx_pl.splatting.points import PointsConfig

StageName = Literal["photographs", "geometry", "generation", "frames", "fit", "flythrough"]
STAGES: tuple[StageName, ...] = get_args(StageName)
PHOTOGRAPHS, GEOMETRY, GENERATION, FRAMES, FIT, FLYTHROUGH = STAGES
KEY = "scene"  # seeds everything random, together with ``seed``: the same whatever the folder of results is called


class ClipShape(NamedTuple):
    """Numbers of a generated clip: T frames, their rows and columns in pixels, and the frame rate the model is told."""

    frames: int = 32
    height: int = 512
    width: int = 512
    fps: float = 8.0


@dataclass(frozen=True)
class GenerationConfig:
    """What is generated between neighbouring photographs. Frames and size are what the model was trained with.

    Args:
        frames: T of each clip, the two photographs included; None takes the model's own, else 32 as the paper.
        height: rows of a frame, pixels; photographs are reduced and cropped to it. None takes the model's own, else
            512.
        width: columns of a frame, pixels; None as for ``height``.
        fps: frame rate that the model is told; one that it was trained with. None takes the model's own, else 8.
        caption: what the model is told about the scene.
        loop: "auto" generates from the last photograph back to the first where they are neighbours, "never" leaves the
            path open.
        orbit_frames: frames of a closed sequence all around the scene (360 degrees), along a circle bent through the
            photographs; 0 generates between photographs alone. Needs a model that was trained to extrapolate
            (configs/extrapolation.yaml), and photographs from around one place.
        end_condition_frame: frame of a clip that is its second condition where it extrapolates, with ``orbit_frames``.
        poses: of the generated frames. "aligned": by a global alignment with the photographs held fixed; needs an
            estimator that can do it (Depth-Anything-3, DUSt3R). "interpolated": between the photographs. "auto":
            aligned where possible.
        alignment: of which frames together; see ``SceneConfig``.
        path: of the camera: "interpolated" from each photograph straight to the next, "viewcrafter" likewise with
            ViewCrafter's timing; with a model that is guided by renders also "orbit", "spiral", or a file of cameras
            (cameras.json, camera_path.json or transforms.json).
        path_frames: frames of an orbit or a spiral; None takes as many as an interpolated path would have.
    """

    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: float | None = None
    caption: str = ""
    loop: Literal["auto", "never"] = "auto"
    orbit_frames: int = 0
    end_condition_frame: int = 16
    poses: Literal["auto", "aligned", "interpolated"] = "auto"
    alignment: Alignment = "clips"
    path: str = "interpolated"
    path_frames: int | None = None

    def __post_init__(self) -> None:
        frames, height, width, fps = self.clip  # an open one is right here
        if frames < 2 or min(height, width) < 8 or not fps > 0:
            raise ConfigurationError(
                f"generation needs at least 2 frames of 8 x 8 pixels and a positive frame rate, got {frames} "
                f"frames of {height} x {width} at {fps} a second"
            )
        misplaced = self.frames is not None and not 0 < self.end_condition_frame < frames - 1
        if self.orbit_frames < 0 or (self.orbit_frames and misplaced):
            raise ConfigurationError(
                f"generation.orbit_frames is 0 or more frames, in clips of {frames} that extrapolate from a frame "
                f"generation.end_condition_frame in 1 to {frames - 2}; got "
                f"{self.orbit_frames} and {self.end_condition_frame}"
            )

    @property
    def clip(self) -> ClipShape:
        """The numbers of a clip; what is still open is 32 frames of 512 x 512 pixels at 8 a second."""
        given = {name: getattr(self, name) for name in ClipShape._fields if getattr(self, name) is not None}
        return ClipShape(**given)

    def resolved(self, own: ClipDefaults | None = None) -> GenerationConfig:
        """With numbers for what is open: the model's own, else 32 frames of 512 x 512 pixels at 8 a second.

        Args:
            own: what the model says of its clips.

        Raises:
            ConfigurationError: numbers that do not go together.
        """
        own = own or ClipDefaults()
        left = {name: getattr(own, name) for name in ClipShape._fields if getattr(self, name) is None}
        known = replace(self, **left)
        return replace(known, **known.clip._asdict())


@dataclass(frozen=True)
class ReconstructionConfig:
    """How photographs become a scene.

    Args:
        max_side: longer side of the photographs that geometry sees, pixels; larger ones are reduced.
        views: frames taken out of a video; None takes 16.
        skip_unplaced: go on without photographs that geometry finds no place for; False refuses, and names them.
        even_exposures: "auto" brings the photographs to one exposure, the middle one, where their exposures differ
            clearly, and leaves them to the bit where they do not; "always", "never".
        short_side: of the photographs that a scene without generation is fitted to, pixels; smaller ones stay.
        generation: see ``GenerationConfig``.
        fit: the 3D Gaussian fit.
        points: which points it starts from.
        confidence: of generated pixels; see ``SceneConfig``.
        flythrough: camera path of the video: interpolated through the photographs, an orbit around what they look at,
            or a spiral before it. None is interpolated, and an orbit where there is a single photograph.
        flythrough_frames: frames of the video.
        flythrough_fps: frames a second.
        seed: of everything random.
    """

    max_side: int = 1024
    views: int | None = None
    skip_unplaced: bool = False
    even_exposures: EvenExposures = "auto"
    short_side: int = 512
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    points: PointsConfig = field(default_factory=lambda: PointsConfig(at_least=30_000))
    confidence: FrameConfidence = "auto"
    flythrough: Literal["interpolated", "orbit", "spiral"] | None = None
    flythrough_frames: int = 120
    flythrough_fps: float = 24.0
    seed: int = 0

    def resolved(self, own: ClipDefaults | None = None) -> ReconstructionConfig:
        """With numbers for what ``generation`` leaves to the model; see ``GenerationConfig.resolved``."""
        return replace(self, generation=self.generation.resolved(own))

    @property
    def scene(self) -> SceneConfig:
        """The part that says how frames become a scene."""
        generation = self.generation
        return SceneConfig(self.fit, self.points, generation.poses, self.confidence, generation.alignment, self.seed)

    def __post_init__(self) -> None:
        check_even_exposures(self.even_exposures)
        if min(self.max_side, self.short_side) < 32:
            raise ConfigurationError(
                f"max_side {self.max_side} and short_side {self.short_side} are pixels, at least 32 of them"
            )
        if self.flythrough_frames < 2 or not self.flythrough_fps > 0:
            raise ConfigurationError("a flythrough has at least 2 frames and a positive frame rate")
