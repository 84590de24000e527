"""The command ``reconx generate``: photographs and a path of cameras in, video out (docs/guidance.md)."""

from __future__ import annotations

import shutil
from pathlib import Path

from jsonargparse import Namespace

from reconx_pl.cli.arguments import ArgumentParser
from reconx_pl.cli.command import Command
from reconx_pl.cli.console import console, progress_bar
from reconx_pl.cli.reconstruct import (
    add_chain_options,
    chosen_estimator,
    config_of,
    geometry_name,
    named_view_generator,
    take_path,
)
from reconx_pl.data.formats.camera_path_file import write_camera_path
from reconx_pl.devices import chosen_device
from reconx_pl.errors import ConfigurationError
from reconx_pl.reconstruction.generation import VIDEO, read_sequence
from reconx_pl.reconstruction.run import reconstruct
from reconx_pl.reconstruction.settings import GENERATION

SUMMARY = "Generate the video that a path of cameras sees, from photographs; give it again to go on."
WORK, CAMERAS = ".stages", ".cameras.json"  # beside the video, after its name


def generate_parser() -> ArgumentParser:
    """The parser of ``reconx generate``."""
    parser = ArgumentParser(description=SUMMARY)
    add_chain_options(parser, "the video, an .mp4 file; its cameras and the stages' files lie beside it")
    return parser


def run_generate(parser: ArgumentParser, chosen: Namespace) -> Path:
    """Do what the arguments say: the stages of ``reconx reconstruct`` up to generation.

    Args:
        parser: see ``generate_parser``.
        chosen: its arguments, parsed and not instantiated.

    Returns:
        the video.

    Raises:
        ConfigurationError: no photographs, or ``--out`` is no .mp4 file; and see ``reconstruction.run.reconstruct``.
        MissingWeightsError: no model.
    """
    take_path(chosen)
    options = vars(parser.instantiate_classes(chosen))
    out: Path = options["out"]
    if not options["photographs"]:
        raise ConfigurationError("name photographs: reconx generate PHOTOS --path FILE --model MODEL -o VIDEO.mp4")
    if out.suffix.lower() != ".mp4" or out.is_dir():
        raise ConfigurationError(f"{out}: the video is an .mp4 file; name one with -o")
    device = chosen_device(options["device"])
    view_generator = named_view_generator(options, device)
    config = config_of(options).resolved(view_generator.clip)
    options["geometry"] = geometry_name(options)
    estimator = chosen_estimator(options, device)
    work = out.with_name(out.stem + WORK)
    with progress_bar() as progress:
        made = reconstruct(
            options["photographs"],
            work,
            config,
            estimator,
            view_generator,
            device=device,
            stages=[GENERATION],
            overwrite=True,  # other photographs for a video of this name are no mistake
            progress=progress,
        )
    generation = next(stage for stage in made.stages if stage.name == GENERATION)
    shutil.copyfile(generation.folder / VIDEO, out)
    sequence, fps = read_sequence(generation.folder), config.generation.clip.fps
    write_camera_path(sequence.cameras[: sequence.way], fps, out.with_name(out.stem + CAMERAS))
    console.print(f"{out}: {'; '.join(generation.notes)}", highlight=False, markup=False)
    return out


COMMANDS = {"generate": Command(generate_parser, run_generate)}
