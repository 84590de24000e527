"""The ``reconx`` command: its parser, and who does what it parsed. Each command imports what it needs."""

from __future__ import annotations

import sys
from importlib import import_module

from reconx_pl.cli.arguments import ArgumentParser, renamed_command
from reconx_pl.cli.command import Command, run

#: Command -> the module in this folder that has it, and what it does. Nothing else is imported for ``reconx --help``.
COMMANDS = {
    "reconstruct": (
        "reconstruct",
        "Turn photographs into a scene of Gaussians; give it again to go on after an interruption.",
    ),
    "generate": (
        "generate",
        "Generate the video that a path of cameras sees, from photographs; give it again to go on.",
    ),
    "geometry": (
        "geometry",
        "Find cameras and points of photographs; write a posed scene that pack and evaluate.py read.",
    ),
    "fit": ("fit", "Fit 3D Gaussians to photographs, scene after scene, and score them on held-out ones."),
    "pack": ("pack", "Pack posed photographs or videos into shards; run it again to go on after an interruption."),
    "cache": (
        "cache",
        "Copy shards with what frozen encoders and estimators make of every clip; run it again to go on.",
    ),
    "procedural": ("procedural", "Pack procedural clips (made-up scenes with depth) into shards."),
    "export": ("scenes", "Write a scene of Gaussians in another format; the ending decides."),
    "export-cameras": ("scenes", "Write a posed scene for other programs: images, cameras and points in a new folder."),
    "render": ("scenes", "Render a scene of Gaussians along a camera path into a video."),
    "view": ("scenes", "Show a scene of Gaussians in the browser, until Ctrl-C."),
    "weights": ("weights", "Pretrained weights: list, fetch, convert, verify, publish them."),
    "protocols": ("protocols", "Published protocols: list and show them, fetch their indices, check their data."),
    "consolidate": (
        "weights",
        "Write the network's weights out of a checkpoint, sharded or not, into one .safetensors file.",
    ),
    "doctor": ("weights", "Look at what this machine has of what the package needs, and say what mends the rest."),
}
#: Run by ``reconx_pl.__main__`` with parsers of their own.
ELSEWHERE = {
    "train": "Train a stage: fit, validate, test, predict, plan; what train.py of a checkout does.",
    "evaluate": "Evaluate a trained model on scenes or on a protocol; what evaluate.py of a checkout does.",
}


def command_named(name: str) -> Command:
    """The command of a name."""
    commands: dict[str, Command] = import_module(f"reconx_pl.cli.{COMMANDS[name][0]}").COMMANDS
    return commands[name]


def build_parser(*names: str) -> ArgumentParser:
    """The parser of ``reconx``.

    Args:
        names: the commands whose arguments it shall know; without any all of them, which takes its time.
    """
    parser = ArgumentParser(prog="reconx", description="ReconX: photographs to shards to scenes.")
    commands = parser.add_subcommands(dest="command")
    for name, (_, described) in COMMANDS.items():
        if not names or name in names:
            command_named(name).add_to(commands, name)
        else:
            commands.add_subcommand(name, ArgumentParser(description=described), help=described)
    for name, described in ELSEWHERE.items():
        commands.add_subcommand(name, ArgumentParser(description=described), help=described)
    return parser


def main(args: list[str] | None = None) -> None:
    """Entry point of ``reconx``."""

    def call() -> None:
        arguments = renamed_command(sys.argv[1:] if args is None else args)
        name = next((argument for argument in arguments if not argument.startswith("-")), "")
        given = build_parser(name).parse_args(arguments)
        command = command_named(given.command)
        command.run(command.parser(), given[given.command])

    run(call)
