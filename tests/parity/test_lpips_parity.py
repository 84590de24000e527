"""LPIPS with our weights against values of the lpips package with its own, on real photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_kits import golden_kits
from PIL import Image

from reconx_pl.errors import MissingWeightsError
from reconx_pl.metrics.lpips import LpipsDistance

PAIRS = [pair for kit in golden_kits("metrics_*.json") for pair in json.loads(kit.read_text())["pairs"]]


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
    pairs = PAIRS if net == "alex" else PAIRS[::3]  # VGG takes a second each
    for pair in pairs:
        x, y = (_photograph(shared_dir / "scenes" / pair["scene"] / pair[role]) for role in ("prediction", "target"))
        with torch.no_grad():
            assert float(distance(x, y)) == pytest.approx(pair[f"lpips_{net}"], abs=1e-5), pair
