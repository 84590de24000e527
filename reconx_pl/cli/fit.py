"""``reconx fit``: 3D Gaussians of posed photographs, scored on held-out ones (docs/posed_scenes.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.progress import TaskProgressColumn

from reconx_pl.cli.arguments import ArgumentParser
from reconx_pl.cli.command import command_of, summary
from reconx_pl.cli.config_option import ConfigOption
from reconx_pl.cli.console import console, progress_bar
from reconx_pl.errors import ReconXError
from reconx_pl.evaluation.missing import unfinished
from reconx_pl.evaluation.posed_scenes import fit_posed_scenes


def fit(scenes: list[Path], config: Any = None, **options: Any) -> None:
    """Fit 3D Gaussians to photographs, scene after scene, and score them on held-out ones.

    The arguments are those of ``reconx_pl.evaluation.posed_scenes.fit_posed_scenes``.
    """
    from reconx_pl.evaluation.report import write_report

    with progress_bar("reading", TaskProgressColumn()) as progress:
        results = fit_posed_scenes(scenes, progress=progress, **options)
    write_report(options["out"], results)
    for record in results["scenes"]:
        seconds, scores = sum(record["seconds"].values()), _score_text(record["scores"].get("reconx", {}).get("mean"))
        console.print(
            f"{record['key']}: {scores or 'nothing held out'} ({record['gaussians']} Gaussians, {seconds:.0f} s)"
        )
    if results["mean"]:
        console.print(
            f"mean: {_score_text(results['mean']['reconx'])}; nearest photograph, copied: "
            f"{_score_text(results['mean']['nearest_input'])}"
        )
    for name, why in results["absent"].items():
        console.print(f"no {name.upper()}: {why}")
    if results["failed"]:
        raise ReconXError(f"{options['out']}: {unfinished(results)}")


def _score_text(scores: dict[str, float] | None) -> str:
    return ", ".join(f"{name.upper()} {value:.3f}" for name, value in (scores or {}).items())


def fit_parser() -> ArgumentParser:
    """The parser of ``reconx fit``."""
    parser = ArgumentParser(description=summary(fit))
    parser.add_argument("scenes", type=Path, nargs="+", help="folders: posed scenes, or photographs")
    parser.add_argument("--config", action=ConfigOption, help="YAML file with any of these options")
    parser.add_function_arguments(fit_posed_scenes, skip={"scenes", "progress"})
    return parser


COMMANDS = {"fit": command_of(fit, fit_parser)}
