"""Stage "frames": cameras and confidence of all frames that the fit sees, and the points that it starts from."""

from __future__ import annotations

import json
from pathlib import Path

from reconx_pl.files.json_files import write_json
from reconx_pl.files.tensors import (
    camera_tensors,
    cameras_of,
    cloud_of,
    cloud_tensors,
    load_tensors,
    save_tensors,
    to_bytes,
)
from reconx_pl.files.weights import read_tensors
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.reconstruction.generation import read_sequence
from reconx_pl.reconstruction.scene_builder import FitInput, input_sequence, prepare_fit
from reconx_pl.reconstruction.settings import ReconstructionConfig
from reconx_pl.reconstruction.views import Views, fit_size, input_views
from reconx_pl.types import Cameras

_TRUST = {  # by the confidence of their pixels
    "alignment": "their confidence by that alignment",
    "reprojection": "their confidence by agreement with the points",
    "render": "their confidence by agreement with the depth of the photographs",
    "uniform": "every pixel counts alike",
}
_TENSORS, _PLACES = "frames.safetensors", "frames.json"


def prepare_frames(
    views: Views,
    generated: Path | None,
    config: ReconstructionConfig,
    estimator: PointMapEstimator,
    folder: Path,
) -> list[str]:
    """Cameras, confidence and points of photographs and generated frames together. Returns notes.

    Args:
        views: the photographs.
        generated: folder of the stage "generation"; None fits to the photographs alone.
        config: see there.
        estimator: aligns generated frames, if ``config`` asks for that.
        folder: of the stage.

    Raises:
        BadSceneError: the frames cannot be aligned.
    """
    if generated is None:
        inputs = input_views(views, *fit_size(views, config.short_side))
        given = prepare_fit(inputs, input_sequence(inputs), config.scene)
        alone = "; away from the camera the scene has holes where the photograph does not show it"
        notes = ["nothing was generated" + (alone if len(inputs) == 1 else "")]
    else:
        inputs = input_views(views, config.generation.clip.height, config.generation.clip.width)
        given = prepare_fit(inputs, read_sequence(generated), config.scene, estimator)
        way = (
            "a global alignment with the photographs held fixed"
            if given.aligned
            else "the path along which they were generated"
        )
        notes = [f"poses of the generated frames by {way}; {_TRUST[config.scene.trust(given.aligned)]}"]
    _write(folder, given)
    return [*notes, f"{len(given.start)} points to start from"]


def read_fit_input(folder: Path) -> FitInput:
    """What this stage left in its folder."""
    tensors = load_tensors(folder / _TENSORS)
    described = json.loads((folder / _PLACES).read_text(encoding="utf-8"))
    frames = tensors.pop("frames").float().div_(255)
    return FitInput(frames, cameras_of(tensors), tensors.get("confidence"), start=cloud_of(tensors), **described)


def read_input_cameras(folder: Path) -> Cameras:
    """Cameras of the photographs alone, in the order of visiting: without the frames, which may be gigabytes."""
    places = json.loads((folder / _PLACES).read_text(encoding="utf-8"))["input_places"]
    return cameras_of(read_tensors(folder / _TENSORS))[places]


def _write(folder: Path, made: FitInput) -> None:
    save_tensors(
        {
            "frames": to_bytes(made.images),
            "confidence": made.confidence,
            **camera_tensors(made.cameras),
            **cloud_tensors(made.start),
        },
        folder / _TENSORS,
    )
    write_json(folder / _PLACES, {"input_places": made.input_places, "aligned": made.aligned})
