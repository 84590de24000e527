"""What every command is made of: a parser, and what is done with what it parsed."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docstring_parser
from jsonargparse import Namespace

from reconx_pl.cli.arguments import ArgumentParser
from reconx_pl.errors import ReconXError


@dataclass(frozen=True)
class Command:
    """A command of ``reconx``.

    Attributes:
        parser: makes the parser of its arguments.
        run: does what they say: the parser, and its arguments, parsed and not instantiated.
        actions: of a group (``group_of``), each with arguments of its own.
    """

    parser: Callable[[], ArgumentParser]
    run: Callable[[ArgumentParser, Namespace], object]
    actions: Mapping[str, Command] = field(default_factory=dict)

    def add_to(self, commands: Any, name: str) -> None:
        """Add it to the subcommands of a parser, under a name."""
        parser = self.parser()
        commands.add_subcommand(name, parser, help=parser.description)
        if self.actions:  # jsonargparse wants the outer level first
            actions = parser.add_subcommands(dest="action")
            for action, command in self.actions.items():
                command.add_to(actions, action)


def command_of(function: Callable[..., Any], parser: Callable[[], ArgumentParser] | None = None) -> Command:
    """A command that calls a function.

    Args:
        function: its docstring says what the command and its arguments are.
        parser: None takes all of the function's arguments (``add_arguments``).
    """

    def made() -> ArgumentParser:
        command = ArgumentParser(description=summary(function))
        add_arguments(command, function)
        return command

    def run(parser: ArgumentParser, given: Namespace) -> object:
        return function(**vars(parser.instantiate_classes(given)))

    return Command(parser or made, run)


def group_of(description: str, actions: Mapping[str, Command]) -> Command:
    """A command whose first argument is an action, with arguments of its own."""

    def run(_: ArgumentParser, given: Namespace) -> object:
        action = actions[given.action]
        return action.run(action.parser(), given[given.action])

    return Command(lambda: ArgumentParser(description=description), run, actions)


def add_arguments(command: ArgumentParser, function: Callable[..., Any], only_first_by_place: bool = False) -> None:
    """Every argument of a function: flags for what is False, the others that it needs by place."""
    described = {entry.arg_name: entry.description for entry in docstring_parser.parse(function.__doc__ or "").params}
    parameters = inspect.signature(function).parameters
    special = {name for name, parameter in parameters.items() if parameter.default is False}
    for flag in sorted(special):
        command.add_argument(f"--{flag}", action="store_true", help=described.get(flag))
    if only_first_by_place:
        first = next(iter(parameters))
        command.add_argument(first, type=Path, help=described.get(first))
        special.add(first)
    command.add_function_arguments(function, as_positional=not only_first_by_place, skip={*special})


def summary(function: Callable[..., Any]) -> str:
    """The first line of a docstring."""
    return (function.__doc__ or "").strip().splitlines()[0]


def run(function: Callable[[], Any]) -> None:
    """Run a command; errors that this package raises on purpose end without a traceback, with exit code 1."""
    from rich.logging import RichHandler

    from reconx_pl.cli.console import console

    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console, show_path=False)]
    )
    try:
        function()
    except ReconXError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; run the same command again to go on")
