"""Who generates, and what a view generator may see."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from reconx_pl.diffusion.weights.generation import ClipDefaults
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import interpolate_cameras, with_views
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.types import Cameras, Clip, Progress


class ViewGenerator(Protocol):
    """Generates the frames between two views."""

    def generate(self, clip: Clip, generator: torch.Generator) -> Tensor:
        """All T frames [T, 3, H, W] in [0, 1].

        The clip comes blind (``blind``): the first and the last frame with their depth and confidence, the cloud, and
        the cameras of the frames that are asked for, are all that it holds.
        """
        ...


class NoViewGenerator:
    """Stands where a view generator does in an evaluation without video diffusion (``EvaluationConfig.diffusion``)."""

    identity = "no video model"

    def generate(self, clip: Clip, generator: torch.Generator) -> Tensor:
        """Raises ConfigurationError: there is no model."""
        raise ConfigurationError("there is no video model to generate with; name a training run")


class RecordedFrames:
    """Frames that were generated before: by every rank of a sharded model together, or by another program.

    Args:
        frames: clip key to frames [T, 3, H, W] in [0, 1].
    """

    def __init__(self, frames: Mapping[str, Tensor]) -> None:
        self.frames = frames

    def generate(self, clip: Clip, generator: torch.Generator) -> Tensor:
        """See ``ViewGenerator``.

        Raises:
            BadSceneError: no frames were recorded for this clip.
        """
        if clip.key not in self.frames:
            raise BadSceneError(f"no generated frames for clip {clip.key}; generate it before the evaluation")
        return self.frames[clip.key]


def follows_cameras(view_generator: object) -> bool:
    """Whether it generates what the cameras of a clip see: a model that is guided by renders says so."""
    return bool(getattr(view_generator, "follows_cameras", False))


def blind(clip: Clip, cameras: Cameras | None = None) -> Clip:
    """The clip with all that a view generator must not see taken out.

    Frames between the first and the last are black; their cameras are interpolated between these two, or those of
    ``cameras``, which are chosen before any frame is there, or known with the data. Depth and
    confidence stay: they belong to the two input views. The cloud stays too: it was made from their depth or, in a clip
    without depth, it is that part of a reconstruction from all photographs, the hidden ones included, that projects
    into an input view (``task.geometry_note`` says so in every result).
    """
    frames = clip.frames.clone()
    frames[1:-1] = 0
    if cameras is not None:
        return replace(clip, frames=frames, cameras=with_ends(cameras, clip.cameras))
    count = frames.shape[0]
    cameras = interpolate_cameras(clip.cameras[[0, count - 1]], torch.linspace(0, 1, count, dtype=torch.float64))
    return replace(clip, frames=frames, cameras=with_ends(cameras, clip.cameras))


def generated_frames(
    clip: Clip,
    view_generator: ViewGenerator,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
    cameras: Cameras | None = None,
) -> Tensor:
    """Generate and put the input views into their places: [T, 3, H, W] in [0, 1].

    ``cameras`` are those of the frames, see ``blind``. ``progress`` goes to a view generator whose ``generate`` has a
    parameter for it.

    Raises:
        BadSceneError: the view generator returned another shape, or values that are not finite.
    """
    tells = progress is not None and "progress" in inspect.signature(view_generator.generate).parameters
    more: dict[str, Any] = {"progress": progress} if tells else {}
    generated = view_generator.generate(
        blind(clip, cameras), seeded_generator(seed, clip.key, "generate", device), **more
    )
    generated = checked_frames(generated, clip, device)
    generated[[0, -1]] = clip.images[[0, -1]].to(device)
    return generated


def checked_frames(generated: Tensor, clip: Clip, device: torch.device | str) -> Tensor:
    """What a view generator returned for ``clip``, as a tensor of its own within [0, 1].

    Raises:
        BadSceneError: another shape than that of the clip, or values that are not finite.
    """
    if tuple(generated.shape) != tuple(clip.frames.shape):
        raise BadSceneError(
            f"clip {clip.key}: the view generator returned frames {tuple(generated.shape)} for a clip "
            f"{tuple(clip.frames.shape)}"
        )
    # A copy: frames that were generated in inference mode could not enter the fit's graph.
    generated = generated.detach().clone().float().to(device).clamp(0, 1)
    if not torch.isfinite(generated).all():
        raise BadSceneError(f"clip {clip.key}: the generated frames have NaN or infinite values; check the checkpoint")
    return generated


def with_ends(cameras: Cameras, ends: Cameras) -> Cameras:
    """``cameras`` with the first and the last taken from ``ends`` to the last bit."""
    return with_views(cameras, [0, -1], ends[[0, -1]])


def seeded_generator(seed: int, key: str, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on seed, scene and purpose only: neither order nor rank nor restarts change a scene."""
    digest = hashlib.sha256(f"{seed}:{key}:{purpose}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))


class ViewGeneratorSource:
    """A view generator that is loaded only if something has to be generated.

    Args:
        identity: what its frames follow from, weights and sampling.
        load: gives the view generator.
        clip: frames, size and frame rate that it generates unless told otherwise; None knows none.
        follows_cameras: see the function.
    """

    def __init__(
        self,
        identity: str,
        load: Callable[[], ViewGenerator],
        clip: ClipDefaults | None = None,
        follows_cameras: bool = False,
    ) -> None:
        self.identity, self.load, self.follows_cameras = identity, load, follows_cameras
        self.clip = clip or ClipDefaults()
        self._loaded: ViewGenerator | None = None

    def generate(
        self,
        clip: Clip,
        generator: torch.Generator,
        progress: Progress | None = None,
        *,
        end_condition_frame: int | None = None,
        views: DepthViews | None = None,
    ) -> Tensor:
        """See ``ViewGenerator``; what else is given is passed on.

        Raises:
            ConfigurationError: frames are to be extrapolated, or to follow a path, and it cannot.
        """
        self._loaded = self._loaded or self.load()
        takes = inspect.signature(self._loaded.generate).parameters
        more: dict[str, Any] = {"progress": progress} if progress is not None and "progress" in takes else {}
        if views is not None:
            if "views" not in takes:
                raise ConfigurationError(
                    f"{type(self._loaded).__name__} follows no path of cameras; take --path interpolated between "
                    "photographs, or a model that is guided by renders (reconx-mini)"
                )
            more["views"] = views
        if end_condition_frame is not None:
            if "end_condition_frame" not in takes:
                raise ConfigurationError(
                    f"{type(self._loaded).__name__} cannot extrapolate; leave generation.orbit_frames at 0"
                )
            more["end_condition_frame"] = end_condition_frame
        return self._loaded.generate(clip, generator, **more)
