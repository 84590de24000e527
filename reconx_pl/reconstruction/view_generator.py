"""Who paints, and what a painter may see."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import interpolate_cameras, with_views
from reconx_pl.types import Cameras, Clip


class Painter(Protocol):
    """Paints the frames between two views."""

    def paint(self, clip: Clip, generator: torch.Generator) -> Tensor:
        """All T frames [T, 3, H, W] in [0, 1].

        The clip comes blind (``blind``): the first and the last frame with their cameras, depth and confidence, and
        the cloud, are all that it holds.
        """
        ...


class NoPainter:
    """Stands where a painter does in an evaluation without video diffusion (``EvaluationConfig.diffusion``)."""

    identity = "no video model"

    def paint(self, clip: Clip, generator: torch.Generator) -> Tensor:
        """Raises ConfigurationError: there is no model."""
        raise ConfigurationError("there is no video model to paint with; name a training run")


class RecordedFrames:
    """A painter whose frames were painted before: by every rank of a sharded model together, or by another program.

    Args:
        frames: clip key to frames [T, 3, H, W] in [0, 1].
    """

    def __init__(self, frames: Mapping[str, Tensor]) -> None:
        self.frames = frames

    def paint(self, clip: Clip, generator: torch.Generator) -> Tensor:
        """See ``Painter``.

        Raises:
            BadSceneError: no frames were recorded for this clip.
        """
        if clip.key not in self.frames:
            raise BadSceneError(f"no painted frames for clip {clip.key}; paint it before the evaluation")
        return self.frames[clip.key]


def blind(clip: Clip) -> Clip:
    """The clip with all that a painter must not see taken out.

    Frames between the first and the last are black, their cameras are interpolated between these two. Depth and
    confidence stay: they belong to the two input views. The cloud stays too: it was made from their depth or, in a clip
    without depth, it is that part of a reconstruction from all photographs, the hidden ones included, that projects
    into an input view (``task.geometry_note`` says so in every result).
    """
    frames = clip.frames.clone()
    frames[1:-1] = 0
    count = frames.shape[0]
    cameras = interpolate_cameras(clip.cameras[[0, count - 1]], torch.linspace(0, 1, count, dtype=torch.float64))
    return replace(clip, frames=frames, cameras=with_ends(cameras, clip.cameras))


def painted_frames(
    clip: Clip,
    painter: Painter,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Paint and put the input views into their places: [T, 3, H, W] in [0, 1].

    ``progress`` gets steps done and all, of painters that tell them.

    Raises:
        BadSceneError: the painter returned another shape, or values that are not finite.
    """
    tells = progress is not None and "progress" in inspect.signature(painter.paint).parameters
    more: dict[str, Any] = {"progress": progress} if tells else {}
    painted = painter.paint(blind(clip), scene_generator(seed, clip.key, "paint", device), **more)
    painted = checked_frames(painted, clip, device)
    painted[[0, -1]] = clip.images[[0, -1]].to(device)
    return painted


def checked_frames(painted: Tensor, clip: Clip, device: torch.device | str) -> Tensor:
    """What a painter returned for ``clip``, as a tensor of its own within [0, 1].

    Raises:
        BadSceneError: another shape than that of the clip, or values that are not finite.
    """
    if tuple(painted.shape) != tuple(clip.frames.shape):
        raise BadSceneError(
            f"clip {clip.key}: the painter returned frames {tuple(painted.shape)} for a clip {tuple(clip.frames.shape)}"
        )
    # A copy: frames that were painted in inference mode could not enter the fit's graph.
    painted = painted.detach().clone().float().to(device).clamp(0, 1)
    if not torch.isfinite(painted).all():
        raise BadSceneError(f"clip {clip.key}: the painted frames have NaN or infinite values; check the checkpoint")
    return painted


def with_ends(cameras: Cameras, ends: Cameras) -> Cameras:
    """``cameras`` with the first and the last taken from ``ends`` to the last bit."""
    return with_views(cameras, [0, -1], ends[[0, -1]])


def scene_generator(seed: int, key: str, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on seed, scene and purpose only: neither order nor rank nor restarts change a scene."""
    digest = hashlib.sha256(f"{seed}:{key}:{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass(frozen=True)
class PainterSource:
    """Who paints: loaded only if something has to be painted.

    Args:
        identity: what its frames follow from, weights and sampling.
        load: gives the painter.
    """

    identity: str
    load: Callable[[], Painter]
