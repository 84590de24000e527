"""Clips whose second condition sits at an intermediate frame: those after it are extrapolated (ReconX, V-D).

The paper says no more than that. (ours) The frames: any in a range of the clip. The structure condition: the cloud of
a shard belongs to the first and the last frame, and the last one is not given, so a clip keeps the points that its
first frame or its second condition sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from reconx_pl.errors import ConfigurationError
from reconx_pl.geometry.visibility import repeated, seen_by_any
from reconx_pl.types import Cameras, ClipBatch


@dataclass(frozen=True)
class ExtrapolationConfig:
    """Which samples are trained with their second condition before the last frame (ours: the paper gives no numbers).

    Args:
        share: of the samples; the others keep the last frame, so that the model still interpolates.
        earliest, latest: of the second condition, as shares of the way from the first to the last frame; every frame
            from the one to the other is as likely.
        validation: the losses of validation and test are drawn likewise; False keeps the last frame there, so that
            they compare with those of other runs.

    Raises:
        ConfigurationError: shares out of range.
    """

    share: float = 0.75
    earliest: float = 0.25
    latest: float = 0.75
    validation: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigurationError(
                f"extrapolation.share lies in (0, 1], got {self.share}; without extrapolation set it to null"
            )
        if not 0 < self.earliest <= self.latest < 1:
            raise ConfigurationError(
                f"extrapolation needs 0 < earliest <= latest < 1, got {self.earliest} and {self.latest}"
            )

    def range(self, frames: int) -> tuple[int, int]:
        """First and last frame of a clip of ``frames`` frames at which the second condition may sit.

        Raises:
            ConfigurationError: a clip too short to have one.
        """
        low = max(1, math.ceil(self.earliest * (frames - 1) - 1e-9))
        high = min(frames - 2, math.floor(self.latest * (frames - 1) + 1e-9))
        if low > high:
            raise ConfigurationError(
                f"a clip of {frames} frames has none between {self.earliest:g} and {self.latest:g} of its way: "
                "widen extrapolation.earliest and extrapolation.latest, or train with longer clips"
            )
        return low, high

    def draw(self, batch: int, frames: int, generator: torch.Generator) -> Tensor:
        """Frames [B] int64 of the second condition, on the generator's device: first the shares, then the frames."""
        low, high = self.range(frames)
        chosen = torch.rand(batch, generator=generator, device=generator.device) < self.share
        at = torch.randint(low, high + 1, (batch,), generator=generator, device=generator.device)
        return torch.where(chosen, at, frames - 1)


def seen_points(points: Tensor, cameras: Cameras, tokens: int) -> Tensor | None:
    """What the structure condition may hold of a cloud: the points that one of the views sees.

    They keep their order; the number of points is made up by repeating them in that order, so that the first ``tokens``
    are still a sub-sample by farthest points.

    Args:
        points: [N, 3] world units, farthest-point order.
        cameras: views of the first frame and of the second condition.
        tokens: S, of the structure encoder.

    Returns:
        [N, 3], or None where the views see fewer than ``tokens`` points.
    """
    numbers = seen_numbers(points, cameras, tokens)
    return None if numbers is None else points[numbers]


def seen_numbers(points: Tensor, cameras: Cameras, tokens: int) -> Tensor | None:
    """``seen_points`` as numbers [N] of points, for what else belongs to them."""
    with torch.autocast(points.device.type, enabled=False):  # pixels need float32
        index = seen_by_any(points, cameras)
    return None if len(index) < tokens else repeated(index, len(points))


def seen_in_batch(
    batch: ClipBatch, end_condition_frame: Tensor, size: tuple[int, int], tokens: int
) -> tuple[Tensor, Tensor]:
    """``seen_points`` for the clips of a batch that are to be extrapolated.

    A clip whose two views see too few points keeps its last frame, and with it the whole cloud.

    Args:
        batch: B clips of T frames.
        end_condition_frame: [B] frames of the second condition; T - 1 leaves a clip as it is.
        size: rows and columns of the frames, pixels.
        tokens: S, of the structure encoder.

    Returns:
        points [B, N, 3], world units, and frames [B] of the second condition.
    """
    last = batch["world_to_camera"].shape[1] - 1
    points, frames = list(batch["points"].unbind()), end_condition_frame.tolist()
    for clip, frame in enumerate(frames):
        if frame == last:
            continue
        views = [0, frame]
        cameras = Cameras(batch["world_to_camera"][clip, views], batch["intrinsics"][clip, views], *size)
        seen = seen_points(points[clip], cameras, tokens)
        if seen is None:
            frames[clip] = last
        else:
            points[clip] = seen
    return torch.stack(points), torch.tensor(frames, device=end_condition_frame.device)
