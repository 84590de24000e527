"""What runs before every commit is what `make lint` runs, from the same environment."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]


def hooks() -> list[dict[str, Any]]:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local", "a hook of another repository is fetched over the network"
    return repository["hooks"]


def lint_commands() -> list[str]:
    """The recipe of the Makefile's target ``lint``."""
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]


def test_hooks_are_the_commands_of_make_lint() -> None:
    assert [hook["entry"] for hook in hooks()] == lint_commands()


def test_hooks_check_the_whole_tree_with_the_installed_commands() -> None:
    for hook in hooks():
        assert (hook["language"], hook["pass_filenames"]) == ("system", False), hook["id"]


def test_development_installs_what_hooks_run() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    installed = set(re.findall(r"^[\w-]+", setup["options.extras_require"]["dev"], re.MULTILINE))
    assert {Path(hook["entry"].split()[0]).name for hook in hooks()} | {"pre-commit"} <= installed
