"""The CPU renderer on scenes of our own: a second implementation, edge cases, errors. The oracle is in tests/parity."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from splat_scenes import random_gaussians, ring_cameras

from benchmarks.torch_renderer import TorchRenderer
from reconx_pl import splatting
from reconx_pl.errors import BackendUnavailableError, ConfigurationError
from reconx_pl.splatting.renderers import cpu, cpu_kernels_raster
from reconx_pl.splatting.renderers.base import Renderer
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.splatting.renderers.cpu import CpuRenderer
from reconx_pl.types import Cameras, Gaussians

PARAMETERS = ("means", "quaternions", "log_scales", "opacity_logits", "sh")


def _require_grad(scene: Gaussians) -> Gaussians:
    return Gaussians(**{name: value.detach().clone().requires_grad_() for name, value in vars(scene).items()})


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_values_and_gradients_agree_with_plain_torch(degree: int) -> None:
    cameras = ring_cameras(2, 24)
    cameras = replace(cameras, width=20)  # neither side a multiple of the tile
    ours = _require_grad(random_gaussians(40, sh_degree=3))
    theirs = _require_grad(random_gaussians(40, sh_degree=3, dtype=torch.float64))
    poses = [cameras.world_to_camera.clone().requires_grad_(), cameras.world_to_camera.double().requires_grad_()]
    background = [
        torch.tensor([0.2, 0.5, 0.9]).requires_grad_(),
        torch.tensor([0.2, 0.5, 0.9]).double().requires_grad_(),
    ]

    output = CpuRenderer(threads=1).render(ours, replace(cameras, world_to_camera=poses[0]), degree, background[0])
    reference = TorchRenderer().render(
        theirs,
        Cameras(poses[1], cameras.intrinsics.double(), cameras.height, cameras.width),
        degree,
        background[1],
    )
    results = (output.color, output.alpha, output.depth)
    expected = (reference.color, reference.alpha, reference.depth)
    weights = [torch.randn(value.shape, generator=torch.Generator().manual_seed(7)) for value in expected]
    for value, truth in zip(results, expected, strict=True):
        error = (value - truth).detach().abs()
        assert (error < 1e-4).double().mean() > 0.98  # single pixels may decide a cut-off the other way
        assert float(error[:2].max()) < 0.1
    torch.stack([(w * value).sum() for w, value in zip(weights, results, strict=True)]).sum().backward()
    torch.stack([(w * value).sum() for w, value in zip(weights, expected, strict=True)]).sum().backward()
    pairs = [(getattr(ours, name), getattr(theirs, name)) for name in PARAMETERS]
    for mine, other in [*pairs, (poses[0], poses[1]), (background[0], background[1])]:
        assert mine.grad is not None and other.grad is not None
        assert float((mine.grad - other.grad).norm()) < 2e-3 * float(other.grad.norm())


def test_one_gaussian_in_closed_form() -> None:
    """Centre pixel of a ball on the optical axis: alpha = opacity, depth = z; T-weighted background."""
    cameras = ring_cameras(1, 33, spread=0.0)
    scene = Gaussians(
        means=torch.zeros(1, 3),
        quaternions=torch.tensor([[2.0, 0.0, 0.0, 0.0]]),
        log_scales=torch.full((1, 3), -1.0),
        opacity_logits=torch.logit(torch.tensor([0.7])),
        sh=torch.zeros(1, 1, 3),
    )
    output = CpuRenderer().render(scene, cameras, background=torch.tensor([1.0, 0.0, 0.0]))
    assert float(output.alpha[0, 16, 16]) == pytest.approx(0.7, abs=1e-6)
    assert float(output.depth[0, 16, 16]) == pytest.approx(3.0, abs=1e-5)
    torch.testing.assert_close(output.color[0, :, 16, 16], torch.tensor([0.65, 0.35, 0.35]), atol=1e-6, rtol=0)


def test_nothing_in_view_is_background_and_has_no_gradient() -> None:
    cameras = ring_cameras(1, 16)
    scene = _require_grad(random_gaussians(30))
    behind = replace(scene, means=(scene.means + torch.tensor([0.0, 0.0, -50.0])).detach().requires_grad_())
    output = CpuRenderer().render(behind, cameras)
    assert torch.equal(output.color[0], scene.background.detach()[:, None, None].expand(3, 16, 16))
    assert not output.alpha.any() and not output.depth.any()
    output.color.sum().backward()
    assert all(not getattr(behind, name).grad.any() for name in PARAMETERS)


def test_nan_gaussian_is_culled() -> None:
    cameras = ring_cameras(1, 16)
    scene = random_gaussians(30)
    expected = CpuRenderer().render(
        Gaussians(**{k: v[1:] if k != "background" else v for k, v in vars(scene).items()}), cameras
    )
    scene.means[0] = float("nan")
    assert torch.equal(CpuRenderer().render(scene, cameras).color, expected.color)


def test_empty_scene() -> None:
    scene = Gaussians(torch.zeros(0, 3), torch.zeros(0, 4), torch.zeros(0, 3), torch.zeros(0), torch.zeros(0, 1, 3))
    output = CpuRenderer().render(scene, ring_cameras(2, 9))
    assert output.color.shape == (2, 3, 9, 9) and not output.color.any()


def test_alpha_max_is_a_limit() -> None:
    scene = random_gaussians(1)
    scene.means.zero_()
    scene.opacity_logits.fill_(20.0)
    cameras = ring_cameras(1, 17, spread=0.0)
    assert float(CpuRenderer(alpha_max=0.99).render(scene, cameras).alpha.max()) == pytest.approx(0.99, abs=1e-6)
    assert float(CpuRenderer().render(scene, cameras).alpha.max()) == pytest.approx(0.999, abs=1e-6)


def test_views_are_independent() -> None:
    cameras, scene = ring_cameras(3, 20), random_gaussians(50)
    together = CpuRenderer().render(scene, cameras).color
    assert torch.equal(together[1:2], CpuRenderer().render(scene, cameras[1]).color)
    assert not torch.equal(together[0], together[2])


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with the paths of this one."""
    paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    known = {**os.environ, **paths, **environment}
    known.pop("OMP_NUM_THREADS", None)  # so that numba starts with all cores
    return subprocess.run([sys.executable, "-c", code], env=known, capture_output=True, text=True, check=False)


def test_threads_of_torch_stay_as_they_were() -> None:
    """In a process of its own, because numba's start is what would change them."""
    code = (
        "import torch; torch.set_num_threads(1)\n"
        "from splat_scenes import random_gaussians, ring_cameras\n"
        "from reconx_pl.splatting.renderers.cpu import CpuRenderer\n"
        "scene = random_gaussians(20); scene.means.requires_grad_()\n"
        "CpuRenderer().render(scene, ring_cameras(1, 16)).color.sum().backward()\n"
        "import numba; assert (torch.get_num_threads(), numba.get_num_threads()) == (1, 1)\n"
    )
    result = _python(code)
    assert result.returncode == 0, result.stderr


def test_kernels_are_cached_between_processes() -> None:
    """Numba caches no kernel that refers to something of this process; a warning would be all that one sees of it."""
    step = (
        "from splat_scenes import random_gaussians, ring_cameras\n"
        "from reconx_pl.splatting.renderers import cpu, cpu_kernels_project as project, cpu_kernels_raster as raster\n"
        "scene = random_gaussians(20); scene.means.requires_grad_()\n"
        "cpu.CpuRenderer().render(scene, ring_cameras(1, 16)).color.sum().backward()\n"
        "kernels = (project.project, project.project_backward, raster.sort_into_tiles, raster.rasterise)\n"
        "for kernel in (*kernels, raster.rasterise_backward):\n"
        "    assert kernel.stats.cache_hits and not kernel.stats.cache_misses, kernel\n"
    )
    scene = random_gaussians(20)
    scene.means.requires_grad_()
    CpuRenderer().render(scene, ring_cameras(1, 16)).color.sum().backward()
    result = _python(step)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("rows", "threads"), [(1, 1), (4, 2), (5, 2), (3, 8)])
def test_every_row_of_tiles_has_its_turn(rows: int, threads: int) -> None:
    order = cpu_kernels_raster.interleaved_rows(rows * cpu_kernels_raster.TILE_HEIGHT - 3, threads).tolist()
    assert sorted(order) == list(range(rows))
    share = order[: rows // threads]
    assert all(row % threads == 0 for row in share)


def test_default_renderer_of_the_cpu() -> None:
    renderer = default_renderer("cpu")
    assert isinstance(renderer, CpuRenderer) and isinstance(renderer, Renderer)
    assert default_renderer("cpu", alpha_max=0.99) == CpuRenderer(alpha_max=0.99)
    with pytest.raises(ConfigurationError, match="no renderer"):
        default_renderer("meta")


@pytest.mark.parametrize(
    ("of_renderer", "of_render", "words"),
    [
        ({"alpha_max": 1.0}, {}, "alpha_max"),
        ({"threads": 0}, {}, "threads"),
        ({}, {"sh_degree": 2}, r"within 0\.\.1"),
        ({}, {"background": torch.zeros(2, 3)}, "background"),
    ],
)
def test_options_out_of_range(of_renderer: dict[str, Any], of_render: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        CpuRenderer(**of_renderer).render(random_gaussians(5, sh_degree=1), ring_cameras(1, 8), **of_render)


def test_a_scene_on_another_device_names_the_renderer() -> None:
    with pytest.raises(BackendUnavailableError, match="default_renderer"):
        CpuRenderer().render(random_gaussians(5).to("meta"), ring_cameras(1, 8))


def test_without_a_folder_for_its_cache_the_remedy_is_named(tmp_path: Path) -> None:
    """A package and a home that cannot be written, played by files where numba would make folders."""
    source = Path(splatting.__file__).parents[1]
    package = [
        source / name for name in ("__init__.py", "version.py", "types.py", "errors.py", "splatting/__init__.py")
    ]
    for file in [*package, *source.glob("splatting/renderers/*.py")]:
        target = tmp_path / "reconx_pl" / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    (tmp_path / "reconx_pl" / "splatting" / "renderers" / "__pycache__").touch()
    (tmp_path / "home").touch()
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from reconx_pl.splatting.renderers.cpu import _kernels\n"
        "print(_kernels()[1].rasterise.stats.cache_path)"
    )
    home = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home"), "IPYTHONDIR": ""}
    refused = _python(code, **home, NUMBA_CACHE_DIR="")
    assert "BackendUnavailableError" in refused.stderr and "set NUMBA_CACHE_DIR" in refused.stderr
    named = _python(code, **home, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    assert named.stdout.startswith(str(tmp_path / "cache")), named.stderr
    assert "compiling the CPU renderer's kernels, once" in named.stderr


def test_cache_is_that_of_the_source_as_it_stands(tmp_path: Path) -> None:
    module = SimpleNamespace(__file__=str(tmp_path / "kernels.py"), __name__="package.kernels")
    (tmp_path / "kernels.py").touch()
    assert not cpu._cached(tmp_path / "cache", module, "project")
    index = tmp_path / "kernels.project-5.py311.nbi"
    index.touch()
    assert cpu._cached(tmp_path, module, "project")
    assert not cpu._cached(tmp_path, module, "rasterise")
    os.utime(tmp_path / "kernels.py", (index.stat().st_mtime + 10,) * 2)
    assert not cpu._cached(tmp_path, module, "project")
