"""The commands for this machine and its weights: what is here, is it whole, publish it (docs/weights.md)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from rich.progress import DownloadColumn

from reconx_pl.cli.console import console, progress_bar
from reconx_pl.cli.doctor.command import doctor
from reconx_pl.diffusion.weights.writing import Precision
from reconx_pl.errors import BadWeightsError, ConfigurationError


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
    from reconx_pl.training.models import find_model  # brings Lightning along, which takes its time

    if out.suffix != ".safetensors":
        raise ConfigurationError(f"{out}: a model file ends in .safetensors")
    found = find_model(model)
    write_model_file(found.load().network, found.defaults, out, dtype)
    digest = file_sha256(out)
    record_sha256(out, digest)
    console.print(f"{out}: {out.stat().st_size / 1e6:.3g} MB, SHA-256 {digest}", highlight=False, soft_wrap=True)


COMMANDS: dict[str, Callable[..., None]] = {"doctor": doctor}
WEIGHTS_COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_weights,
    "verify": verify,
    "push": push,
    "export": export,
}
