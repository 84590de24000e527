"""PSNR, SSIM and LPIPS against the numbers that scikit-image and lpips themselves gave for real photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_kits import SHARED, Described, Held, described, golden_kits, not_held
from PIL import Image

from reconx_pl.errors import MissingWeightsError
from reconx_pl.metrics.image import lpips, psnr, ssim

KITS = golden_kits("metrics_*.json")
pytestmark = pytest.mark.skipif(not KITS, reason="needs the golden kits metrics_*.json")
PAIRS = [
    pytest.param(
        Described(pair, kit.stem, f"pair {number}, "), id=f"{kit.stem}-{pair['scene']}-{Path(pair['prediction']).stem}"
    )
    for kit in KITS
    for number, pair in enumerate(described(kit)["pairs"])
]
SIZE = 256


def square(path: Path) -> torch.Tensor:
    """[1, 3, 256, 256] by the kit's recipe: Lanczos so that the short side fits, centre crop."""
    if not path.is_file():
        pytest.skip(f"the kit's photograph {path} is not here")
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = SIZE / min(image.size)
    resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    left, top = (resized.width - SIZE) // 2, (resized.height - SIZE) // 2
    pixels = np.asarray(resized.crop((left, top, left + SIZE, top + SIZE)), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def images(pair: Described) -> tuple[torch.Tensor, torch.Tensor]:
    folder = SHARED / "scenes" / pair["scene"]
    return square(folder / pair["prediction"]), square(folder / pair["target"])


@pytest.mark.parametrize("pair", PAIRS)
def test_psnr_and_ssim(pair: Described) -> None:
    prediction, target = images(pair)
    with Held(pair) as held:
        # The kit's PSNR was computed in float32, whose spacing at 20 dB is 1.9e-6.
        for _, expected in held.of(["psnr"]):
            assert psnr(prediction, target).item() == pytest.approx(expected, abs=2e-6)
        for _, expected in held.of(["ssim"]):
            assert ssim(prediction, target).item() == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def distances() -> dict[str, torch.nn.Module]:
    perceptual = pytest.importorskip("reconx_pl.metrics.lpips")
    found = {}
    for net in ("vgg", "alex"):
        try:
            found[net] = perceptual.LpipsDistance(net=net).eval()
        except MissingWeightsError as error:
            pytest.skip(str(error))
    return found


@pytest.mark.parametrize("pair", PAIRS)
def test_lpips(pair: Described, distances: dict[str, torch.nn.Module]) -> None:
    expected = {net: pair[f"lpips_{net}"] for net in distances if f"lpips_{net}" in pair}
    if not expected:
        not_held("LPIPS", pair.kit)
    prediction, target = images(pair)
    for net, wanted in expected.items():
        assert lpips(prediction, target, distances[net]).item() == pytest.approx(wanted, abs=1e-5)
