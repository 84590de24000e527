"""The commands for this machine and its weights: what is here, is it whole, publish it (docs/weights.md)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from rich.progress import DownloadColumn

from reconx_pl.cli.arguments import ArgumentParser
from reconx_pl.cli.command import command_of, group_of, summary
from reconx_pl.cli.console import console, progress_bar
from reconx_pl.cli.doctor.command import doctor
from reconx_pl.diffusion.weights.pretrained import convert
from reconx_pl.diffusion.weights.releases import ReleaseName
from reconx_pl.diffusion.weights.writing import Precision
from reconx_pl.errors import BadWeightsError, ConfigurationError


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


def list_weights(folder: Path = Path("weights")) -> None:
    """List the pretrained weights that are known: what for, size, licence, and where they are.

    Args:
        folder: of fetched and converted weights.
    """
    from reconx_pl.pretrained.inventory import examine, inventory

    lines = []
    for weights in inventory(folder):
        size = "" if weights.bytes is None else f", {weights.bytes / 1e9:.3g} GB"
        lines.append(f"{weights.name}: {weights.purpose}{size}")
        lines.append(f"    licence: {'' if weights.commercial else 'NON-COMMERCIAL. '}{weights.licence}")
        verdict = examine(weights, read=False)
        lines.append(f"    {verdict.status}: {verdict.text}{f' ({weights.place})' if weights.present else ''}")
        if verdict.remedy:
            lines.append(f"    -> {verdict.remedy}")
    sys.stdout.write("\n".join(lines) + "\n")


def verify(weights: list[str], folder: Path = Path("weights")) -> None:
    """Read weights to their end and compare their SHA-256; exit code 1 unless every one is right.

    Args:
        weights: names of `reconx weights list`, files, converted folders; none takes everything that is here.
        folder: of fetched and converted weights.
    """
    from reconx_pl.pretrained.inventory import chosen, examine

    wrong, lines = [], []
    found = chosen(weights, folder)
    with progress_bar("reading", DownloadColumn()) as progress:
        for one in found:
            verdict = examine(one, progress)
            lines.append(f"{one.name}: {verdict.status}, {verdict.text}")
            if verdict.status != "verified":
                wrong.append(f"{one.name} is {verdict.status}: {verdict.text}. {verdict.remedy}")
    sys.stdout.write("".join(f"{line}\n" for line in lines or [f"no weights in {folder}"]))
    if wrong:
        raise BadWeightsError("\n  ".join(["not every one is verified:", *wrong]))


def push(
    source: Path,
    repository: str,
    licence: str | None = None,
    public: bool = False,
    revision: str = "main",
    message: str | None = None,
    dry_run: bool = False,
) -> None:
    """Publish a converted folder, or what a training run exported, on the Hugging Face hub, with a model card.

    Args:
        source: folder of `reconx weights convert`, folder of a run, or its weights.safetensors.
        repository: owner/name; made, private, if it is not there. The token is that of HF_TOKEN or `hf auth login`.
        licence: tag of the hub (apache-2.0, cc-by-nc-4.0, ...), where no card states one yet.
        public: everybody may see it: a repository that is made, and one that is there already.
        revision: branch; made if it is not there.
        message: of the commit.
        dry_run: check everything here, say what would be sent, and send nothing.
    """
    from reconx_pl.pretrained.push import check_repository, prepare
    from reconx_pl.pretrained.push import push as send

    check_repository(repository)
    with progress_bar("reading", DownloadColumn()) as progress:
        shipment = prepare(source, licence, progress)
    for name in shipment.files:
        console.print(f"{name}: {shipment.bytes_of(name) / 1e6:.3g} MB", highlight=False)
    console.print(f"licence: {shipment.licence}", highlight=False)
    if shipment.paths:
        console.print(f"config.yaml names paths of this machine: {', '.join(shipment.paths)}", highlight=False)
    if dry_run:
        console.print(f"nothing was sent to {repository}: dry run", highlight=False)
        return
    address = send(shipment, repository, public=public, revision=revision, message=message)
    console.print(f"{repository}: {address}", highlight=False, soft_wrap=True)


def export(model: str, out: Path, dtype: Precision = "16") -> None:
    """Write a model into one .safetensors file that says which network it is and how it generates; --model takes it.

    Args:
        model: folder of a training run, a checkpoint in it, or whatever else --model takes.
        out: the file; frozen encoders are in it, if the model has any.
        dtype: of its tensors: 32, bf16 or 16.
    """
    from reconx_pl.diffusion.weights.model_file import write_model_file
    from reconx_pl.files.checksums import file_sha256
    from reconx_pl.pretrained.fetch import record_sha256
    from reconx_pl.training.models import find_model

    if out.suffix != ".safetensors":
        raise ConfigurationError(f"{out}: a model file ends in .safetensors")
    found = find_model(model)
    write_model_file(found.load().network, found.defaults, out, dtype)
    digest = file_sha256(out)
    record_sha256(out, digest)
    console.print(f"{out}: {out.stat().st_size / 1e6:.3g} MB, SHA-256 {digest}", highlight=False, soft_wrap=True)


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


def _verify_parser() -> ArgumentParser:
    parser = ArgumentParser(description=summary(verify))
    parser.add_argument("weights", nargs="*", help="names of the list, files or converted folders; none: all")
    parser.add_function_arguments(verify, skip={"weights"})
    return parser


def _fetch_parser() -> ArgumentParser:
    parser = ArgumentParser(description=summary(fetch))
    parser.add_function_arguments(fetch, as_positional=True)
    return parser


def _convert_parser() -> ArgumentParser:
    parser = ArgumentParser(description=summary(convert))
    parser.add_function_arguments(convert, as_positional=True, skip={"release"})
    parser.add_argument("--release", type=ReleaseName, required=True, help="which release the checkpoint is")
    return parser


ACTIONS = {
    "fetch": command_of(fetch, _fetch_parser),
    "convert": command_of(convert, _convert_parser),
    "list": command_of(list_weights),
    "verify": command_of(verify, _verify_parser),
    "push": command_of(push),
    "export": command_of(export),
}
COMMANDS = {
    "consolidate": command_of(consolidate),
    "doctor": command_of(doctor),
    "weights": group_of("Pretrained weights: list, fetch, convert, verify, publish them.", ACTIONS),
}
