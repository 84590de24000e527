"""The CPU renderer: numba kernels behind a ``torch.autograd.Function``.

It follows gsplat's "classic" mode number by number (EWA projection, 0.3 pixel blur, opacity-aware extent, the same
cut-offs), so that a scene fitted here looks the same under CUDA. Sums run in a fixed order: the result, gradients
included, does not depend on the number of threads.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reconx_pl.errors import BackendUnavailableError, ConfigurationError
from reconx_pl.splatting.renderers.base import RenderOutput, resolve_background, resolve_degree
from reconx_pl.types import Cameras, Gaussians

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CpuRenderer:
    """Differentiable Gaussian splatting on the CPU (implements ``Renderer``).

    The kernels compile at the first call (a log line says so) and are cached on disk by numba: in ``NUMBA_CACHE_DIR``
    if that is set, else beside the package, else, where that is read-only, in the user's cache.

    Args:
        alpha_max: highest alpha of one Gaussian at one pixel: 0.999 as gsplat 1.5.3, 0.99 as gsplat >= 1.6 and 3DGS.
        threads: of the kernels; None = ``torch.get_num_threads()`` (which follows ``OMP_NUM_THREADS``).
    """

    alpha_max: float = 0.999
    threads: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.alpha_max < 1.0:
            raise ConfigurationError(f"alpha_max must be between 0 and 1, got {self.alpha_max}")
        if self.threads is not None and self.threads < 1:
            raise ConfigurationError(f"threads must be at least 1, got {self.threads}")

    def render(
        self,
        gaussians: Gaussians,
        cameras: Cameras,
        sh_degree: int | None = None,
        background: Tensor | None = None,
    ) -> RenderOutput:
        """See ``Renderer.render``.

        Raises:
            BackendUnavailableError: the tensors are not on the CPU, or there is no folder to cache the kernels in.
            ConfigurationError: see ``Renderer.render``.
        """
        color, alpha, depth = rasterize(
            gaussians.means,
            gaussians.quaternions,
            torch.exp(gaussians.log_scales),
            torch.sigmoid(gaussians.opacity_logits),
            gaussians.sh,
            cameras.world_to_camera,
            cameras.intrinsics,
            cameras.height,
            cameras.width,
            sh_degree=resolve_degree(gaussians, sh_degree),
            background=resolve_background(gaussians, cameras, background),
            alpha_max=self.alpha_max,
            threads=self.threads,
        )
        return RenderOutput(color, alpha, depth)


def rasterize(
    means: Tensor,  # [N, 3]
    quaternions: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    sh: Tensor,  # [N, K, 3]
    world_to_camera: Tensor,  # [V, 4, 4]
    intrinsics: Tensor,  # [V, 3, 3]
    height: int,
    width: int,
    *,
    sh_degree: int,
    background: Tensor,  # [V, 3]
    alpha_max: float = 0.999,
    threads: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Render linear parameters: scales as standard deviations, opacities in [0, 1].

    Gradients reach all tensors but the intrinsics. Cut-offs, clamps and the order in depth count as constant.

    Returns:
        color [V, 3, H, W], alpha [V, H, W], expected depth [V, H, W] (0 where nothing was hit).

    Raises:
        BackendUnavailableError: a tensor is not on the CPU, or there is no folder to cache the kernels in.
    """
    if means.device.type != "cpu":
        raise BackendUnavailableError(
            f"CpuRenderer got tensors on {means.device}; move the scene to the CPU, "
            f"or take default_renderer({str(means.device)!r})"
        )
    settings = _Settings(height, width, sh_degree, float(alpha_max), threads)
    planes = _Rasterize.apply(
        means, quaternions, scales, opacities, sh, world_to_camera, background, intrinsics.detach(), settings
    )
    color, depth, alpha = planes[:, :3], planes[:, 3], planes[:, 4]
    return color, alpha, depth / alpha.clamp(min=1e-10)


@dataclass(frozen=True)
class _Settings:
    height: int
    width: int
    degree: int
    alpha_max: float
    threads: int | None


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float32).contiguous().numpy()


def _use_threads(threads: int | None) -> int:
    """Set numba's threads for the calling thread, never more than numba was started with, and return their number.

    Numba and torch share one OpenMP runtime, and numba's start sets that runtime to all cores. Torch gets back what it
    had: with more threads than free cores, its small operations spend their time waiting for each other.
    """
    of_torch = torch.get_num_threads()
    import numba

    wanted = of_torch if threads is None else threads
    used = max(1, min(wanted, vars(numba.config)["NUMBA_NUM_THREADS"]))
    numba.set_num_threads(used)
    if torch.get_num_threads() != of_torch:
        torch.set_num_threads(of_torch)
    return used


@cache
def _kernels() -> tuple[ModuleType, ModuleType]:
    """The modules of the kernels. Numba loads or compiles each kernel at its first call.

    Raises:
        BackendUnavailableError: numba finds no folder that it may write its cache into.
    """
    try:
        from reconx_pl.splatting.renderers import cpu_kernels_project, cpu_kernels_raster
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        raise BackendUnavailableError(
            f"numba cannot cache the CPU renderer's kernels ({error}): set NUMBA_CACHE_DIR to a folder that is writable"
        ) from error
    folder = Path(cpu_kernels_project.project_backward.stats.cache_path)
    if not _cached(folder, cpu_kernels_project, "project_backward"):  # the last one that a first step compiles
        _LOG.warning("compiling the CPU renderer's kernels, once; about 20 s (kept in %s)", folder)
    return cpu_kernels_project, cpu_kernels_raster


def _cached(folder: Path, module: ModuleType, kernel: str) -> bool:
    """Whether numba's cache has the kernel as it stands in the module's file now."""
    assert module.__file__ is not None
    changed = Path(module.__file__).stat().st_mtime
    indices = folder.glob(f"{module.__name__.rpartition('.')[2]}.{kernel}-*.nbi")
    return any(index.stat().st_mtime >= changed for index in indices)


def _camera_vector(world_to_camera: Tensor, intrinsics: Tensor, settings: _Settings) -> np.ndarray:  # float64 [21]
    pose, k = world_to_camera.double().numpy(), intrinsics.double().numpy()
    inner = (k[0, 0], k[1, 1], k[0, 2], k[1, 2], settings.width, settings.height)
    return np.concatenate([pose[:3, :3].reshape(-1), pose[:3, 3], inner, np.linalg.inv(pose)[:3, 3]])


class _Rasterize(torch.autograd.Function):
    """[V, 5, H, W]: red, green, blue, accumulated depth, alpha."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        means, quaternions, scales, opacities, sh, poses, background, intrinsics, settings = inputs
        threads = _use_threads(settings.threads)
        kernels, raster = _kernels()
        order = raster.interleaved_rows(settings.height, threads)
        arrays = [_numpy(t) for t in (means, quaternions, scales, opacities, sh)]
        backgrounds = _numpy(background)
        views = poses.shape[0]
        output = torch.empty(views, 5, settings.height, settings.width)
        alpha_max = np.float32(settings.alpha_max)
        states = []
        for view in range(views):
            camera = _camera_vector(poses[view].detach(), intrinsics[view], settings)
            splats = np.empty((len(arrays[0]), kernels.SPLAT_COLUMNS), np.float32)
            kernels.project(*arrays, settings.degree, camera, splats)
            depth_bits = np.ascontiguousarray(splats[:, kernels.SPLAT_DEPTH]).view(np.uint32)
            tiles = raster.sort_into_tiles(splats, depth_bits, settings.width, settings.height)
            planes = np.empty((6, settings.height, settings.width), np.float32)
            raster.rasterise(splats, tiles[0], tiles[1], order, backgrounds[view], alpha_max, planes)
            output[view] = torch.from_numpy(planes[:5])
            output[view, 4].neg_().add_(1.0)  # transmittance to alpha
            states.append((camera, splats, tiles, planes))
        ctx.arrays, ctx.backgrounds, ctx.states, ctx.settings = arrays, backgrounds, states, settings
        ctx.types = [t.dtype for t in inputs[:7]]
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        kernels, raster = _kernels()
        settings, arrays = ctx.settings, ctx.arrays
        order = raster.interleaved_rows(settings.height, _use_threads(settings.threads))
        means, quaternions, scales, _, sh = arrays
        outputs = [np.zeros_like(array) for array in arrays]
        views = len(ctx.states)
        grad_poses = torch.zeros(views, 4, 4, dtype=torch.float64)
        gradient = _numpy(grads[0])
        for view, (camera, splats, (starts, members, offsets, places), planes) in enumerate(ctx.states):
            rows = np.empty((len(members), kernels.GRADIENT_COLUMNS), np.float32)
            raster.rasterise_backward(
                splats, starts, members, places, order, ctx.backgrounds[view], np.float32(settings.alpha_max), planes,
                gradient[view], rows,
            )  # fmt: skip
            blocks = (len(means) + kernels.BLOCK - 1) // kernels.BLOCK
            partial = np.zeros((blocks, 15), np.float64)
            kernels.project_backward(
                means, quaternions, scales, sh, settings.degree, camera, splats, offsets, rows, *outputs, partial
            )
            grad_poses[view] = _pose_gradient(camera, partial.sum(axis=0))
        grad_background = None
        if ctx.needs_input_grad[6]:
            rest = torch.stack([torch.from_numpy(state[3][4]) for state in ctx.states])  # [V, H, W]
            grad_background = torch.einsum("vhw,vchw->vc", rest, torch.from_numpy(gradient[:, :3]))
        results = [torch.from_numpy(array) for array in outputs] + [grad_poses, grad_background]
        typed = [None if t is None else t.to(dtype) for t, dtype in zip(results, ctx.types, strict=True)]
        return (*typed, None, None)


def _pose_gradient(camera: np.ndarray, sums: np.ndarray) -> Tensor:  # [4, 4]
    """Gradient by world_to_camera P. The centre is the last column of the inverse of P: dc = -P^-1 dP c."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = camera[:9].reshape(3, 3), camera[9:12]
    center = np.append(camera[18:21], 1.0)
    gradient = -np.outer(np.linalg.inv(pose).T @ np.append(sums[12:15], 0.0), center)
    gradient[:3, :3] += sums[:9].reshape(3, 3)
    gradient[:3, 3] += sums[9:12]
    return torch.from_numpy(gradient)
