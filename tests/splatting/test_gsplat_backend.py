"""gsplat: clear errors where it cannot run, agreement with the CPU renderer where it can."""

from __future__ import annotations

import pytest
import torch
from splat_scenes import random_gaussians, ring_cameras

from reconx_pl.errors import BackendUnavailableError, ConfigurationError
from reconx_pl.splatting import gsplat_backend
from reconx_pl.splatting.cpu import CpuRenderer
from reconx_pl.splatting.gsplat_backend import GsplatRenderer, check_gsplat, gsplat_alpha_max
from reconx_pl.splatting.renderer import default_renderer
from reconx_pl.types import Gaussians


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_cuda_the_remedy_is_named() -> None:
    for make in (GsplatRenderer, check_gsplat, lambda: default_renderer("cuda")):
        with pytest.raises(BackendUnavailableError, match="CpuRenderer"):
            make()


def test_without_a_toolkit_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gsplat_backend, "_compiled_kernels", lambda: None)
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    with pytest.raises(BackendUnavailableError, match=r"toolkit 13\.0.*CUDA_HOME"):
        check_gsplat()


def test_not_installed_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise gsplat_backend.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(gsplat_backend.metadata, "version", missing)
    with pytest.raises(BackendUnavailableError, match="pip install"):
        check_gsplat()


def test_alpha_max_follows_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gsplat_alpha_max("1.5.3") == 0.999
    assert gsplat_alpha_max("1.6.0") == 0.99
    assert gsplat_alpha_max("2.0.1") == 0.99
    monkeypatch.setattr(gsplat_backend, "check_gsplat", lambda: "1.5.3")
    assert GsplatRenderer().alpha_max == 0.999
    with pytest.raises(ConfigurationError, match="0.999 built in"):
        GsplatRenderer(alpha_max=0.99)


def test_scene_on_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gsplat_backend, "check_gsplat", lambda: "1.5.3")
    with pytest.raises(BackendUnavailableError, match="CpuRenderer"):
        GsplatRenderer().render(random_gaussians(3), ring_cameras(1, 8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_agrees_with_the_cpu_renderer() -> None:
    cameras, scene = ring_cameras(2, 64), random_gaussians(300)
    renderer = default_renderer("cuda")
    assert isinstance(renderer, GsplatRenderer)
    grads, outputs = [], []
    for device, backend in (("cuda", renderer), ("cpu", CpuRenderer(alpha_max=renderer.alpha_max))):
        moved = Gaussians(**{k: v.detach().clone().to(device).requires_grad_() for k, v in vars(scene).items()})
        output = backend.render(moved, cameras.to(device), sh_degree=3)
        (output.color.square().sum() + output.alpha.sum() + 0.1 * output.depth.sum()).backward()
        outputs.append([value.detach().cpu() for value in (output.color, output.alpha, output.depth)])
        grads.append([getattr(moved, name).grad.cpu() for name in ("means", "quaternions", "log_scales", "sh")])
    for one, two in zip(*outputs, strict=True):
        assert ((one - two).abs() > 2e-4).double().mean() < 0.02
    for one, two in zip(*grads, strict=True):
        assert float((one - two).norm()) < 5e-3 * float(two.norm())
