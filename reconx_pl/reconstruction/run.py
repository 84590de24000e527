"""Photographs to a scene: the chain of stages, and what it leaves in the folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from reconx_pl.data.photos.headers import named_files
from reconx_pl.data.photos.photographs import load_photographs
from reconx_pl.errors import BadDataError, ConfigurationError
from reconx_pl.files.identity import identity_of, plain_settings
from reconx_pl.files.json_files import write_json
from reconx_pl.files.tensors import save_tensors, to_bytes
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.geometry.exposure_gains import ExposureGains, sentence
from reconx_pl.reconstruction import files, fitting, generation
from reconx_pl.reconstruction.camera_path import PathConfig
from reconx_pl.reconstruction.exposures import even_exposures
from reconx_pl.reconstruction.files import STAGE_FOLDER, SUMMARY
from reconx_pl.reconstruction.folder import alone, claim, spare, storage
from reconx_pl.reconstruction.frames import prepare_frames, read_fit_input, read_input_cameras
from reconx_pl.reconstruction.generation import is_loop
from reconx_pl.reconstruction.geometry import find_geometry
from reconx_pl.reconstruction.one_photograph import check_path
from reconx_pl.reconstruction.report import write_report
from reconx_pl.reconstruction.settings import (
    FIT,
    FLYTHROUGH,
    FRAMES,
    GENERATION,
    GEOMETRY,
    PHOTOGRAPHS,
    STAGES,
    ReconstructionConfig,
    StageName,
)
from reconx_pl.reconstruction.stages import Stage, Stages, stage_record
from reconx_pl.reconstruction.view_generator import ViewGeneratorSource, follows_cameras
from reconx_pl.reconstruction.views import (
    PHOTOGRAPHS_FILE,
    PIXELS_FILE,
    Views,
    read_names,
    read_photographs,
    read_views,
)
from reconx_pl.types import Progress
from reconx_pl.version import __version__


@dataclass(frozen=True)
class Reconstructed:
    """What a reconstruction left in ``out``.

    Attributes:
        out: the folder.
        stages: in their order; those after the last that was asked for are not among them.
        views: the photographs with their cameras; None where only photographs were read.
    """

    out: Path
    stages: tuple[Stage, ...]
    views: Views | None

    @property
    def scene(self) -> Path | None:
        """The Gaussians, if they were fitted."""
        path = self.out / fitting.SCENE
        return path if any(stage.name == FIT for stage in self.stages) else None

    @property
    def outdated(self) -> list[str]:
        """Results of an earlier run that lie there still, of stages that this run did not come to."""
        done = {stage.name for stage in self.stages}
        made = {
            generation.VIDEO: GENERATION,
            fitting.SCENE: FIT,
            fitting.PAGE: FIT,
            fitting.VIDEO: FLYTHROUGH,
            fitting.DEPTH_VIDEO: FLYTHROUGH,
        }
        return [name for name, stage in made.items() if stage not in done and (self.out / name).exists()]


def reconstruct(
    sources: Sequence[Path],
    out: Path,
    config: ReconstructionConfig,
    estimator: PointMapEstimator,
    view_generator: ViewGeneratorSource | None,
    *,
    device: torch.device | str = "cpu",
    stages: Sequence[StageName] = STAGES,
    overwrite: bool = False,
    progress: Progress | None = None,
    claimed: Callable[[], None] | None = None,
) -> Reconstructed:
    """Turn photographs into a scene (ReconX, section IV), stage by stage; what is done already is not done again.

    Args:
        sources: image files, folders of images, or one video; see ``data.photographs.load_photographs``.
        out: gets scene.ply, scene.html, cameras.json, sparse/0, images, generated.mp4, flythrough.mp4, report.html,
            reconstruction.json, and the stages' own files in ``stages``, which may be deleted.
        config: see there; what its ``generation`` leaves open is the model's own.
        estimator: finds cameras and points.
        view_generator: generates between the photographs; None fits to the photographs alone.
        device: of generation, fit and fly-through.
        stages: those wanted; what they need is done as well, what comes after them is not.
        overwrite: ``out`` may hold the reconstruction of other photographs.
        progress: see ``stages.Stages``.
        claimed: called when the photographs were read and ``out`` is ours, before the long work.

    Raises:
        BadDataError: a file that is no photograph, or cannot be read.
        BadSceneError: photographs that cannot be reconstructed together; names them.
        ConfigurationError: options that contradict each other, or ``out`` is not ours, or another run works there.
        StorageError: ``out`` cannot be written.
        MissingWeightsError, BadWeightsError: of what needs weights.
    """
    if unknown := sorted(set(stages) - set(STAGES)):
        raise ConfigurationError(f"no stage is called {', '.join(unknown)}; there are {', '.join(STAGES)}")
    config = config.resolved(view_generator.clip if view_generator is not None else None)
    last = max((STAGES.index(name) for name in stages), default=len(STAGES) - 1)
    if view_generator is not None:
        config.scene.aligns(estimator)  # refuse early what cannot be
    names = named_files([Path(source) for source in sources], [])
    with storage(out), alone(out):
        chain = _Chain(
            sources, names, out, config, estimator, view_generator, torch.device(device), overwrite, progress
        )
        return chain.run(STAGES[last], claimed)


class _Chain:
    """The stages of one reconstruction, with what they share."""

    def __init__(
        self,
        sources: Sequence[Path],
        names: Sequence[Path],
        out: Path,
        config: ReconstructionConfig,
        estimator: PointMapEstimator,
        view_generator: ViewGeneratorSource | None,
        device: torch.device,
        overwrite: bool,
        progress: Progress | None,
    ) -> None:
        self.sources, self.out, self.config = sources, out, config
        self.estimator, self.view_generator, self.device = estimator, view_generator, device
        self.found_by = identity_of(estimator)  # once: it may hash gigabytes of weights
        spare(out, names)
        stems = [path.stem.lower() for path in names]  # of equal ones the folder becomes part of the name
        self.files = [
            {
                "name": path.name if stems.count(stem) == 1 else f"{path.resolve().parent.name}/{path.name}",
                "sha256": _sha256(path),
            }
            for path, stem in zip(names, stems, strict=True)
        ]
        claim(out, self.files, overwrite)
        self.name = title_of(sources, out)
        self.stages = Stages(out / STAGE_FOLDER, device, progress)
        self.settings = plain_settings(config)
        self.views: Views | None = None
        self.exposures: ExposureGains | None = None  # where they differed

    @property
    def _evened(self) -> dict[str, Any]:
        """Inputs of a stage that sees evened photographs; none of photographs that were left as they are."""
        return {} if self.exposures is None else {"gains": _rounded(self.exposures)}

    @property
    def _evening(self) -> list[str]:
        """What a note says of it."""
        return [] if self.exposures is None else [sentence(self.exposures)]

    def run(self, last: str, claimed: Callable[[], None] | None) -> Reconstructed:
        photographs = self._photographs()
        if len(read_names(photographs.folder)) == 1:
            check_path(self.config, self.view_generator is not None, last)
        self._summarise(last, complete=False)
        if claimed is not None:
            claimed()
        if last != PHOTOGRAPHS:
            geometry = self._geometry(photographs)
            if last != GEOMETRY:
                self._scene(photographs, geometry, last)
        self._summarise(last, complete=True)
        return Reconstructed(self.out, tuple(self.stages.done), self.views)

    def _photographs(self) -> Stage:
        config = self.config

        def make(folder: Path, progress: Progress) -> list[str]:
            read = load_photographs(self.sources, max_side=config.max_side, views=config.views, progress=progress)
            save_tensors({"images": to_bytes(read.images)}, folder / PIXELS_FILE)
            described = {item.name: getattr(read, item.name) for item in fields(read) if item.name != "images"}
            write_json(folder / PHOTOGRAPHS_FILE, described)
            return list(read.notes)

        inputs = {"files": self.files, "max_side": config.max_side, "views": config.views}
        return self.stages.run(PHOTOGRAPHS, inputs, make, [])

    def _geometry(self, photographs: Stage) -> Stage:
        config = self.config

        def make(folder: Path, progress: Progress) -> list[str]:
            return find_geometry(
                read_photographs(photographs.folder), self.estimator, config.skip_unplaced, folder, progress
            )

        inputs = {"estimator": self.found_by, "skip_unplaced": config.skip_unplaced}
        geometry = self.stages.run(GEOMETRY, inputs, make, [photographs])
        found = read_views(photographs.folder, geometry.folder, self.name)
        self.views, self.exposures = even_exposures(found, config.even_exposures)
        files.write_cameras(self.views, self.out)
        return geometry

    def _scene(self, photographs: Stage, geometry: Stage, last: str) -> None:
        views = self.views
        assert views is not None
        generated = None
        if self.view_generator is not None:
            generated = self._generation(views, self.view_generator, geometry, last)
        elif last == GENERATION:
            raise ConfigurationError(
                "there is nothing to generate with: name a model (--model), or leave generation out"
            )
        if last == GENERATION:
            return
        frames = self._frames(views, geometry, generated)
        if last == FRAMES:
            return
        fit = self._fit(frames)
        if last != FIT:
            self._flythrough(views, frames, fit)

    def _generation(self, views: Views, view_generator: ViewGeneratorSource, geometry: Stage, last: str) -> Stage:
        config = self.config

        def make(folder: Path, progress: Progress) -> list[str]:
            if STAGES.index(last) >= STAGES.index(FIT):
                fitting.what_a_fit_needs(config, self.device)  # refuse early what cannot be
            how = config.generation
            made = generation.generate(views, how, view_generator, config.seed, self.device, folder, progress)
            return [*self._evening, *made]

        later = ("poses", "alignment")  # of the next stage
        settings = {name: value for name, value in self.settings["generation"].items() if name not in later}
        settings["path"] = PathConfig.parse(config.generation.path, config.generation.path_frames).identity
        inputs = {
            "generation": settings,
            "view_generator": view_generator.identity,
            "seed": config.seed,
            "device": self.device.type,
            **self._evened,
        }
        stage = self.stages.run(GENERATION, inputs, make, [geometry])
        files.copy(stage.folder / generation.VIDEO, self.out / generation.VIDEO)
        return stage

    def _frames(self, views: Views, geometry: Stage, generated: Stage | None) -> Stage:
        config = self.config

        def make(folder: Path, progress: Progress) -> list[str]:
            made = None if generated is None else generated.folder
            notes = prepare_frames(views, made, config, self.estimator, folder)
            return notes if made is not None else [*self._evening, *notes]  # once, at the first stage that sees it

        inputs: dict[str, Any] = {"points": self.settings["points"], "seed": config.seed, **self._evened}
        if generated is None:
            inputs["short_side"] = config.short_side
        else:
            posed = follows_cameras(self.view_generator)
            inputs |= {"aligned": config.scene.aligns(self.estimator, posed), "confidence": config.confidence}
            inputs["alignment"] = config.generation.alignment
        return self.stages.run(FRAMES, inputs, make, [geometry] if generated is None else [geometry, generated])

    def _fit(self, frames: Stage) -> Stage:
        config = self.config

        def make(folder: Path, progress: Progress) -> list[str]:
            given = read_fit_input(frames.folder)
            return fitting.fit_scene(given, config, self.device, self.name, folder, progress)

        inputs = {"fit": self.settings["fit"], "seed": config.seed, "device": self.device.type}
        stage = self.stages.run(FIT, inputs, make, [frames])
        for name in (fitting.SCENE, fitting.PAGE):
            files.copy(stage.folder / name, self.out / name)
        return stage

    def _flythrough(self, views: Views, frames: Stage, fit: Stage) -> None:
        config = self.config
        closed = views.closed if self.view_generator is None else is_loop(views, config.generation)

        def make(folder: Path, progress: Progress) -> list[str]:
            cameras = read_input_cameras(frames.folder)
            return fitting.write_flythrough(
                fit.folder / fitting.SCENE, cameras, config, closed, self.device, folder, progress
            )

        names = ("flythrough", "flythrough_frames", "flythrough_fps")
        stage = self.stages.run(FLYTHROUGH, {name: self.settings[name] for name in names}, make, [frames, fit])
        for video in (fitting.VIDEO, fitting.DEPTH_VIDEO):
            files.copy(stage.folder / video, self.out / video)

    def _summarise(self, last: str, complete: bool) -> None:
        """Write reconstruction.json and, once something is there to show, report.html."""
        summary = {
            "complete": complete,
            "name": self.name,
            "version": __version__,
            "photographs": self.files,
            "views": list(self.views.names) if self.views else [],
            "closed": bool(self.views and self.views.closed),
            "exposure_gains": None if self.exposures is None else _rounded(self.exposures),
            "estimator": self.found_by,
            "view_generator": self.view_generator.identity if self.view_generator else None,
            "device": self.device.type,
            "last_stage": last,
            "stages": [stage_record(stage) for stage in self.stages.done],
            "settings": self.settings,
        }
        write_json(self.out / SUMMARY, summary)
        if complete and self.views is not None:
            write_report(self.out, summary)


def _rounded(exposures: ExposureGains) -> list[list[float]]:
    return [[round(gain, 4) for gain in row] for row in exposures.gains.tolist()]


def title_of(sources: Sequence[Path], out: Path) -> str:
    """What a reconstruction is called: as its folder of photographs or its video."""
    one = Path(sources[0]).resolve()
    if one.is_file():
        one = one.with_suffix("") if len(sources) == 1 else one.parent
    if one.name.lower() in ("images", "photos", "photographs", "input"):
        one = one.parent
    return one.name or out.resolve().name or "scene"


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadDataError(
            f"{path}: cannot be read ({error.strerror}); check its permissions, or leave it out"
        ) from error
