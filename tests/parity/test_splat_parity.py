"""The CPU renderer against a brute-force float64 oracle, in values and gradients, for every ``splat_*`` kit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_kits import golden_kits

from reconx_pl.splatting.cpu import rasterize

KITS = golden_kits("splat_*.json")
NAMES = ("means", "quats", "scales", "opacities", "sh", "viewmats", "background")

pytestmark = pytest.mark.skipif(
    not KITS, reason="needs golden kits splat_*: set RECONX_GOLDEN, or put them into tests/golden"
)


def _render(kit: dict[str, np.ndarray], alpha_max: float, degree: int = 3, grad: bool = False, **options):
    tensors = {name: torch.from_numpy(kit[name]).requires_grad_(grad) for name in NAMES}
    color, alpha, depth = rasterize(
        tensors["means"],
        tensors["quats"],
        tensors["scales"],
        tensors["opacities"],
        tensors["sh"],
        tensors["viewmats"],
        torch.from_numpy(kit["Ks"]),
        int(kit["height"]),
        int(kit["width"]),
        sh_degree=degree,
        background=tensors["background"],
        alpha_max=alpha_max,
        **options,
    )
    return tensors, color.permute(0, 2, 3, 1), alpha, depth


@pytest.fixture(scope="module", params=KITS, ids=lambda path: path.stem)
def kit(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    path: Path = request.param
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(params=[("", 0.999), ("_amax099", 0.99)], ids=["alpha0.999", "alpha0.99"])
def variant(request: pytest.FixtureRequest) -> tuple[str, float]:
    return request.param


@pytest.mark.parametrize("degree", [0, 2, 3])
def test_color(kit: dict[str, np.ndarray], variant: tuple[str, float], degree: int) -> None:
    suffix, alpha_max = variant
    _, color, _, _ = _render(kit, alpha_max, degree)
    error = np.abs(color.numpy() - kit[f"rgb_sh{degree}{suffix}"]).max(-1)
    margin = kit[f"margin{suffix}"]
    assert error[margin >= 1e-3].max() <= 5e-5
    if not suffix:  # with 0.99 the transmittance stop itself flips between float32 and float64 (the kit's trap_099)
        assert error.max() <= 8e-3
        assert (error > 5e-5).mean() <= 0.02


def test_alpha_and_depth(kit: dict[str, np.ndarray], variant: tuple[str, float]) -> None:
    suffix, alpha_max = variant
    _, _, alpha, depth = _render(kit, alpha_max)
    safe = kit[f"margin{suffix}"] >= 1e-3
    assert np.abs(alpha.numpy() - kit[f"alpha{suffix}"])[safe].max() <= 2e-5
    expected = kit[f"depth_expected{suffix}"]
    relative = np.abs(depth.numpy() - expected) / np.maximum(np.abs(expected), 1e-2)
    assert relative[safe].max() <= 1e-4


@pytest.mark.parametrize("loss", ["rgba", "all"])
def test_gradients(kit: dict[str, np.ndarray], loss: str) -> None:
    tensors, color, alpha, depth = _render(kit, 0.999, grad=True)
    total = (color * torch.from_numpy(kit["w_rgb"])).sum() + (alpha * torch.from_numpy(kit["w_alpha"])).sum()
    if loss == "all":
        total = total + (depth * torch.from_numpy(kit["w_depth"])).sum()
    total.backward()
    for name in NAMES:
        expected = kit[f"grad_{loss}_{name}"].astype(np.float64)
        actual = tensors[name].grad.double().numpy()
        norm = np.linalg.norm(expected)
        assert np.linalg.norm(actual - expected) <= 2e-3 * norm, name
        if name in ("viewmats", "background"):
            continue
        rows, truth = actual.reshape(len(actual), -1), expected.reshape(len(expected), -1)
        allowed = 2e-2 * np.linalg.norm(truth, axis=1) + 1e-3 * np.abs(truth).max()
        assert (np.abs(rows - truth).max(1) <= allowed).all(), name
        culled = ~truth.any(axis=1)
        assert not rows[culled].any(), f"{name}: a culled Gaussian has a gradient"


def test_culled_gaussians_of_the_kit_exist(kit: dict[str, np.ndarray]) -> None:
    """The check above would say nothing if no Gaussian were culled everywhere."""
    assert (kit["radii"].max(axis=(0, 2)) == 0).any()


def test_threads_do_not_change_a_bit(kit: dict[str, np.ndarray]) -> None:
    results = []
    for threads in (1, 2):
        tensors, color, alpha, depth = _render(kit, 0.999, grad=True, threads=threads)
        (color.sum() + alpha.sum() + depth.sum()).backward()
        results.append([color.detach(), *(tensors[name].grad for name in NAMES)])
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
