"""What every renderer of Gaussians offers, and which one a device gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.types import Cameras, Gaussians


@dataclass(frozen=True)
class RenderOutput:
    """Pictures of a Gaussian scene, one for each camera.

    Attributes:
        color: [V, 3, H, W], background blended in; not clipped, so values may exceed 1.
        alpha: [V, H, W] in [0, 1], 1 minus the light that passed.
        depth: [V, H, W] expected depth along the optical axis, world units; 0 where nothing was hit.
    """

    color: Tensor
    alpha: Tensor
    depth: Tensor


@runtime_checkable
class Renderer(Protocol):
    """Renders Gaussians, differentiably with respect to their parameters and the cameras' poses."""

    def render(
        self,
        gaussians: Gaussians,
        cameras: Cameras,
        sh_degree: int | None = None,
        background: Tensor | None = None,
    ) -> RenderOutput:
        """Render all cameras.

        Args:
            gaussians: the scene; the gradient reaches its tensors.
            cameras: V views; the gradient reaches ``world_to_camera``.
            sh_degree: highest degree of the spherical harmonics to use; None = all that the scene has.
            background: [3] or [V, 3] in [0, 1]; None = the scene's own.

        Raises:
            ConfigurationError: ``sh_degree`` above what the scene holds, or a background of another shape.
        """
        ...


def resolve_degree(gaussians: Gaussians, sh_degree: int | None) -> int:
    """Return the degree to render with.

    Raises:
        ConfigurationError: it is negative or the scene has fewer coefficients.
    """
    degree = gaussians.sh_degree if sh_degree is None else sh_degree
    if not 0 <= degree <= gaussians.sh_degree:
        raise ConfigurationError(
            f"sh_degree {degree} is not within 0..{gaussians.sh_degree}, which is what the scene's "
            f"{gaussians.sh.shape[1]} coefficients allow"
        )
    return degree


def resolve_background(gaussians: Gaussians, cameras: Cameras, background: Tensor | None) -> Tensor:  # [V, 3]
    """Return one background colour a camera, on the device and in the type of the scene.

    Raises:
        ConfigurationError: the shape is neither [3] nor [V, 3].
    """
    color = gaussians.background if background is None else background
    views = len(cameras)
    if tuple(color.shape) not in ((3,), (views, 3)):
        raise ConfigurationError(f"background must be [3] or [{views}, 3], got {tuple(color.shape)}")
    return color.to(gaussians.means).expand(views, 3)
