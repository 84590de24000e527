"""A painter from wherever its weights are: a training run, converted weights, the hub."""

from __future__ import annotations

import hashlib
from pathlib import Path

from reconx_pl.checksums import file_sha256
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.painter import DiffusionPainter, SamplingConfig
from reconx_pl.errors import MissingWeightsError
from reconx_pl.pipeline import load_run, weights_of
from reconx_pl.reconstruction.painting import PainterSource
from reconx_pl.weights_file import FOLDER_FILE


def load_painter(place: Path | str, sampling: SamplingConfig | None = None, device: str = "cpu") -> DiffusionPainter:
    """A painter from a training run's folder, a folder that ``reconx weights convert`` wrote, or a hub repository.

    Args:
        place: the folder, or ``owner/name`` on the hub.
        sampling: None takes the run's own settings, or the base model's.
        device: where it paints.

    Raises:
        MissingWeightsError, BadWeightsError: as ``load_run`` and ``ReconXDiffusion.from_pretrained``.
    """
    if (Path(place) / "config.yaml").is_file():
        module = load_run(Path(place))
        settings = sampling or module.sampling
        if not settings.offload:
            module.to(device)
        return module.painter(settings, device)
    settings = sampling or SamplingConfig()
    network = ReconXDiffusion.from_pretrained(place, device="cpu" if settings.offload else device)
    return DiffusionPainter(network, settings, device)


def painter_source(place: Path | str, sampling: SamplingConfig | None = None, device: str = "cpu") -> PainterSource:
    """``load_painter`` for later, with what identifies its frames now.

    Raises:
        MissingWeightsError: as ``model_identity``.
    """
    return PainterSource(model_identity(place, sampling), lambda: load_painter(place, sampling, device))


def model_identity(place: Path | str, sampling: SamplingConfig | None = None) -> str:
    """What a painter of ``load_painter`` follows from, without loading it: its files' hashes, and the sampling.

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
