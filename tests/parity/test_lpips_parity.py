"""LPIPS with our weights against values of the lpips package with its own, on real photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_kits import described, golden_kits, not_held
from PIL import Image

from reconx_pl.errors import MissingWeightsError
from reconx_pl.metrics.lpips import LpipsDistance

KITS = golden_kits("metrics_*.json")
PAIRS = [pair for kit in KITS for pair in described(kit)["pairs"]]


def _photograph(path: Path) -> torch.Tensor:  # [1, 3, 256, 256]
    image = Image.open(path).convert("RGB")
    factor = 256 / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)
    left, top = (image.width - 256) // 2, (image.height - 256) // 2
    image = image.crop((left, top, left + 256, top + 256))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.skipif(not PAIRS, reason="needs golden kits metrics_*: set RECONX_GOLDEN, or put them into tests/golden")
@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_of_photographs(shared_dir: Path, net: str) -> None:
    try:
        distance = LpipsDistance(net)
    except MissingWeightsError as error:
        pytest.skip(str(error))
    pairs = [pair for pair in PAIRS if f"lpips_{net}" in pair]
    if not pairs:
        not_held(f"lpips_{net}", ", ".join(kit.stem for kit in KITS))
    if net == "vgg":
        pairs = pairs[::3]  # a second each
    for pair in pairs:
        x, y = (_photograph(shared_dir / "scenes" / pair["scene"] / pair[role]) for role in ("prediction", "target"))
        with torch.no_grad():
            assert float(distance(x, y)) == pytest.approx(pair[f"lpips_{net}"], abs=1e-5), pair
