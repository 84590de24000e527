"""DUSt3R with released weights, as an estimator that a command line or a YAML file can name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from reconx_pl.errors import MissingWeightsError
from reconx_pl.files.weights import fingerprint
from reconx_pl.geometry.dust3r.estimator import Dust3rEstimator, Dust3rOptions
from reconx_pl.geometry.dust3r.weights import load_released
from reconx_pl.geometry.estimators.base import Reconstruction
from reconx_pl.types import Cameras, Progress

WEIGHTS = Path("weights/dust3r_512_dpt.safetensors")  # where ``reconx weights fetch dust3r-512-dpt`` puts them


class PretrainedDust3r:
    """``Dust3rEstimator`` from a file of weights, which is read at the first use.

    Args:
        weights: see ``reconx_pl.geometry.dust3r.weights.read_weights``. The released ones are non-commercial.
        device: torch device; None takes a GPU if there is one.
        options: see ``Dust3rOptions``.
    """

    def __init__(
        self,
        weights: Path = WEIGHTS,
        device: str | None = None,
        options: Dust3rOptions = Dust3rOptions(),  # noqa: B008 (frozen)
    ) -> None:
        self.weights = Path(weights)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.options = options
        self._loaded: Dust3rEstimator | None = None

    @property
    def identity(self) -> str:
        """Name, hash of the weights, and settings: what its results follow from.

        Raises:
            MissingWeightsError, BadWeightsError: of the file.
        """
        return f"DUSt3R {fingerprint(self._estimator().model, self.options)[:16]} {self.options}"

    def estimate(
        self,
        images: Tensor,
        cameras: Cameras | None = None,
        fixed: Tensor | None = None,
        names: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Reconstruction:
        """See ``Dust3rEstimator.estimate``.

        Raises:
            MissingWeightsError, BadWeightsError: of the file.
        """
        return self._estimator().estimate(images, cameras, fixed, names, progress)

    def _estimator(self) -> Dust3rEstimator:
        if self._loaded is None:
            if not self.weights.exists():
                raise MissingWeightsError(
                    f"{self.weights}: no weights of DUSt3R; `reconx weights fetch dust3r-512-dpt` fetches the released "
                    f"ones (2.3 GB, non-commercial) to {WEIGHTS}"
                )
            self._loaded = Dust3rEstimator(load_released(self.weights).to(self.device), self.options)
        return self._loaded
