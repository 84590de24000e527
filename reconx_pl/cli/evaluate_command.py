"""The command line of ``reconx evaluate`` and ``evaluate.py`` (docs/scoring.md, docs/protocols.md)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docstring_parser
from rich.progress import TaskProgressColumn

from reconx_pl.cli.arguments import ArgumentParser, renamed_arguments
from reconx_pl.cli.command import run, summary
from reconx_pl.cli.config_option import ConfigOption
from reconx_pl.cli.console import progress_bar
from reconx_pl.cli.model_weights import provide_model
from reconx_pl.cli.protocols import report_missing
from reconx_pl.diffusion.conditioning.render_config import GuidanceName
from reconx_pl.errors import ReconXError
from reconx_pl.evaluation.ablation import Ablation
from reconx_pl.evaluation.missing import unfinished

ABLATIONS = {entry.arg_name: entry.description for entry in docstring_parser.parse(Ablation.__doc__ or "").params}


def build_evaluate_parser(protocol: bool = False, prog: str = "evaluate.py") -> ArgumentParser:
    """The parser of ``evaluate.py``: every argument of the function that does it but its callback, and ``--config``."""
    function = _evaluation(protocol)
    other = "" if protocol else " On a protocol: --protocol NAME, with options of its own (--protocol NAME --help)."
    parser = ArgumentParser(prog=prog, description=summary(function) + other)
    parser.add_argument("--config", action=ConfigOption, help="YAML file with any of these options")
    parser.add_function_arguments(function, skip={"progress", "ablation"})
    parser.add_argument("--yes", action="store_true", help="fetch the weights of a release without asking")
    without = parser.add_argument_group("Ablation: go without a part (ReconX, table V)")
    for flag, meaning in ABLATIONS.items():
        without.add_argument(f"--{flag.replace('_', '-')}", action="store_true", help=meaning)
    guidance = "generate with no other guidance than this one; of what the model was trained with (docs/guidance.md)"
    without.add_argument("--guidance", type=GuidanceName | None, default=None, help=guidance)
    if protocol:
        parser.add_argument(
            "--allow_failed", type=int, default=0, help="entries that may fail or be missing without an exit code of 1"
        )
    return parser


def _evaluation(protocol: bool) -> Callable[..., dict[str, Any]]:
    from reconx_pl.cli import evaluate

    return evaluate.evaluate_protocol if protocol else evaluate.evaluate


def names_protocol(args: list[str]) -> bool:
    """Whether the arguments of ``evaluate.py`` ask for a protocol."""
    return any(argument.split("=")[0] == "--protocol" for argument in args)


def evaluate_main(args: list[str] | None = None, prog: str = "evaluate.py") -> None:
    """Entry point of ``evaluate.py``; exit code 1 unless every scene, or enough of a protocol, was evaluated.

    Args:
        args: None takes those of the process.
        prog: name of the command in its help.
    """

    def command() -> None:
        arguments = renamed_arguments(sys.argv[1:] if args is None else args)
        protocol = names_protocol(arguments)
        parser = build_evaluate_parser(protocol, prog)
        chosen = vars(parser.instantiate_classes(parser.parse_args(arguments)))
        chosen.pop("config")
        allowed = chosen.pop("allow_failed", None)
        ablation = Ablation(**{flag: chosen.pop(flag) for flag in ABLATIONS}).guided_by(chosen.pop("guidance"))
        yes = chosen.pop("yes")
        if not ablation.no_diffusion:
            provide_model(chosen["model"], yes)
        with progress_bar("loading the model", TaskProgressColumn()) as progress:
            results = _evaluation(protocol)(**chosen, ablation=ablation, progress=progress)
        out = ablation.out(Path(chosen["out"]))
        if protocol:
            report_missing(out, results, allowed)
        elif not results["complete"]:
            raise ReconXError(f"{out}: {unfinished(results)}")

    run(command)
