"""Our own form of a whole model: ``model.safetensors``, ``config.json``, a model card, checksums.

Of a release also ``generation.json``.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reconx_pl.diffusion.weights.building import build_network, network_config
from reconx_pl.diffusion.weights.card import model_card
from reconx_pl.diffusion.weights.generation import GENERATION
from reconx_pl.diffusion.weights.load import Queries, fitting_state, load_network, read_network
from reconx_pl.diffusion.weights.model_file import is_model_file, load_model_file
from reconx_pl.diffusion.weights.releases import ReleaseName, release_config, release_defaults, release_of
from reconx_pl.diffusion.weights.writing import PRECISIONS, Precision, write_safetensors
from reconx_pl.errors import BadWeightsError, ConfigurationError, MissingWeightsError
from reconx_pl.files.checksums import SUMS, file_sha256, write_sums
from reconx_pl.files.weights import FOLDER_FILE, shipped

if TYPE_CHECKING:
    from reconx_pl.diffusion.model import ReconXDiffusion

log = logging.getLogger(__name__)
CONFIG, CARD = "config.json", "README.md"
_WANTED = [CONFIG, GENERATION, FOLDER_FILE, "config.yaml", "weights.safetensors"]  # of converted weights, and of a run
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def load_pretrained(
    place: str | Path, revision: str | None = None, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> ReconXDiffusion:
    """See ``ReconXDiffusion.from_pretrained``."""
    file = shipped(place)
    if is_model_file(file):
        return load_model_file(file, device, dtype)
    folder = file if file.is_dir() else hub_folder(str(place), revision)
    config = folder / CONFIG
    if not config.is_file():
        raise MissingWeightsError(f"{config} does not exist; `reconx weights convert` writes such a folder")
    try:
        described = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadWeightsError(f"{config}: not JSON ({error})") from error
    if not isinstance(described, dict):
        raise BadWeightsError(f"{config}: expected class_path and init_args, got {type(described).__name__}")
    network = build_network(described, str(config))
    load_network(network, folder / FOLDER_FILE, with_frozen_encoders=True, assign=True)
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_meta:
            raise BadWeightsError(f"{folder}: {name} has no value after loading; convert the checkpoint again")
    return network.to(device=device, dtype=dtype).eval()


def is_hub_name(place: str | Path) -> bool:
    """Whether it may be ``owner/name`` on the Hugging Face hub: not what exists here."""
    return isinstance(place, str) and not Path(place).exists() and _HUB_NAME.fullmatch(place) is not None


def hub_folder(place: str, revision: str | None = None) -> Path:
    """The network of a repository on the hub, fetched: a converted folder, or what a training run exported.

    Raises:
        MissingWeightsError: no such name, or it cannot be fetched.
    """
    if not is_hub_name(place):
        raise MissingWeightsError(f"{place} is neither a folder nor the name of a repository on the hub (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(place, revision=revision, allow_patterns=_WANTED))
    except Exception as error:  # versions of the library differ in their network errors
        raise MissingWeightsError(
            f"{place} is no folder here and could not be fetched from the hub ({error}); set HF_ENDPOINT to a mirror, "
            "or bring the folder by hand and give its path"
        ) from error


def save_pretrained(network: ReconXDiffusion, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """See ``ReconXDiffusion.save_pretrained``."""
    _write_folder(Path(folder), network.state_dict(), network_config(network), dtype, model_card(None, 0, "32"))


def convert(
    checkpoint: Path,
    out_folder: Path,
    release: ReleaseName,
    frames: int | None = None,
    queries: Queries = "interpolate",
    dtype: Precision = "32",
) -> None:
    """Write a released checkpoint of the base model as a folder that this package loads fast and strictly.

    Args:
        checkpoint: the released file, also in DeepSpeed's form.
        out_folder: gets model.safetensors, config.json, generation.json (how the release generates unless told
            otherwise), README.md, and the checksums of the first three, SHA256SUMS.
        release: which release it is.
        frames: frames with queries of their own; the released models have 16, the paper's clips 32, which is the
            default. ViewCrafter's are shared by all frames and stay as they are.
        queries: how 16 frames' queries become those of ``frames``: "interpolate" over time or "repeat".
        dtype: of the floating tensors: "32", "bf16" or "16".

    Raises:
        MissingWeightsError: no such checkpoint.
        BadWeightsError: it does not fit the release; the message lists the keys.
        ConfigurationError: fewer than 2 frames, or a number of frames for queries that are shared.
    """
    if frames is not None and frames < 2:
        raise ConfigurationError(f"frames is at least 2, got {frames}")
    known, config = release_of(release), release_config(release, frames)
    network = build_network(config, f"release {release}")
    state = fitting_state(network, read_network(checkpoint), str(checkpoint), queries, with_frozen_encoders=True)
    card, generation = model_card(known, known.queries(frames), dtype), release_defaults(release, frames).text()
    _write_folder(Path(out_folder), state, config, PRECISIONS[dtype], card, generation)
    log.info("%s: %d tensors of %s", out_folder, len(state), checkpoint)


def _write_folder(
    folder: Path,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    dtype: torch.dtype | None,
    card: str,
    generation: str | None = None,
) -> None:
    """The weights last but for their checksums: a folder with weights is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMS).unlink(missing_ok=True)  # of what is about to be replaced
    (folder / GENERATION).unlink(missing_ok=True)
    texts = {CONFIG: json.dumps(config, indent=2) + "\n", CARD: card}
    if generation is not None:
        texts[GENERATION] = generation
    for name, text in texts.items():
        partial = folder / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / name)
    write_safetensors(state, folder / FOLDER_FILE, dtype)
    summed = [name for name in (CONFIG, GENERATION, FOLDER_FILE) if (folder / name).is_file()]
    write_sums(folder, {name: file_sha256(folder / name) for name in summed})
