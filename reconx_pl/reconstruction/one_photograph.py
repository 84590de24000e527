"""A reconstruction of one photograph: what it can be asked for, and what nobody knows of it."""

from __future__ import annotations

from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.camera_paths import PATHS
from reconx_pl.reconstruction.generation import BETWEEN
from reconx_pl.reconstruction.settings import FLYTHROUGH, GENERATION, STAGES, ReconstructionConfig
from reconx_pl.types import Cameras


def check_path(config: ReconstructionConfig, generates: bool, last: str) -> None:
    """See to it that no camera is asked to go from a single photograph to another one.

    Args:
        config: of the reconstruction.
        generates: whether there is a model that generates.
        last: the last stage that is wanted.

    Raises:
        ConfigurationError: such a path; names one that can be.
    """
    generation, reached = config.generation, STAGES.index(last)
    if generates and reached >= STAGES.index(GENERATION):
        asked = f"--path {generation.path} leads" if generation.path in BETWEEN else ""
        asked = "generation.orbit_frames lead" if generation.orbit_frames else asked
        if asked:
            raise ConfigurationError(
                f"{asked} from one photograph to another, and there is one: take --path orbit, which moves "
                "the camera around what it shows (or spiral, or a file of cameras), or give more photographs"
            )
    if config.flythrough == "interpolated" and reached >= STAGES.index(FLYTHROUGH):
        others = " or ".join(name for name in PATHS if name != "interpolated")
        raise ConfigurationError(
            f"--flythrough interpolated leads from one photograph to another, and there is one: take {others}"
        )


def geometry_note(finder: str, cameras: Cameras, focal: float | None) -> str:
    """What of the geometry of one photograph is not known.

    Args:
        finder: who found depth and camera.
        cameras: the one that was found.
        focal: pixels of the photograph, as EXIF has it; None where it has none.
    """
    exif = "; EXIF has none" if focal is None else f"; EXIF says {focal:.0f}"
    return (
        f"one photograph: its depth, its scale and its focal length ({float(cameras.intrinsics[0, 0, 0]):.0f} pixels"
        f"{exif}) are as {finder} gives them, and no other view confirms them: where nobody measured them, they are "
        "guesses"
    )
