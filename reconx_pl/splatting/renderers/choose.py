"""The renderer that goes with a device."""

from __future__ import annotations

import torch

from reconx_pl.errors import ConfigurationError
from reconx_pl.splatting.renderers.base import Renderer


def default_renderer(device: torch.device | str, alpha_max: float | None = None) -> Renderer:
    """The gsplat kernels on a CUDA device, ours on the CPU.

    Args:
        device: where the Gaussians live.
        alpha_max: the highest alpha of one Gaussian; None = 0.999 on the CPU, what the installed gsplat does on CUDA.

    Raises:
        BackendUnavailableError: a CUDA device was asked for and gsplat cannot run; the message has the remedy.
        ConfigurationError: a device that has no renderer.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        from reconx_pl.splatting.renderers.cpu import CpuRenderer

        return CpuRenderer() if alpha_max is None else CpuRenderer(alpha_max=alpha_max)
    if kind == "cuda":
        from reconx_pl.splatting.renderers.gsplat import GsplatRenderer

        return GsplatRenderer(alpha_max=alpha_max)
    raise ConfigurationError(f"no renderer for device {device!r}; use cpu or cuda")
