"""Finds golden kits (numbers made by the reference models), so that a kit added later is tested without a change.

A kit holds what its description says, and another kit of the family may be of another size, batch or depth, have fewer
cases, or no values between input and output. ``read_kit`` gives a description and tensors that skip the test by name
where something is asked for that the kit does not have. A test that compares many things asks for each with ``Held``:
what is there is compared, and what is not is named at the end.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import pytest
import torch
from golden_weights import complete_kits, lacks_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = REPOSITORY.parent / "shared"
OWN = REPOSITORY / "tests" / "golden"


@cache
def golden_folder() -> Path | None:
    """RECONX_GOLDEN if set, else tests/golden, else the shared folder beside the checkout; None if there is none."""
    named = os.environ.get("RECONX_GOLDEN")
    candidates = [Path(named).resolve()] if named else [OWN, SHARED / "golden"]
    folder = next((folder for folder in candidates if folder.is_dir()), None)
    if folder is not None:
        complete_kits(folder)
    return folder


def golden_kits(pattern: str) -> list[Path]:
    """Every kit of the golden folder whose description matches ``pattern``, such as ``unet_tiny_*.json``."""
    folder = golden_folder()
    return sorted(kit for kit in folder.glob(pattern) if not lacks_weights(kit)) if folder else []


def named_kit(name: str) -> Described:
    """What the file of that name in the golden folder says; without it the test is skipped."""
    folder = golden_folder()
    if folder is None or not (folder / name).is_file():
        not_held(name, str(folder or "no folder of golden kits"))
    return described(folder / name)


def described(kit: Path) -> Described:
    """What a kit's ``.json`` says; an entry that it lacks skips the test."""
    return Described(json.loads(kit.read_text(encoding="utf-8")), kit.name)


def read_kit(kit: Path, tensors: str = "{}.safetensors", exact: bool = False) -> tuple[Described, KitTensors]:
    """Description and tensors.

    Args:
        kit: its ``.json``.
        tensors: file of the tensors, by the stem of the kit.
        exact: leave floats as they are stored; else all are float32, which the reference computed in.
    """
    path = kit.with_name(tensors.format(kit.stem))
    if not path.is_file():
        not_held(path.name, kit.name)
    held = load_file(path)
    if not exact:
        held = {name: value.float() if value.is_floating_point() else value for name, value in held.items()}
    return described(kit), KitTensors(held, path.name)


@cache
def weights_file(kit: Path) -> Path:
    """A kit's tensors as a file that a network loads: its own, or a float32 copy of halves or doubles."""
    path = kit.with_suffix(".safetensors")
    if not path.is_file():
        not_held(path.name, kit.name)
    held = load_file(path)
    if all(value.dtype == torch.float32 or not value.is_floating_point() for value in held.values()):
        return path
    copy = Path(_copies().name) / path.name
    save_file({name: value.float() if value.is_floating_point() else value for name, value in held.items()}, copy)
    return copy


@cache
def _copies() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="golden-")  # gone with the process


def not_held(what: str, kit: str) -> NoReturn:
    """Skip the test."""
    pytest.skip(f"{kit} does not hold {what}")


class KitTensors(dict[str, Tensor]):
    """Tensors of a kit by name; one that it lacks skips the test."""

    def __init__(self, tensors: Mapping[str, Tensor], kit: str) -> None:
        super().__init__(tensors)
        self.kit = kit

    def __missing__(self, name: str) -> Tensor:
        not_held(f"the tensor {name}", self.kit)

    def cases(self, pattern: str) -> list[str]:
        """What the group of a regular expression stands for in those names that are like it."""
        return sorted({match[1] for name in self if (match := re.fullmatch(pattern, name))})

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Those whose name begins with ``prefix``, by the rest of it; the test is skipped if there is none."""
        found = {name.removeprefix(prefix): value for name, value in self.items() if name.startswith(prefix)}
        return found or not_held(f"tensors {prefix}*", self.kit)


class Described(dict[str, Any]):
    """A kit's description, or an object in it; an entry that it lacks skips the test."""

    def __init__(self, entries: Mapping[str, Any], kit: str, place: str = "") -> None:
        self.kit, self.place = kit, place
        super().__init__(
            {
                name: Described(value, kit, f"{place}{name}.") if isinstance(value, dict) else value
                for name, value in entries.items()
            }
        )

    def __missing__(self, name: str) -> Any:
        not_held(f'the entry "{self.place}{name}"', self.kit)


class Held:
    """Goes through what a test would compare: gives what the kit holds, and remembers what it does not.

    Used as a context, it skips at its end where nothing failed, with the names of what was missing; everything else has
    been compared by then.
    """

    def __init__(self, kit: KitTensors | Described) -> None:
        self.kit, self.missing = kit, list[str]()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.missing:
            not_held(f"{', '.join(self.missing)}; all else agrees", self.kit.kit)

    def has(self, *names: str) -> bool:
        """Whether the kit holds all of them."""
        lacking = [name for name in names if name not in self.kit]
        self.missing += [name for name in lacking if name not in self.missing]
        return not lacking

    def of(self, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """Name and value of each that the kit holds."""
        for name in names:
            if self.has(name):
                yield name, self.kit[name]
