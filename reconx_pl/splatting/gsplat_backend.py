"""The CUDA renderer: gsplat's kernels, with errors a user can act on."""

from __future__ import annotations

import torch
from torch import Tensor

from reconx_pl.errors import BackendUnavailableError, ConfigurationError
from reconx_pl.splatting.gsplat_build import check_gsplat, load_kernels, version_numbers
from reconx_pl.splatting.renderer import RenderOutput, resolve_background, resolve_degree
from reconx_pl.types import Cameras, Gaussians


def gsplat_alpha_max(version: str) -> float:
    """The highest alpha of one Gaussian that the kernels of this gsplat version allow: 0.999 up to 1.5, then 0.99."""
    return 0.999 if version_numbers(version) < (1, 6) else 0.99


class GsplatRenderer:
    """Differentiable Gaussian splatting on CUDA (implements ``Renderer``).

    The kernels compile at the first call (minutes, with progress in the log; see ``gsplat_build``) and stay in torch's
    extension folder. All cameras are rendered in one batch. gsplat itself waits for the device twice a call: for the
    number of (tile, Gaussian) pairs, and in the inverse of the poses.

    Args:
        alpha_max: highest alpha of one Gaussian at one pixel. It is compiled into gsplat (0.999 up to 1.5.3, 0.99 from
            1.6 on), so this only states what is expected; None = whatever the installed version does. A ``CpuRenderer``
            that shall agree takes ``CpuRenderer(alpha_max=renderer.alpha_max)``.

    Raises:
        BackendUnavailableError: see ``gsplat_build.check_gsplat``.
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
        if not _is_cuda(gaussians.means):
            raise BackendUnavailableError(
                f"GsplatRenderer got a scene on {gaussians.means.device}; move it to cuda, or take CpuRenderer"
            )
        degree = resolve_degree(gaussians, sh_degree)
        backgrounds = resolve_background(gaussians, cameras, background)
        device = gaussians.means.device
        cameras = cameras.to(device, torch.float32)
        load_kernels()
        from gsplat.rendering import rasterization

        # What decides the picture is said here and not left to defaults, which are those of the installed version.
        images, alphas, _ = rasterization(
            gaussians.means.float(),
            gaussians.quaternions.float(),
            torch.exp(gaussians.log_scales.float()),
            torch.sigmoid(gaussians.opacity_logits.float()),
            gaussians.sh[:, : (degree + 1) ** 2].float(),
            cameras.world_to_camera,
            cameras.intrinsics,
            cameras.width,
            cameras.height,
            near_plane=0.01,
            far_plane=1e10,
            radius_clip=0.0,
            eps2d=0.3,
            sh_degree=degree,
            packed=False,  # faster where a view sees most of the Gaussians
            backgrounds=backgrounds.float().contiguous(),
            render_mode="RGB+ED",
            rasterize_mode="classic",
        )  # [V, H, W, 4], [V, H, W, 1]
        return RenderOutput(images[..., :3].permute(0, 3, 1, 2), alphas[..., 0], images[..., 3])


def _is_cuda(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"
