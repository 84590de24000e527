"""A view generator from wherever its weights are: a training run, converted weights, the hub."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentParser

from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.pipeline import SamplingConfig, SamplingPipeline
from reconx_pl.errors import MissingWeightsError
from reconx_pl.files.checksums import file_sha256
from reconx_pl.files.weights import FOLDER_FILE
from reconx_pl.reconstruction.view_generator import ViewGeneratorSource
from reconx_pl.training.checkpointing.network_weights import load_weights, own_weights, whole_tensors
from reconx_pl.training.checkpointing.resume import newest_checkpoint
from reconx_pl.training.module import ReconXModule


def load_view_generator(
    place: Path | str, sampling: SamplingConfig | None = None, device: str = "cpu"
) -> SamplingPipeline:
    """A sampling pipeline from a run's folder, a folder of ``reconx weights convert``, or a hub repository.

    Args:
        place: the folder, or ``owner/name`` on the hub.
        sampling: None takes the run's own settings, or the base model's.
        device: where it generates.

    Raises:
        MissingWeightsError, BadWeightsError: as ``load_run`` and ``ReconXDiffusion.from_pretrained``.
    """
    if (Path(place) / "config.yaml").is_file():
        module = load_run(Path(place))
        settings = sampling or module.sampling
        if not settings.offload:
            module.to(device)
        return module.view_generator(settings, device)
    settings = sampling or SamplingConfig()
    network = ReconXDiffusion.from_pretrained(place, device="cpu" if settings.offload else device)
    return SamplingPipeline(network, settings, device)


def view_generator_source(
    place: Path | str, sampling: SamplingConfig | None = None, device: str = "cpu"
) -> ViewGeneratorSource:
    """``load_view_generator`` for later, with what identifies its frames now.

    Raises:
        MissingWeightsError: as ``model_identity``.
    """
    return ViewGeneratorSource(model_identity(place, sampling), lambda: load_view_generator(place, sampling, device))


def model_identity(place: Path | str, sampling: SamplingConfig | None = None) -> str:
    """What frames of ``load_view_generator`` follow from, without loading it: hashes of files, and the sampling.

    Raises:
        MissingWeightsError: no such folder, or a run without weights.
    """
    folder = Path(place)
    if not folder.is_dir():
        return f"{place} on the hub, {sampling}"
    run = folder / "config.yaml"
    weights = weights_of(folder) if run.is_file() else folder / FOLDER_FILE
    if not weights.exists():
        raise MissingWeightsError(
            f"{folder} is neither the folder of a training run (config.yaml) nor of converted weights ({FOLDER_FILE}); "
            "`reconx weights list` shows what there is"
        )
    described = [path for path in (run, folder / "config.json") if path.is_file()]
    parts = sorted(path for path in weights.rglob("*") if path.is_file()) if weights.is_dir() else [weights]
    digests = " ".join(file_sha256(path) for path in [*described, *parts])
    return f"weights {hashlib.sha256(digests.encode()).hexdigest()[:16]}, {sampling}"


def view_generator_identity(view_generator: SamplingPipeline) -> str:
    """Who generated: a hash of the weights, and the sampling settings. Other weights never inherit these results.

    Where the weights are sharded every rank has to ask.
    """
    digest = hashlib.sha256()
    for name, tensor in whole_tensors(dict(sorted(own_weights(view_generator.network).items()))):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"weights {digest.hexdigest()[:16]}, {view_generator.config}"


def weights_of(run: Path, weights: Path | None = None) -> Path:
    """The weights that stand for a run: those given, else what the run exported, else its newest checkpoint.

    Raises:
        MissingWeightsError: none of them is there.
    """
    exported = Path(weights) if weights else run / "weights.safetensors"
    if exported.exists():
        return exported
    found = None if weights else newest_checkpoint(run / "checkpoints")
    if found is None:
        where = exported if weights else f"{exported} or in {run / 'checkpoints'}"
        raise MissingWeightsError(f"no weights at {where}; let the run in {run} write a checkpoint first")
    return found


def load_run(run: Path, weights: Path | None = None) -> ReconXModule:
    """Rebuild the module of a training run from its ``config.yaml`` and load its weights.

    Args:
        run: folder that ``train.py`` wrote: ``config.yaml`` and ``weights.safetensors`` or ``checkpoints``. Of a
            checkpoint with an average of the weights (``model.ema``) the average is taken, as in validation.
        weights: a checkpoint (file or folder), a ``.safetensors`` file or a converted folder to take instead of the
            run's own.

    Raises:
        MissingWeightsError: no such run, or it has no weights yet.
        BadWeightsError: weights that do not fit the run's model.
    """
    run = Path(run)
    config = run / "config.yaml"
    if not config.is_file():
        raise MissingWeightsError(
            f"{config} does not exist; train first, for instance: python train.py fit -c configs/stage2.yaml"
        )
    found = weights_of(run, weights)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ReconXModule, "model")
    parsed = parser.parse_object({"model": yaml.safe_load(config.read_text())["model"]})
    module: ReconXModule = parser.instantiate_classes(parsed).model
    load_weights(module.network, found, average=module.ema_config is not None and ".ckpt" in found.name)
    return module.eval()
