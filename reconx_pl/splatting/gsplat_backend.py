"""The CUDA renderer: gsplat's kernels, with errors a user can act on."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reconx_pl.errors import BackendUnavailableError, ConfigurationError
from reconx_pl.splatting.renderer import RenderOutput, resolve_background, resolve_degree
from reconx_pl.types import Cameras, Gaussians

_LOG = logging.getLogger(__name__)


def gsplat_alpha_max(version: str) -> float:
    """The highest alpha of one Gaussian that the kernels of this gsplat version allow: 0.999 up to 1.5, then 0.99."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return 0.999 if (major, minor) < (1, 6) else 0.99


def check_gsplat() -> str:
    """Return gsplat's version if it can run here; looks before gsplat is imported, because its own failure is obscure.

    Raises:
        BackendUnavailableError: gsplat is not installed, no CUDA device, torch built without CUDA, or the kernels have
            to be compiled and there is no compiler for them; the message names the remedy.
    """
    try:
        version = metadata.version("gsplat")
    except metadata.PackageNotFoundError:
        raise BackendUnavailableError(
            "gsplat is not installed: pip install gsplat ninja; or render on the CPU with CpuRenderer (device cpu)"
        ) from None
    if torch.version.cuda is None:
        raise BackendUnavailableError(
            f"torch {torch.__version__} is a build without CUDA: install a CUDA build of torch (pytorch.org), "
            "or render on the CPU with CpuRenderer (device cpu)"
        )
    if not torch.cuda.is_available():
        raise BackendUnavailableError(
            "gsplat needs a CUDA device and torch sees none: check nvidia-smi and CUDA_VISIBLE_DEVICES, "
            "or render on the CPU with CpuRenderer (device cpu)"
        )
    if _compiled_kernels() is None:
        _check_toolkit()
    return version


def _compiled_kernels() -> Path | None:
    """The kernels if they are already built: in gsplat's wheel, or by an earlier run in torch's extension folder."""
    files = metadata.files("gsplat") or []
    shipped = next((file for file in files if file.name.startswith("csrc") and file.suffix in (".so", ".pyd")), None)
    if shipped is not None:
        return Path(str(shipped.locate()))
    from torch.utils.cpp_extension import _get_build_directory

    built = Path(_get_build_directory("gsplat_cuda", verbose=False)) / "gsplat_cuda.so"
    return built if built.is_file() else None


def _check_toolkit() -> None:
    from torch.utils.cpp_extension import CUDA_HOME

    nvcc = Path(CUDA_HOME) / "bin" / "nvcc" if CUDA_HOME else None
    if nvcc is None or not nvcc.is_file():
        raise BackendUnavailableError(
            f"gsplat has to compile its CUDA kernels once and found no nvcc (CUDA_HOME is {CUDA_HOME or 'not set'}): "
            f"install the CUDA toolkit {torch.version.cuda} (torch's own version) and set CUDA_HOME to its folder, the "
            "one that holds bin/nvcc; or render on the CPU with CpuRenderer (device cpu)"
        )
    if shutil.which("ninja") is None:
        raise BackendUnavailableError("gsplat has to compile its CUDA kernels once and needs ninja: pip install ninja")


class GsplatRenderer:
    """Differentiable Gaussian splatting on CUDA (implements ``Renderer``).

    The kernels compile at the first call (minutes; ``MAX_JOBS`` and ``TORCH_CUDA_ARCH_LIST`` shorten it) and stay in
    torch's extension folder.

    Args:
        alpha_max: highest alpha of one Gaussian at one pixel. It is compiled into gsplat (0.999 up to 1.5.3, 0.99 from
            1.6 on), so this only states what is expected; None = whatever the installed version does. A ``CpuRenderer``
            that shall agree takes ``CpuRenderer(alpha_max=renderer.alpha_max)``.

    Raises:
        BackendUnavailableError: see ``check_gsplat``.
        ConfigurationError: the installed gsplat has another ``alpha_max``.
    """

    def __init__(self, alpha_max: float | None = None) -> None:
        version = check_gsplat()
        self.alpha_max = gsplat_alpha_max(version)
        if alpha_max is not None and alpha_max != self.alpha_max:
            raise ConfigurationError(
                f"gsplat {version} has alpha_max {self.alpha_max} built in, not {alpha_max}; "
                f"use {'gsplat < 1.6' if alpha_max == 0.999 else 'gsplat >= 1.6'} or the CPU renderer"
            )

    def render(
        self,
        gaussians: Gaussians,
        cameras: Cameras,
        sh_degree: int | None = None,
        background: Tensor | None = None,
    ) -> RenderOutput:
        """See ``Renderer.render``.

        Raises:
            BackendUnavailableError: the scene is not on a CUDA device, or the kernels do not compile.
            ConfigurationError: see ``Renderer.render``.
        """
        if gaussians.means.device.type != "cuda":
            raise BackendUnavailableError(
                f"GsplatRenderer got a scene on {gaussians.means.device}; move it to cuda, or take CpuRenderer"
            )
        degree = resolve_degree(gaussians, sh_degree)
        backgrounds = resolve_background(gaussians, cameras, background)
        cameras = cameras.to(gaussians.means.device, torch.float32)
        images, alphas, _ = _rasterization()(
            gaussians.means,
            gaussians.quaternions,
            torch.exp(gaussians.log_scales),
            torch.sigmoid(gaussians.opacity_logits),
            gaussians.sh,
            cameras.world_to_camera,
            cameras.intrinsics,
            cameras.width,
            cameras.height,
            sh_degree=degree,
            packed=False,
            backgrounds=backgrounds,
            render_mode="RGB+ED",
        )  # [V, H, W, 4], [V, H, W, 1]
        return RenderOutput(images[..., :3].permute(0, 3, 1, 2), alphas[..., 0], images[..., 3])


def _rasterization() -> Callable[..., Any]:
    """gsplat's entry point, its kernels compiled and loaded.

    Raises:
        BackendUnavailableError: the compiler failed.
    """
    if _compiled_kernels() is None:
        _LOG.warning("gsplat: compiling its CUDA kernels, once for this machine; this takes minutes")
    try:
        from gsplat.cuda import _backend
        from gsplat.rendering import rasterization
    except (ImportError, RuntimeError, OSError) as error:
        raise BackendUnavailableError(
            f"gsplat's CUDA kernels did not compile or load ({error}); they need the CUDA toolkit {torch.version.cuda} "
            "in CUDA_HOME and a C++ compiler that it supports; or render on the CPU with CpuRenderer (device cpu)"
        ) from error
    if _backend._C is None:
        raise BackendUnavailableError(
            f"gsplat found no CUDA toolkit: set CUDA_HOME to the folder of toolkit {torch.version.cuda} that holds "
            "bin/nvcc; or render on the CPU with CpuRenderer (device cpu)"
        )
    return rasterization
