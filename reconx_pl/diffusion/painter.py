"""Paints the frames between two views with a trained model (PAPER: sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reconx_pl.diffusion.guidance import Guidance
from reconx_pl.diffusion.model import ReconXDiffusion
from reconx_pl.diffusion.sampler import DDIMSampler
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import relative_to_first
from reconx_pl.types import Clip


@dataclass(frozen=True)
class SamplingConfig:
    """How frames are sampled. The paper names DDIM and multi-condition guidance, but no numbers: these are the base's.

    Args:
        steps: DDIM steps.
        eta: 0 is deterministic, 1 adds the full noise back.
        view_scale: guidance towards text and image (base model: 7.5).
        structure_scale: guidance towards the point cloud (ours: as strong as towards the views).
        rescale: guidance rescale against over-saturation (base model: 0.7).
        last_step: "official" repeats the original's last-step rescale, "corrected" undoes it.
        batched: one pass over all guidance branches (False: one after the other, for small GPUs).
        structure: False paints without the structure condition (the ablation).
        precision: "bf16" runs the model in bfloat16 autocast; latents and sampler stay float32.
    """

    steps: int = 50
    eta: float = 1.0
    view_scale: float = 7.5
    structure_scale: float = 7.5
    rescale: float = 0.7
    last_step: Literal["official", "corrected"] = "official"
    batched: bool = True
    structure: bool = True
    precision: Literal["32", "bf16"] = "32"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigurationError(f"sampling.steps must be at least 1, got {self.steps}")


class DiffusionPainter:
    """Paints clips: looks at the first and the last frame, at the cloud and at the first camera, and at nothing else.

    Args:
        network: the trained model; put into eval mode.
        config: sampling settings.
    """

    def __init__(self, network: ReconXDiffusion, config: SamplingConfig | None = None) -> None:
        self.network = network.eval()
        self.config = config or SamplingConfig()

    def paint(
        self,
        clip: Clip,
        generator: torch.Generator | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Frames [T, 3, H, W] in [0, 1] between the first and the last frame of ``clip``.

        Args:
            clip: T frames of which only the first and the last are looked at.
            generator: of the model's device; draws the starting noise.
            progress: called with (step, steps).

        Raises:
            BadSceneError: the model has a structure branch and the clip has too few points.
        """
        points = None
        if self.uses_structure and clip.cloud is not None:
            points = relative_to_first(clip.cloud.points[None], clip.cameras.world_to_camera[:1])  # [1, N, 3]
        painted = self.paint_views(
            clip.images[[0, -1]][None],
            torch.tensor([clip.fps]),
            clip.frames.shape[0],
            points,
            [clip.key],
            [clip.caption],
            generator,
            progress,
        )
        return painted[0].cpu()

    @property
    def uses_structure(self) -> bool:
        """Whether painting takes a point cloud."""
        return self.network.structure_encoder is not None and self.config.structure

    @torch.no_grad()  # sharded weights cannot be gathered in inference mode
    def paint_views(
        self,
        views: Tensor,  # [B, 2, 3, H, W] first and last frame in [0, 1]
        fps: Tensor,  # [B] frames a second
        frames: int,
        points: Tensor | None,  # [B, N, 3] in the first camera's frame, farthest-point order
        keys: Sequence[str],
        captions: Sequence[str],
        generator: torch.Generator | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """As ``paint`` for a batch of clips: [B, T, 3, H, W] in [0, 1] on the model's device.

        Raises:
            BadSceneError: the model has a structure branch and there are too few points; names ``keys``.
        """
        network, config = self.network, self.config
        device = next(network.unet.parameters()).device
        generator = generator or torch.Generator(device).manual_seed(0)
        cloud = self._points(points, keys, device)
        sets = network.condition_sets(views.to(device), fps.to(device), frames, cloud, captions, generator)
        guidance = Guidance(config.view_scale, config.structure_scale, config.rescale, config.batched)
        sampler = DDIMSampler(network.schedule, config.steps, config.eta, last_step=config.last_step)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            latents = sampler.sample(
                guidance.denoiser(network, sets),
                tuple(sets.full.concat_latents.shape),
                generator,
                device=device,
                callback=(lambda step: progress(step.index + 1, step.total)) if progress else None,
            )
        return network.decode(latents).float()

    def _points(self, points: Tensor | None, keys: Sequence[str], device: torch.device) -> Tensor | None:
        """As many points as the structure encoder was made for; None where painting goes without structure."""
        encoder = self.network.structure_encoder
        if encoder is None or not self.config.structure:
            return None
        have = 0 if points is None else points.shape[1]
        if points is None or have < encoder.config.tokens:
            raise BadSceneError(
                f"clip {', '.join(keys)} has {have} cloud points, the structure encoder needs at least "
                f"{encoder.config.tokens}; pack it with geometry, or sample with structure=False"
            )
        return points[:, : encoder.config.points].to(device)
