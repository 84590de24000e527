"""The CUDA renderer: gsplat's kernels, with errors a user can act on."""

from __future__ import annotations

import torch
from torch import Tensor

from reconx_pl.errors import BackendUnavailableError, ConfigurationError
from reconx_pl.splatting.renderers.base import RenderOutput, resolve_background, resolve_degree
from reconx_pl.splatting.renderers.gsplat_build import check_gsplat, load_kernels, version_numbers
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
        return RenderOutput(
            *rasterize(
                gaussians.means,
                gaussians.quaternions,
                torch.exp(gaussians.log_scales),
                torch.sigmoid(gaussians.opacity_logits),
                gaussians.sh,
                cameras.world_to_camera,
                cameras.intrinsics,
                cameras.height,
                cameras.width,
                sh_degree=degree,
                background=backgrounds,
            )
        )


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Render linear parameters with gsplat: scales as standard deviations, opacities in [0, 1].

    All tensors go to the device of ``means`` and to float32. Gradients reach all but the intrinsics.

    Returns:
        color [V, 3, H, W], alpha [V, H, W], expected depth [V, H, W] (0 where nothing was hit).

    Raises:
        BackendUnavailableError: the kernels do not compile or load.
    """
    load_kernels()
    from gsplat.rendering import rasterization

    like = means.float()
    # What decides the picture is said here and not left to defaults, which are those of the installed version.
    images, alphas, _ = rasterization(
        like,
        quaternions.to(like),
        scales.to(like),
        opacities.to(like),
        sh[:, : (sh_degree + 1) ** 2].to(like),
        world_to_camera.to(like),
        intrinsics.to(like),
        width,
        height,
        near_plane=0.01,
        far_plane=1e10,
        radius_clip=0.0,
        eps2d=0.3,
        sh_degree=sh_degree,
        packed=False,  # faster where a view sees most of the Gaussians
        backgrounds=background.to(like).contiguous(),
        render_mode="RGB+ED",
        rasterize_mode="classic",
    )  # [V, H, W, 4], [V, H, W, 1]
    return images[..., :3].permute(0, 3, 1, 2), alphas[..., 0], images[..., 3]


def _is_cuda(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"
