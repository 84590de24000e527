"""The ``reconx`` command, and the command line of ``reconx evaluate`` and ``evaluate.py``."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import docstring_parser
from rich.logging import RichHandler
from rich.progress import TaskProgressColumn

from reconx_pl.cli.arguments import ArgumentParser, renamed_arguments, renamed_command
from reconx_pl.cli.config_option import ConfigOption
from reconx_pl.cli.console import console, progress_bar
from reconx_pl.cli.generate import SUMMARY as GENERATE
from reconx_pl.cli.generate import generate_parser, run_generate
from reconx_pl.cli.model_weights import provide_model
from reconx_pl.cli.protocols import COMMANDS as PROTOCOL_COMMANDS
from reconx_pl.cli.protocols import add_actions as add_protocol_actions
from reconx_pl.cli.protocols import report_missing
from reconx_pl.cli.reconstruct import SUMMARY as RECONSTRUCT
from reconx_pl.cli.reconstruct import reconstruct_parser, run_reconstruct
from reconx_pl.cli.scenes import COMMANDS as SCENE_COMMANDS
from reconx_pl.cli.weights import COMMANDS as MACHINE_COMMANDS
from reconx_pl.cli.weights import WEIGHTS_COMMANDS as MORE_WEIGHTS_COMMANDS
from reconx_pl.data.packing.packing import pack_command
from reconx_pl.diffusion.conditioning.render_config import GuidanceName
from reconx_pl.diffusion.weights.pretrained import convert
from reconx_pl.diffusion.weights.releases import ReleaseName
from reconx_pl.errors import ConfigurationError, ReconXError
from reconx_pl.evaluation.ablation import Ablation
from reconx_pl.evaluation.missing import unfinished
from reconx_pl.evaluation.posed_scenes import fit_posed_scenes
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.training.precompute import cache_shards


def procedural(
    out: Path,
    clips: int = 64,
    first_seed: int = 0,
    frames: int = 8,
    height: int = 128,
    width: int = 128,
    points: int = 16384,
    gap: float = 1.0,
    max_gap: float = 0.0,
    clips_per_shard: int = 32,
    variety: Literal["plain", "varied", "estimated"] = "plain",
) -> None:
    """Pack procedural clips (made-up scenes with depth) into shards.

    Args:
        out: folder of the shards; packing goes on where it stopped.
        clips: how many clips; one scene each.
        first_seed: seed of the first scene; the scene of clip i has seed first_seed + i.
        frames: frames of a clip.
        height: rows, pixels.
        width: columns, pixels.
        points: points of the cached cloud.
        gap: scales the distance between first and last view, in (0, 4]; above 1 they share less of the scene.
        max_gap: above gap, every scene draws its own between the two; 0 for one gap.
        clips_per_shard: clips in one tar file.
        variety: "plain" has rooms and landscapes with exact depth; "varied" more kinds of things and textures;
            "estimated" also the errors of estimated geometry.
    """
    from reconx_pl.data.procedural import write_procedural

    with progress_bar() as progress:
        write_procedural(
            out,
            count=clips,
            first_seed=first_seed,
            frames=frames,
            size=(height, width),
            points=points,
            gap=gap,
            max_gap=max_gap,
            clips_per_shard=clips_per_shard,
            variety=variety,
            progress=progress,
        )


def pack(out: Path, **options: Any) -> None:
    """Pack posed photographs or videos into shards; run it again to go on after an interruption.

    The arguments are those of ``reconx_pl.data.packing.packing.pack_command``.
    """
    with progress_bar() as progress:
        report = pack_command(out=out, progress=progress, **options)
    console.print(
        f"{out}: {report.packed} clips packed, {report.resumed} were there, {len(report.skipped)} skipped, "
        f"{len(report.without_cloud)} without a cloud"
    )
    if report.excluded or report.unmatched or report.other_splits:
        console.print(
            f"left out on purpose: {len(report.excluded)} scenes excluded by name, {report.other_splits} of other "
            f"splits; {len(report.unmatched)} names to exclude match no scene"
        )
    for name, median in report.checks.items():
        console.print(f"{out}/check/{name}.png: median epipolar distance {median:.2f} px")


def cache(shards: Path, out: Path, **options: Any) -> None:
    """Copy shards with clouds and what frozen encoders make of every clip; run it again to go on after an interruption.

    The arguments are those of ``reconx_pl.training.precompute.cache_shards``.
    """
    with progress_bar() as progress:
        report = cache_shards(shards, out, progress=progress, **options)
    console.print(
        f"{out}: {report.shards} shards ({report.clips} clips) written, {report.done} were there, "
        f"{len(report.bad)} bad clips copied as they are, {len(report.without)} clips left without a cloud"
    )
    for line in report.without[:5]:
        console.print(f"  {line}")
    if report.missing:
        console.print(f"{report.missing} shards are left to other processes; the last to finish writes the manifest")


def fetch(
    name: Literal["lpips", "da3-base", "da3-small", "dust3r-512-dpt", ReleaseName],
    folder: Path | None = None,
    sha256: str | None = None,
    revision: str = "main",
) -> None:
    """Fetch pretrained weights, checksums verified; an interrupted download goes on.

    Args:
        name: lpips: the VGG16 and AlexNet backbones of the perceptual distance; da3-base, da3-small:
            Depth-Anything-3, 0.54 and 0.14 GB, Apache-2.0, from the Hugging Face hub; dust3r-512-dpt: DUSt3R, 2.3 GB,
            non-commercial (CC BY-NC-SA 4.0), from there too; the others: checkpoints of the base model, 10.4 GB each.
        folder: where to write; None is "weights" for checkpoints, and for lpips takes those that
            RECONX_LPIPS_WEIGHTS or a cache has, and fetches what is missing.
        sha256: expected checksum of a checkpoint; None takes the one that the hub states.
        revision: of a checkpoint's repository: branch, tag or commit.
    """
    if name != "lpips":
        from reconx_pl.diffusion.weights.releases import GEOMETRY_RELEASES, release_of
        from reconx_pl.pretrained.fetch import fetch_release

        release = GEOMETRY_RELEASES[name] if name in GEOMETRY_RELEASES else release_of(name)
        if release.notice:
            console.print(release.notice)
        path = fetch_release(release, folder or Path("weights"), sha256, revision)
        console.print(f"{name}: {path}")
        return
    from reconx_pl.metrics.lpips_weights import Net, fetch_backbone, provide_backbone

    if sha256 is not None or revision != "main":
        raise ConfigurationError("lpips has checksums of its own and no revisions: leave out --sha256 and --revision")
    nets: tuple[Net, ...] = ("vgg", "alex")
    for net in nets:
        path = provide_backbone(net) if folder is None else fetch_backbone(net, folder)
        console.print(f"{name} {net}: {path}")


def geometry(source: Path, out: Path, estimator: PointMapEstimator | None = None) -> None:
    """Find cameras and points of photographs; write a posed scene that pack and evaluate.py read.

    Args:
        source: folder of photographs, or a posed scene, which keeps its poses and gets new points.
        out: folder of the scene, in the layout of data/posed.md.
        estimator: how; None is structure from motion (reconx_pl.geometry.estimators.colmap.ColmapEstimator).
    """
    from reconx_pl.data.photos.posed_clip import find_geometry

    made = find_geometry(source, out, estimator)
    console.print(f"{out}: {made.views} views, {made.points} points")


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


def consolidate(checkpoint: Path, out: Path, ema: bool = False) -> None:
    """Write the network's weights out of a checkpoint, sharded or not, into one .safetensors file.

    Args:
        checkpoint: folder that sharded training wrote, or a .ckpt file.
        out: the file; a stage's init_from, and what evaluate.py reads.
        ema: the moving averages in the place of the weights that they belong to.
    """
    from reconx_pl.training.checkpointing.consolidate import consolidate as write

    write(checkpoint, out, ema)
    console.print(f"{out}: weights of {checkpoint}{', averaged' if ema else ''}")


def run(function: Callable[[], Any]) -> None:
    """Run a command; errors that this package raises on purpose end without a traceback, with exit code 1."""
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[RichHandler(console=console, show_path=False)]
    )
    try:
        function()
    except ReconXError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; run the same command again to go on")


COMMANDS: dict[str, Callable[..., None]] = {
    "cache": cache,
    "consolidate": consolidate,
    "fit": fit,
    "geometry": geometry,
    "pack": pack,
    "procedural": procedural,
    **SCENE_COMMANDS,
    **MACHINE_COMMANDS,
}
ABLATIONS = {entry.arg_name: entry.description for entry in docstring_parser.parse(Ablation.__doc__ or "").params}
WEIGHTS_COMMANDS: dict[str, Callable[..., None]] = {"fetch": fetch, "convert": convert, **MORE_WEIGHTS_COMMANDS}
ACTIONS = {"weights": WEIGHTS_COMMANDS, "protocols": PROTOCOL_COMMANDS}  # commands with actions of their own

# listed here, and run by reconx_pl.__main__ with parsers of their own
ELSEWHERE = {
    "train": "Train a stage: fit, validate, test, predict, plan; what train.py of a checkout does.",
    "evaluate": "Evaluate a trained model on scenes or on a protocol; what evaluate.py of a checkout does.",
}


def build_parser() -> ArgumentParser:
    """The parser of ``reconx``."""
    parser = ArgumentParser(prog="reconx", description="ReconX: photographs to shards to scenes.")
    commands = parser.add_subcommands(dest="command")
    for name, function in COMMANDS.items():
        command = ArgumentParser(description=_summary(function))
        if name == "pack":
            command.add_function_arguments(pack_command, as_positional=True, skip={"check", "progress"})
            command.add_argument("--check", action="store_true", help="draw epipolar lines into OUT/check")
        elif name == "cache":
            command.add_function_arguments(cache_shards, as_positional=True, skip={"progress"})
        elif name == "fit":
            command.add_argument("scenes", type=Path, nargs="+", help="folders: posed scenes, or photographs")
            command.add_argument("--config", action=ConfigOption, help="YAML file with any of these options")
            command.add_function_arguments(fit_posed_scenes, skip={"scenes", "progress"})
        else:
            _add_arguments(command, function, only_first_by_place=name == "render")
        commands.add_subcommand(name, command, help=command.description)
    commands.add_subcommand("reconstruct", reconstruct_parser(), help=RECONSTRUCT)
    commands.add_subcommand("generate", generate_parser(), help=GENERATE)
    for name, described in ELSEWHERE.items():
        commands.add_subcommand(name, ArgumentParser(description=described), help=described)
    weights = ArgumentParser(description="Pretrained weights: list, fetch, convert, verify, publish them.")
    commands.add_subcommand("weights", weights, help=weights.description)
    actions = weights.add_subcommands(dest="action")
    for name, function in WEIGHTS_COMMANDS.items():
        command = ArgumentParser(description=_summary(function))
        if name == "verify":
            command.add_argument("weights", nargs="*", help="names of the list, files or converted folders; none: all")
            command.add_function_arguments(function, skip={"weights"})
        elif name in MORE_WEIGHTS_COMMANDS:
            _add_arguments(command, function)
        else:
            command.add_function_arguments(function, as_positional=True, skip={"release"})
        if name == "convert":
            command.add_argument("--release", type=ReleaseName, required=True, help="which release the checkpoint is")
        actions.add_subcommand(name, command, help=command.description)
    protocols = ArgumentParser(
        description="Published protocols: list and show them, fetch their indices, check their data."
    )
    commands.add_subcommand("protocols", protocols, help=protocols.description)
    add_protocol_actions(protocols)
    return parser


def _add_arguments(command: ArgumentParser, function: Callable[..., Any], only_first_by_place: bool = False) -> None:
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


def main(args: list[str] | None = None) -> None:
    """Entry point of ``reconx``."""
    parser = build_parser()

    def call() -> None:
        given = parser.parse_args(renamed_command(sys.argv[1:] if args is None else args))
        if given.command == "reconstruct":
            run_reconstruct(reconstruct_parser(), given.reconstruct)
            return
        if given.command == "generate":
            run_generate(generate_parser(), given.generate)
            return
        parsed = parser.instantiate_classes(given)
        chosen = parsed[parsed.command]
        if parsed.command in ACTIONS:
            ACTIONS[parsed.command][chosen.action](**vars(chosen[chosen.action]))
        else:
            COMMANDS[parsed.command](**vars(chosen))

    run(call)


def build_evaluate_parser(protocol: bool = False, prog: str = "evaluate.py") -> ArgumentParser:
    """The parser of ``evaluate.py``: every argument of the function that does it but its callback, and ``--config``."""
    function = _evaluation(protocol)
    other = "" if protocol else " On a protocol: --protocol NAME, with options of its own (--protocol NAME --help)."
    parser = ArgumentParser(prog=prog, description=_summary(function) + other)
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
    from reconx_pl.cli import evaluate  # brings Lightning along, which takes its time

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


def _summary(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]
