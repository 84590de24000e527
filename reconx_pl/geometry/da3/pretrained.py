"""Depth-Anything-3 with released weights, as an estimator that a command line or a YAML file can name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from reconx_pl.errors import MissingWeightsError
from reconx_pl.files.weights import fingerprint
from reconx_pl.geometry.da3.estimator import Da3Options, DepthAnything3Estimator
from reconx_pl.geometry.da3.released import RELEASED
from reconx_pl.geometry.da3.weights import load_released
from reconx_pl.geometry.estimators.base import Reconstruction
from reconx_pl.types import Cameras, Progress

FetchedDa3 = Literal["da3-base", "da3-small"]
#: where ``reconx weights fetch`` puts them
WEIGHTS: dict[FetchedDa3, Path] = {
    "da3-base": Path("weights/da3_base.safetensors"),
    "da3-small": Path("weights/da3_small.safetensors"),
}
#: size and licence of each, in words
SAID: dict[FetchedDa3, str] = {
    "da3-base": "0.54 GB, Apache-2.0 by its authors' README",
    "da3-small": "0.14 GB, Apache-2.0 by its authors' README",
}


class PretrainedDa3:
    """``DepthAnything3Estimator`` from a file of weights, which is read at the first use.

    Args:
        weights: see ``reconx_pl.geometry.da3.weights.read_weights``; SMALL, BASE or LARGE, which is non-commercial.
        device: torch device; None takes a GPU if there is one.
        options: see ``Da3Options``.
    """

    def __init__(
        self,
        weights: Path = WEIGHTS["da3-base"],
        device: str | None = None,
        options: Da3Options = Da3Options(),  # noqa: B008 (frozen)
    ) -> None:
        self.weights = Path(weights)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.options = options
        self._loaded: DepthAnything3Estimator | None = None

    @property
    def identity(self) -> str:
        """Name, size where it is a released one, hash of the weights, and settings: what its results follow from.

        Raises:
            MissingWeightsError, BadWeightsError: of the file.
        """
        model = self._estimator().model
        released = "".join(f"{name} " for name, one in RELEASED.items() if one.config == model.config)
        return f"Depth-Anything-3 {released}{fingerprint(model, self.options)[:16]} {self.options}"

    def estimate(
        self,
        images: Tensor,
        cameras: Cameras | None = None,
        fixed: Tensor | None = None,
        names: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> Reconstruction:
        """See ``DepthAnything3Estimator.estimate``.

        Raises:
            MissingWeightsError, BadWeightsError: of the file.
        """
        return self._estimator().estimate(images, cameras, fixed, names, progress)

    def _estimator(self) -> DepthAnything3Estimator:
        if self._loaded is None:
            if not self.weights.exists():
                raise missing_weights("da3-small" if self.weights == WEIGHTS["da3-small"] else "da3-base", self.weights)
            self._loaded = DepthAnything3Estimator(load_released(self.weights).to(self.device), self.options)
        return self._loaded


def missing_weights(name: FetchedDa3, place: Path) -> MissingWeightsError:
    """Says that there are no weights at ``place``, and what fetches those of that name."""
    return MissingWeightsError(
        f"{place}: no weights of Depth-Anything-3; `reconx weights fetch {name}` fetches them ({SAID[name]}) to "
        f"{WEIGHTS[name]}"
    )
