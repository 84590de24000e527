"""What a command imports before it does anything: start-up is counted in packages, as seconds depend on the machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from reconx_pl.cli.main import COMMANDS, command_named

# Each takes at least half as long to import as torch, or is needed by a few of the things that a command can do.
SLOW = {"lightning", "torchmetrics", "torchvision", "diffusers", "open_clip", "transformers", "lpips", "skimage"}
SLOW |= {"tensorboard", "viser", "gsplat", "pycolmap", "torch._dynamo"}
SLOW |= {"torch.distributed.tensor", "torch.distributed.fsdp"}
PROGRAM = """
import contextlib, sys
from reconx_pl.__main__ import main
sys.argv = ["reconx", *{arguments}]
with contextlib.suppress(SystemExit):
    main()
print(*sys.modules, file=sys.stderr)
"""


def imported(*arguments: str) -> set[str]:
    """Modules that a command has imported when it ends."""
    program = PROGRAM.format(arguments=list(arguments))
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(ended.stderr.splitlines()[-1].split())


def test_the_help_of_reconx_imports_neither_torch_nor_numpy() -> None:
    found = imported("--help")
    assert "reconx_pl.cli.main" in found
    assert found & {"torch", "numpy", "scipy", "reconx_pl.types"} == set()


def test_made_up_scenes_are_asked_for_without_torch() -> None:
    assert imported("procedural", "--help") & {"torch", *SLOW} == set()


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"procedural"}))
def test_a_command_starts_without_what_it_may_not_need(name: str) -> None:
    found = imported(name, "--help")
    assert f"reconx_pl.cli.{COMMANDS[name][0]}" in found or name == "doctor"
    assert found & SLOW == set()


def test_an_evaluation_starts_without_lightning() -> None:
    found = imported("evaluate", "--help")
    assert "reconx_pl.cli.evaluate_command" in found and found & SLOW == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_of_a_command_is_that_of_its_own_parser(name: str) -> None:
    assert command_named(name).parser().description == COMMANDS[name][1]
