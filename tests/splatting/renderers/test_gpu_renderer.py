"""gsplat on a GPU: against the oracle's kits, and against the CPU renderer. The kernels compile at the first test."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_kits import golden_kits
from splat_scenes import random_gaussians, ring_cameras

from benchmarks.splat_oracle import gradient_errors, read_kit, value_errors
from reconx_pl.errors import BackendUnavailableError
from reconx_pl.splatting.renderers import gsplat as gsplat_backend
from reconx_pl.splatting.renderers.base import RenderOutput
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.splatting.renderers.cpu import CpuRenderer
from reconx_pl.splatting.renderers.gsplat import GsplatRenderer
from reconx_pl.types import Cameras, Gaussians

KITS = golden_kits("splat_*.json")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def renderer() -> GsplatRenderer:
    try:
        found = default_renderer("cuda")
    except BackendUnavailableError as error:
        pytest.skip(f"gsplat cannot run here: {error}")
    assert isinstance(found, GsplatRenderer)
    return found


@pytest.mark.skipif(not KITS, reason="needs golden kits splat_*: set RECONX_GOLDEN, or put them into tests/golden")
@pytest.mark.parametrize("path", KITS, ids=lambda path: path.stem)
class TestOracle:
    def test_values(self, renderer: GsplatRenderer, path) -> None:
        kit: dict[str, np.ndarray] = read_kit(path)
        assert not value_errors(kit, gsplat_backend.rasterize, renderer.alpha_max, "cuda").problems()

    @pytest.mark.parametrize("loss", ["rgba", "all"])
    def test_gradients(self, renderer: GsplatRenderer, path, loss: str) -> None:
        kit: dict[str, np.ndarray] = read_kit(path)
        errors = gradient_errors(kit, gsplat_backend.rasterize, loss, renderer.alpha_max, "cuda")
        assert not {name: error.problems() for name, error in errors.items() if error.problems()}


def _render(
    backend: GsplatRenderer | CpuRenderer, scene: Gaussians, cameras: Cameras, degree: int, background: torch.Tensor
) -> tuple[RenderOutput, dict[str, torch.Tensor]]:
    """Values and gradients by the scene, the poses and the background, on the CPU."""
    device = "cuda" if isinstance(backend, GsplatRenderer) else "cpu"
    leaves = {name: value.detach().clone().to(device).requires_grad_() for name, value in vars(scene).items()}
    leaves["background"] = background.clone().to(device).requires_grad_()
    pose = cameras.world_to_camera.clone().to(device).requires_grad_()
    moved = Cameras(pose, cameras.intrinsics.to(device), cameras.height, cameras.width)
    output = backend.render(
        Gaussians(**{**leaves, "background": scene.background.to(device)}), moved, degree, leaves["background"]
    )
    (output.color.square().sum() + output.alpha.sum() + 0.1 * output.depth.sum()).backward()
    gradients = {name: leaf.grad.cpu() for name, leaf in leaves.items() if leaf.grad is not None}
    gradients["pose"] = pose.grad.cpu()
    values = (value.detach().cpu() for value in (output.color, output.alpha, output.depth))
    return RenderOutput(*values), gradients


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_agrees_with_the_cpu_renderer(renderer: GsplatRenderer, degree: int) -> None:
    """Several views, one background a view, a size that is no multiple of a tile, fewer bands than there are."""
    cameras, scene = ring_cameras(3, 61), random_gaussians(300)
    cameras = Cameras(cameras.world_to_camera, cameras.intrinsics, 61, 75)
    background = torch.rand(3, 3, generator=torch.Generator().manual_seed(1))
    ours, our_gradients = _render(CpuRenderer(alpha_max=renderer.alpha_max), scene, cameras, degree, background)
    theirs, their_gradients = _render(renderer, scene, cameras, degree, background)
    for name in ("color", "alpha", "depth"):
        one, two = getattr(theirs, name), getattr(ours, name)
        assert ((one - two).abs() > 2e-4).double().mean() < 0.02, name  # single pixels decide a cut-off the other way
        assert float((one - two).norm()) < 2e-3 * float(two.norm()), name
    assert our_gradients.keys() == their_gradients.keys()
    for name, two in our_gradients.items():
        assert float((their_gradients[name] - two).norm()) < 5e-3 * float(two.norm()), name


def test_types_other_than_float32_are_taken(renderer: GsplatRenderer) -> None:
    cameras, scene = ring_cameras(1, 32), random_gaussians(50)
    double = Gaussians(**{name: value.double().cuda() for name, value in vars(scene).items()})
    single = Gaussians(**{name: value.cuda() for name, value in vars(scene).items()})
    torch.testing.assert_close(renderer.render(double, cameras).color, renderer.render(single, cameras).color)
