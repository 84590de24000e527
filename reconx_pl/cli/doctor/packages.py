"""Python and the packages: are those there that this one asks for, and do torch and torchvision go together?"""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING

from reconx_pl.cli.doctor.findings import Finding, Need, Use, lacking, need_of
from reconx_pl.version import __version__

if TYPE_CHECKING:
    from packaging.requirements import Requirement

TOPIC = "packages"
PACKAGE = "reconx_pl"
_OLDEST, _NEWEST = (3, 11), (3, 13)
_PAIR = "pip install --upgrade torch torchvision"
# What only some uses need; the rest is for all of them.
_ONLY_FOR: dict[str, Mapping[Use, Need]] = {
    "pycolmap": {"reconstruct": "required", "train": "useful"},
    "viser": {"reconstruct": "required", "train": "required"},
}


def packages(use: Use) -> Iterator[Finding]:
    """Python, this package, every package that it asks for, and whether torch and torchvision go together."""
    yield _python()
    if not _installed("packaging"):
        yield Finding(TOPIC, "packaging", "missing", "not installed: versions cannot be compared", "make setup")
        return
    if not _installed(PACKAGE):
        yield Finding(TOPIC, PACKAGE, "missing", "not installed, so its packages are unknown", "pip install -e .")
    else:
        yield Finding(TOPIC, PACKAGE, "ok", __version__)
        for requirement in _requirements():
            need = need_of(use, _ONLY_FOR.get(requirement.name, {"basics": "required"}))
            if need is not None:
                yield _required(requirement, need)
    if _installed("torch") and _installed("torchvision"):
        yield _torch_and_torchvision()


def _installed(name: str) -> str | None:
    """Its version."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _python() -> Finding:
    found, text = sys.version_info[:2], f"{platform.python_version()}, {sys.executable}"
    if _OLDEST <= found <= _NEWEST:
        return Finding(TOPIC, "python", "ok", text)
    words = "too old" if found < _OLDEST else "newer than what was tried"
    status = lacking("required" if found < _OLDEST else "useful")
    return Finding(TOPIC, "python", status, f"{text}: {words}", "make setup PYTHON=python3.12 VENV=.venv312")


def _requirements() -> Iterator[Requirement]:
    """Those that hold on this machine; ninja is looked at where gsplat is."""
    from packaging.requirements import Requirement

    for line in metadata.requires(PACKAGE) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _required(requirement: Requirement, need: Need) -> Finding:
    name, version = requirement.name, _installed(requirement.name)
    if version is not None and requirement.specifier.contains(version, prereleases=True):
        return Finding(TOPIC, name, "ok", version)
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    line = _PAIR if name in ("torch", "torchvision") else f"pip install '{name}{extras}{requirement.specifier}'"
    text = "not installed" if version is None else f"{version}, needed is {requirement.specifier}"
    return Finding(TOPIC, name, lacking(need), text, line)


def _torch_and_torchvision() -> Finding:
    """What torchvision asks for by its metadata, then the import itself, which fails where the operators differ."""
    from packaging.requirements import Requirement

    name, both = "torch + torchvision", f"{_installed('torch')} and {_installed('torchvision')}"
    asked = [Requirement(line) for line in metadata.requires("torchvision") or []]
    for requirement in asked:
        if requirement.name == "torch" and not requirement.specifier.contains(_installed("torch") or "", True):
            wanted = f"torchvision asks for torch{requirement.specifier}"
            return Finding(TOPIC, name, "missing", f"{both} do not match: {wanted}", _PAIR)
    for module in ("torch", "torchvision"):
        try:
            importlib.import_module(module)
        except Exception as error:  # RuntimeError for an operator, OSError for a library, ImportError for a symbol
            why = (str(error) or repr(error)).splitlines()[0]
            return Finding(TOPIC, name, "missing", f"{both} do not match: import {module} fails ({why})", _PAIR)
    return Finding(TOPIC, name, "ok", f"{both} match")
