"""Publishes weights on the Hugging Face hub: a converted folder, or what a training run exported, with a model card.

Only files that are named here are sent, in one commit; never a folder as it lies there, with its checkpoints and logs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from reconx_pl.diffusion.weights.card import run_card, with_licence
from reconx_pl.diffusion.weights.generation import GENERATION, read_generation
from reconx_pl.diffusion.weights.pretrained import CARD, CONFIG, load_pretrained
from reconx_pl.errors import BadWeightsError, ConfigurationError, MissingWeightsError, PublishingError, ReconXError
from reconx_pl.files.checksums import SUMS, differing, file_sha256, read_sums, sums_text
from reconx_pl.files.weights import FOLDER_FILE, readable
from reconx_pl.renamed import renamed
from reconx_pl.types import Progress
from reconx_pl.version import __version__

EXPORTED, RUN_CONFIG = "weights.safetensors", "config.yaml"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HOW_TO_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write"


@dataclass(frozen=True)
class Shipment:
    """What is sent.

    Args:
        files: name in the repository, and the file here or its content.
        licence: that the card states.
        paths: absolute paths in the configuration of a run, which everybody will be able to read.
    """

    files: Mapping[str, Path | bytes]
    licence: str
    paths: tuple[str, ...] = ()

    def bytes_of(self, name: str) -> int:
        """Size of one of the files."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def prepare(source: Path, licence: str | None = None, progress: Progress | None = None) -> Shipment:
    """Gather what is sent, and see that it is whole and loads.

    Args:
        source: a folder that ``reconx weights convert`` or ``save_pretrained`` wrote, the folder of a training run, or
            the ``weights.safetensors`` in it.
        licence: tag of the hub (``apache-2.0``, ``cc-by-nc-4.0``, ...), where no card states one yet.
        progress: of reading large files, in bytes.

    Raises:
        MissingWeightsError: there is no such folder or file, or a file in it is missing.
        BadWeightsError: a file is damaged or does not fit its configuration.
        ConfigurationError: no licence, or another one than the card's.
    """
    source = Path(source)
    if (source / FOLDER_FILE).is_file():
        return _converted(source, licence, progress)
    run = source if source.is_dir() else source.parent
    weights = run / EXPORTED if source.is_dir() else source
    if not weights.is_file():
        raise MissingWeightsError(
            f"{source}: neither a folder with {FOLDER_FILE} (`reconx weights convert` writes one) nor a run with "
            f"{EXPORTED}, which is written when the run has reached its last step"
        )
    if weights.suffix != ".safetensors":
        raise BadWeightsError(f"{weights}: only .safetensors is published; `reconx consolidate` writes it")
    return _exported(run, weights, licence, progress)


def push(
    shipment: Shipment,
    repository: str,
    *,
    public: bool = False,
    revision: str = "main",
    message: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Send a shipment to a model repository, which is made if it is not there.

    The token is the hub library's: HF_TOKEN, or that of ``hf auth login``.

    Args:
        shipment: see ``prepare``.
        repository: ``owner/name``.
        public: everybody may see it: a repository that is made, and one that is there already.
        revision: branch; made if it is not there.
        message: of the commit; None says which package sent it.
        endpoint: address of the hub; None takes HF_ENDPOINT, else huggingface.co.

    Returns:
        Address of the commit.

    Raises:
        ConfigurationError: no repository's name, no token, or a public repository without ``public``.
        PublishingError: the hub cannot be reached or refuses.
    """
    check_repository(repository)
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise ConfigurationError(f"publishing {repository} needs an account on the hub: {_HOW_TO_LOG_IN}")
    api = HfApi(endpoint=endpoint)
    files = [CommitOperationAdd(name, content) for name, content in shipment.files.items()]
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        if not public and not api.model_info(repository).private:
            raise ConfigurationError(f"{repository} is there and everybody can see it: say --public, or name another")
        if revision != "main":
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repository, files, commit_message=message or f"Weights from reconx_pl {__version__}", revision=revision
        )
    except ReconXError:
        raise
    except Exception as error:  # versions of the library differ in what they raise
        raise PublishingError(_refusal(repository, error)) from error
    return str(commit.commit_url)


def check_repository(repository: str) -> None:
    """Raise ConfigurationError unless this can be the name of a repository."""
    if not _REPOSITORY.fullmatch(repository):
        raise ConfigurationError(f"a repository on the hub is owner/name, got {repository!r}")


def _refusal(repository: str, error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return (
            f"the hub does not let this account write to {repository} ({status}): {_HOW_TO_LOG_IN} "
            "(https://huggingface.co/settings/tokens), and check the owner's name"
        )
    what = "; ".join(_first_line(one) for one in (error, error.__cause__) if one is not None)
    if status is not None:
        return f"the hub refused {repository} ({what}); nothing was published"
    return (
        f"{repository} was not published: the hub cannot be reached, or the connection broke ({what}). Unset "
        "HF_HUB_OFFLINE, check the network and HF_ENDPOINT, and run the same command again"
    )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _converted(folder: Path, licence: str | None, progress: Progress | None) -> Shipment:
    """A folder in our own form; its card is sent as it is, or with the licence that it does not state yet."""
    for name in (CONFIG, CARD):
        if not (folder / name).is_file():
            raise MissingWeightsError(f"{folder / name} is missing; `reconx weights convert` writes it")
    names = [name for name in (CONFIG, GENERATION, FOLDER_FILE) if (folder / name).is_file()]
    digests = {name: file_sha256(folder / name, progress) for name in names}
    listed = read_sums(folder / SUMS) if (folder / SUMS).is_file() else {}
    wrong = list(differing(folder, listed, lambda path: digests.get(path.name) or file_sha256(path, progress)))
    if wrong:
        raise BadWeightsError(f"{folder}: {'; '.join(wrong)}; convert the checkpoint again")
    load_pretrained(folder)  # maps the file; what does not load here would load nowhere
    read_generation(folder)
    card, licence = with_licence((folder / CARD).read_text(encoding="utf-8"), licence, str(folder / CARD))
    files = {name: folder / name for name in names}
    return Shipment({**files, CARD: card.encode(), SUMS: sums_text(digests).encode()}, licence)


def _exported(run: Path, weights: Path, licence: str | None, progress: Progress | None) -> Shipment:
    """What a run exported, under the names that ``evaluate.py --model`` looks for, with the network's configuration."""
    config = run / RUN_CONFIG
    if not config.is_file():
        raise MissingWeightsError(f"{config} is missing: it says which network {weights.name} is of; name a run's own")
    try:
        model = renamed(yaml.safe_load(config.read_text(encoding="utf-8"))["model"], ["model"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise BadWeightsError(f"{config}: no configuration of a run, which has a part `model` ({error})") from error
    facts = _facts(weights)
    text = yaml.safe_dump({"model": model}, sort_keys=False).encode()
    card, licence = with_licence(run_card(facts, model.get("init_from")), licence, f"{run}: a run has no card")
    digests = {EXPORTED: file_sha256(weights, progress), RUN_CONFIG: hashlib.sha256(text).hexdigest()}
    files: dict[str, Path | bytes] = {EXPORTED: weights, RUN_CONFIG: text}
    read_generation(run)
    if (run / GENERATION).is_file():
        files[GENERATION] = run / GENERATION
        digests[GENERATION] = file_sha256(run / GENERATION)
    files |= {CARD: card.encode(), SUMS: sums_text(digests).encode()}
    return Shipment(files, licence, tuple(sorted(set(_absolute(model)))))


def _facts(weights: Path) -> dict[str, str]:
    """What the exporting run wrote into the file: stage, step, whether the weights are averaged."""
    from safetensors import safe_open

    with readable(weights), safe_open(weights, framework="pt") as file:
        if not len(list(file.keys())):
            raise BadWeightsError(f"{weights}: no tensors in it")
        return dict(file.metadata() or {})


def _absolute(value: Any) -> list[str]:
    """Every string in a configuration that is an absolute path."""
    if isinstance(value, Mapping):
        return [path for inner in value.values() for path in _absolute(inner)]
    if isinstance(value, list):
        return [path for inner in value for path in _absolute(inner)]
    return [value] if isinstance(value, str) and Path(value).is_absolute() else []
