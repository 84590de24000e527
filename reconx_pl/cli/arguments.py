"""Command lines and configuration files in the names of earlier versions (``renamed``), for all commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jsonargparse
import yaml

from reconx_pl.renamed import COMMANDS, one_of, renamed, renamed_path, renamed_value, tell


class ArgumentParser(jsonargparse.ArgumentParser):
    """A parser whose ``--config`` files may have names of earlier versions; ``renamed_arguments`` sees to arguments."""

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> jsonargparse.Namespace:
        return super().parse_string(_renamed_text(content), *args, **kwargs)


@dataclass
class _Option:
    """A part of a command line: an option and what follows it, or what comes before the first one."""

    given: str  # "--fit.steps"; "" before the first option, "-c" for a short one
    name: str = ""
    equals: bool = False  # --name=value
    values: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> list[str]:
        name = f"--{self.name}" if self.name else self.given
        if self.equals:
            return [f"{name}={self.values[0]}", *self.values[1:]]
        return [*([name] if name else []), *self.values]


def renamed_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line in the names of this version.

    Raises:
        ConfigurationError: an option is given under its old and its new name.
    """
    options = [_Option("")]
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            options.append(_Option(name, name[2:], bool(equals), [value] if equals else []))
        elif argument.startswith("-") and not argument[1:2].isdigit():
            options.append(_Option(argument))
        else:
            options[-1].values.append(argument)
    return [argument for option in _renamed_options(options) for argument in option.arguments]


def renamed_command(arguments: Sequence[str]) -> list[str]:
    """``renamed_arguments`` of ``reconx``, whose commands may be old, too."""
    command, *rest = [*arguments] or [""]
    if command in COMMANDS:
        tell(f"reconx {command}", f"reconx {COMMANDS[command]}")
        return renamed_arguments([COMMANDS[command], *rest])
    return renamed_arguments(arguments)


def _renamed_options(options: list[_Option]) -> list[_Option]:
    kept: dict[str, _Option] = {}  # by the name of today; an option may come again, and then the parser decides
    result: list[_Option] = []
    for option in options:
        old = option.name
        path = renamed_path(old.removesuffix("+").split("."))
        option.name = ".".join(path) + ("+" if old.endswith("+") else "")
        if option.name != old:
            tell(option.given, f"--{option.name}")
        if option.name:
            option.values = [_renamed_argument(value, path) for value in option.values]
            before = kept.get(option.name)
            if before is not None and before.given != option.given:
                both = (before.given, _value(before), option.given, _value(option))
                option.values = [one_of(*both, f"--{option.name}"), *option.values[1:]]
                result.remove(before)
            kept[option.name] = option
        result.append(option)
    return result


def _value(option: _Option) -> str:
    return option.values[0] if option.values else ""


def _renamed_argument(value: str, path: Sequence[str]) -> str:
    """The value of an option: plain, a class path, or YAML in braces or brackets."""
    return _renamed_text(value, path) if value[:1] in ("{", "[") else renamed_value(value, path[-1])


def _renamed_text(text: str, path: Sequence[str] = ()) -> str:
    """YAML with the names of this version; what has none of the old ones stays as it was written."""
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # the parser says what is wrong with it
    new = renamed(content, path)
    if new == content:
        return text
    return yaml.safe_dump(new, sort_keys=False, default_flow_style=bool(path), width=float("inf")).strip()
