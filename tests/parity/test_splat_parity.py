"""Renderers on the CPU against a brute-force float64 oracle, in values and gradients, for every ``splat_*`` kit.

gsplat's turn is in splatting/renderers/test_gpu_renderer.py; ``python -m benchmarks.splat oracle`` prints the figures.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_kits import described, golden_kits, not_held

from benchmarks import torch_renderer
from benchmarks.splat_oracle import (
    PARAMETERS,
    VARIANTS,
    Rasterize,
    degrees_of,
    gradient_errors,
    read_kit,
    render,
    value_errors,
)
from reconx_pl.splatting.renderers import cpu

KITS = golden_kits("splat_*.json")
BACKENDS = {"cpu": (cpu.rasterize, False), "torch": (torch_renderer.rasterize, True)}

pytestmark = pytest.mark.skipif(
    not KITS, reason="needs golden kits splat_*: set RECONX_GOLDEN, or put them into tests/golden"
)


class Arrays(dict[str, np.ndarray]):
    """Of a kit; one that it lacks skips the test."""

    def __init__(self, description: Path) -> None:
        self.description = description
        if not description.with_suffix(".npz").is_file():
            not_held(description.with_suffix(".npz").name, description.name)
        super().__init__(read_kit(description))

    def __missing__(self, name: str) -> np.ndarray:
        not_held(f"the array {name}", self.description.stem)


@pytest.fixture(scope="module", params=KITS, ids=lambda path: path.stem)
def kit(request: pytest.FixtureRequest) -> Arrays:
    return Arrays(request.param)


@pytest.fixture(params=[0.999, 0.99])
def alpha_max(request: pytest.FixtureRequest) -> float:
    return request.param


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, alpha_max: float) -> tuple[Rasterize, bool]:
    rasterize, double = BACKENDS[request.param]
    return partial(rasterize, alpha_max=alpha_max), double


def test_color_alpha_and_depth(kit: Arrays, backend: tuple[Rasterize, bool], alpha_max: float) -> None:
    rasterize, double = backend
    if not degrees_of(kit, alpha_max):
        not_held(f"pictures with alpha_max {alpha_max}", kit.description.stem)
    assert not value_errors(kit, rasterize, alpha_max, double=double).problems()


@pytest.mark.parametrize("loss", ["rgba", "all"])
def test_gradients(kit: Arrays, backend: tuple[Rasterize, bool], alpha_max: float, loss: str) -> None:
    rasterize, double = backend
    errors = gradient_errors(kit, rasterize, loss, alpha_max, double=double)
    assert not {name: error.problems() for name, error in errors.items() if error.problems()}


def test_the_other_alpha_max_is_told_apart(kit: Arrays, alpha_max: float) -> None:
    """The checks above would say nothing if alpha_max made no difference in the kit."""
    both = set(degrees_of(kit, 0.999)) & set(degrees_of(kit, 0.99))
    if not both:
        not_held("pictures with one and with another alpha_max", kit.description.stem)
    rgb = f"rgb_sh{max(both)}"
    if all(np.array_equal(kit[f"{name}{VARIANTS[0.999]}"], kit[f"{name}{VARIANTS[0.99]}"]) for name in ("alpha", rgb)):
        not_held("a pixel that alpha_max changes", kit.description.stem)
    other = partial(cpu.rasterize, alpha_max=0.99 if alpha_max == 0.999 else 0.999)
    assert value_errors(kit, other, alpha_max).problems()
    assert any(error.problems() for error in gradient_errors(kit, other, "rgba", alpha_max).values())


def test_culled_gaussians_of_the_kit_exist(kit: Arrays) -> None:
    """The check of their gradients would say nothing if no Gaussian were culled everywhere."""
    if "opacity_below_cutoff" not in described(kit.description)["cases"]:
        not_held("Gaussians that are culled everywhere", kit.description.stem)
    assert (kit["radii"].max(axis=(0, 2)) == 0).any()


def test_threads_do_not_change_a_bit(kit: Arrays) -> None:
    results = []
    for threads in (1, 2):
        leaves, color, alpha, depth = render(kit, partial(cpu.rasterize, threads=threads), grad=True)
        (color.sum() + alpha.sum() + depth.sum()).backward()
        results.append([color.detach(), *(leaves[name].grad for name in PARAMETERS)])
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)
