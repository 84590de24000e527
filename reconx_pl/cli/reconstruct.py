"""The command ``reconx reconstruct``: photographs in, scene out (docs/photographs.md)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from reconx_pl.cli.arguments import ArgumentParser
from reconx_pl.cli.command import Command
from reconx_pl.cli.config_option import ConfigOption
from reconx_pl.cli.console import console, progress_bar
from reconx_pl.cli.geometry_weights import provide_geometry
from reconx_pl.cli.model_weights import provide_model
from reconx_pl.devices import chosen_device
from reconx_pl.diffusion.pipeline import SamplingConfig
from reconx_pl.errors import ConfigurationError
from reconx_pl.files.atomic import atomic_write
from reconx_pl.files.weights import MINI
from reconx_pl.geometry.default_estimator import GeometryName, named_estimator, refined_estimator
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.geometry.estimators.geometry_file import GeometryFile
from reconx_pl.reconstruction.files import REPORT
from reconx_pl.reconstruction.folder import storage
from reconx_pl.reconstruction.run import Reconstructed, reconstruct
from reconx_pl.reconstruction.settings import STAGES, ReconstructionConfig, StageName
from reconx_pl.reconstruction.view_generator import ViewGeneratorSource
from reconx_pl.renamed import renamed

log = logging.getLogger(__name__)
SETTINGS = "settings.yaml"  # in the folder of results: what --resume goes on with
SUMMARY = "Turn photographs into a scene of Gaussians; give it again to go on after an interruption."


def reconstruct_parser() -> ArgumentParser:
    """The parser of ``reconx reconstruct``."""
    parser = ArgumentParser(description=SUMMARY)
    add_chain_options(parser, "folder of the results")
    parser.add_argument("--no-diffusion", action="store_true", help="generate nothing: fit to the photographs alone")
    parser.add_argument(
        "--stages",
        nargs="*",
        type=StageName,
        default=list(STAGES),
        help="those wanted, with all that they need: " + ", ".join(STAGES),
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with what --out holds: its photographs and options"
    )
    parser.add_argument("--overwrite", action="store_true", help="--out may hold other results")
    return parser


def add_chain_options(parser: ArgumentParser, out: str) -> None:
    """Photographs, where results go, who finds geometry and who generates along which path, and all settings.

    Args:
        parser: gets the options.
        out: what ``--out`` is.
    """
    parser.add_argument(
        "photographs", nargs="*", type=Path, help="1 to 64 image files, folders of images, or one video"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help=out)
    parser.add_argument("--config", action=ConfigOption, help="YAML file with any of these options")
    parser.add_argument(
        "--geometry",
        type=GeometryName,
        default="auto",
        help="who finds cameras and points: da3-base and da3-small (Depth-Anything-3) need weights; dust3r needs "
        "weights that are not for commercial use; colmap (structure from motion) needs none, and two photographs; auto "
        "takes da3-base if its weights are there or somebody lets it fetch them, else colmap",
    )
    parser.add_argument(
        "--geometry_from",
        type=Path | None,
        default=None,
        help="an .npz file with the depth and cameras of the photographs that another program found, in place of "
        "--geometry (docs/extending.md)",
    )
    parser.add_argument(
        "--estimator", type=PointMapEstimator | None, default=None, help="a class of your own, in place of --geometry"
    )
    parser.add_argument(
        "--refine_geometry",
        type=bool,
        default=False,
        help="polish the cameras that were found by bundle adjustment, and scale the depth to go with them "
        "(docs/geometry.md); needs pycolmap",
    )
    parser.add_argument(
        "--model",
        type=str | None,
        default=MINI,
        help=f"who generates: {MINI}, which comes with the package, the folder of a training run, or of converted "
        "weights, or a release (reconx weights list)",
    )
    parser.add_argument("--yes", action="store_true", help="fetch weights that are not here without asking")
    parser.add_argument(
        "--path",
        type=str | None,
        default=None,
        help="of the camera: interpolated, viewcrafter, orbit, spiral, or a file of cameras; short for "
        "--generation.path (docs/guidance.md)",
    )
    parser.add_class_arguments(ReconstructionConfig)
    parser.add_argument("--sampling", type=SamplingConfig | None, default=None, help="in place of the model's own")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda")


def take_path(chosen: Namespace) -> None:
    """Let ``--path`` stand where ``--generation.path`` does."""
    if chosen.path is not None:
        chosen.generation.path, chosen.path = chosen.path, None


def run_reconstruct(parser: ArgumentParser, chosen: Namespace) -> Reconstructed:
    """Do what the arguments say; see ``reconstruction.run.reconstruct`` for what is raised.

    Args:
        parser: see ``reconstruct_parser``.
        chosen: its arguments, parsed and not instantiated.
    """
    if chosen.resume:
        chosen = _resumed(parser, chosen)
    take_path(chosen)
    options = vars(parser.instantiate_classes(chosen))
    out: Path = options["out"]
    if not options["photographs"]:
        raise ConfigurationError("name photographs, a folder of them or a video: reconx reconstruct PHOTOS -o OUT")
    device = chosen_device(options["device"])
    view_generator = None
    if not options["no_diffusion"]:
        view_generator = named_view_generator(options, device)
    options["geometry"] = chosen.geometry = geometry_name(options)  # which --resume keeps, whatever is fetched later
    estimator = chosen_estimator(options, device)
    config = config_of(options).resolved(view_generator.clip if view_generator is not None else None)
    for name, value in config.generation.clip._asdict().items():
        chosen[f"generation.{name}"] = value  # what is kept for --resume
    with progress_bar() as progress:
        made = reconstruct(
            options["photographs"],
            out,
            config,
            estimator,
            view_generator,
            device=device,
            stages=options["stages"] or STAGES,
            overwrite=options["overwrite"],
            progress=progress,
            claimed=lambda: _keep(parser, chosen, out),
        )
    for stage in made.stages:
        state = "kept" if stage.reused else f"{stage.seconds:.1f} s"
        console.print(f"{stage.name}: {state}; {'; '.join(stage.notes)}", highlight=False, markup=False)
    if made.outdated:
        console.print(f"of an earlier run, and maybe of other cameras: {', '.join(made.outdated)}", markup=False)
    if made.views is not None:
        view = f", or: reconx view {made.scene} --cameras {out}" if made.scene else ""
        console.print(f"Open {out / REPORT}{view}", markup=False)
    return made


def named_view_generator(options: Mapping[str, Any], device: str) -> ViewGeneratorSource:
    """The model that the instantiated arguments name, said in the log.

    Raises:
        ConfigurationError: none is named.
        MissingWeightsError: it is not here.
    """
    from reconx_pl.training.models import model_source

    name = options["model"]
    if name is None:
        raise ConfigurationError(f"name the model that generates: --model {MINI} comes with the package")
    provide_model(name, options["yes"])
    if name == MINI:
        log.info("generating with %s, the small model that comes with reconx_pl; --model names another", MINI)
    return model_source(name, options["sampling"], device)


def geometry_name(options: Mapping[str, Any]) -> GeometryName:
    """What ``--geometry`` stands for here and now, with its weights; as it is where something else takes its place.

    Raises:
        MissingWeightsError, BadWeightsError: see ``provide_geometry``.
    """
    name: GeometryName = options["geometry"]
    if options["geometry_from"] is not None or options["estimator"] is not None:
        return name
    return provide_geometry(name, options["yes"])


def chosen_estimator(options: Mapping[str, Any], device: str) -> PointMapEstimator:
    """Who finds geometry, by the instantiated arguments.

    Raises:
        ConfigurationError: a file of geometry beside an estimator, or refinement of one that has no depth.
        MissingWeightsError: no weights of the one that was named.
        MissingDependencyError: refinement without pycolmap.
    """
    estimator = _unrefined(options, device)
    return refined_estimator(estimator) if options["refine_geometry"] else estimator


def _unrefined(options: Mapping[str, Any], device: str) -> PointMapEstimator:
    file, estimator = options["geometry_from"], options["estimator"]
    if file is None:
        return estimator or named_estimator(options["geometry"], device)
    if estimator is not None:
        raise ConfigurationError(f"--geometry_from {file} has the geometry that --estimator would find: leave one out")
    return GeometryFile(file)


def config_of(options: Mapping[str, Any]) -> ReconstructionConfig:
    """The part of the instantiated arguments that says how photographs become a scene."""
    return ReconstructionConfig(**{item.name: options[item.name] for item in fields(ReconstructionConfig)})


def _resumed(parser: ArgumentParser, chosen: Namespace) -> Namespace:
    """The arguments that an earlier run kept; ``stages`` are those of now."""
    kept = chosen.out / SETTINGS
    if chosen.photographs:
        raise ConfigurationError("--resume takes the photographs of the run that it goes on with; leave them out")
    if not kept.is_file():
        raise ConfigurationError(f"{kept} does not exist: there is nothing to go on with; name the photographs")
    if ignored := _given(parser, chosen):
        raise ConfigurationError(
            f"--resume takes the options of the run that it goes on with, and {', '.join(ignored)} would change them; "
            "give the whole command with photographs instead: what does not change is kept"
        )
    settings = renamed(yaml.safe_load(kept.read_text(encoding="utf-8")))
    earlier = parser.parse_object({**settings, "out": str(chosen.out)})
    earlier.stages, earlier.overwrite, earlier.yes = chosen.stages, chosen.overwrite, chosen.yes
    return earlier


def _given(parser: ArgumentParser, chosen: Namespace) -> list[str]:
    """Options that differ from their defaults, but for those that --resume takes."""
    given, defaults = chosen.as_flat().__dict__, parser.get_defaults().as_flat().__dict__
    free = ("resume", "out", "stages", "overwrite", "photographs", "config", "yes")
    return [f"--{name}" for name, value in given.items() if name not in free and value != defaults.get(name)]


def _keep(parser: ArgumentParser, chosen: Namespace, out: Path) -> None:
    """Write the arguments down for ``--resume``."""
    content: dict[str, Any] = yaml.safe_load(parser.dump(chosen, skip_none=False))
    content["photographs"] = [str(path.absolute()) for path in map(Path, content["photographs"])]
    if content["model"] is not None and Path(content["model"]).exists():  # else it is a name on the hub
        content["model"] = str(Path(content["model"]).absolute())
    if content["geometry_from"] is not None:
        content["geometry_from"] = str(Path(content["geometry_from"]).absolute())
    path = Path(content["generation"]["path"])
    if path.is_file():
        content["generation"]["path"] = str(path.absolute())
    for name in ("resume", "stages", "overwrite", "out", "config", "yes", "path"):
        content.pop(name, None)
    with storage(out), atomic_write(out / SETTINGS) as partial:
        partial.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


COMMANDS = {"reconstruct": Command(reconstruct_parser, run_reconstruct)}
