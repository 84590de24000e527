"""How frames are sampled, in one typed place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reconx_pl.diffusion.sampling.ddim import LastStep, Spacing
from reconx_pl.diffusion.sampling.solvers import SamplerName, check_sampler
from reconx_pl.errors import ConfigurationError


@dataclass(frozen=True)
class SamplingConfig:
    """How frames are sampled. The paper names DDIM and multi-condition guidance, but no numbers: these are the base's.

    Args:
        num_inference_steps: evaluations of the guided model.
        sampler: "ddim" (base model) or a second-order solver, see ``make_sampler`` and docs/sampling.md.
        eta: of DDIM alone: 0 is deterministic, 1 (base model, and None) adds the full noise back.
        guidance_scale: guidance towards text and image (base model: 7.5).
        structure_guidance_scale: guidance towards the point cloud (ours: as strong as towards the views).
        guidance_rescale: guidance rescale against over-saturation (base model: 0.7).
        last_step: of DDIM alone: "official" (and None) repeats the original's last-step rescale, "corrected" undoes it.
        spacing: which diffusion steps are visited; None is the sampler's own, "trailing" for DDIM and "quadratic" for
            the solvers.
        batched: one pass over all guidance branches (False: one after the other, for small GPUs).
        structure: False generates without the structure condition (the ablation).
        render: False generates without renders, of a network that is guided by them (the ablation).
        residual_floor: of a network that adds a residual to renders (``RenderConfig.residual``): residuals weaker than
            this, in units of the latents, are taken for errors of the network, and renders stay as they are
            (``kept_renders``). 0 adds all of it.
        keep_confirmed: of such a network whose renders are of splats: what the photographs confirm stays as rendered
            (``confirmed_pixels``). Renders that a cache holds tell nothing of this, and are not kept.
        splat_steps: fewest steps of the short fit of the photographs, where every pixel has depth; with less depth it
            has more, up to those in training (``RenderConfig.splat_steps``). None takes those in training.
        precision: "bf16" runs the model in bfloat16 autocast; latents and sampler stay float32. "auto" does so where it
            is faster (``devices.faster_precision``).
        offload: keep the encoders, the U-Net and the decoder on the CPU and bring each to the device only while it
            works, for GPUs that cannot hold all of them at once.
    """

    num_inference_steps: int = 50
    sampler: SamplerName = "ddim"
    eta: float | None = None
    guidance_scale: float = 7.5
    structure_guidance_scale: float = 7.5
    guidance_rescale: float = 0.7
    last_step: LastStep | None = None
    spacing: Spacing | None = None
    batched: bool = True
    structure: bool = True
    render: bool = True
    residual_floor: float = 0.0
    keep_confirmed: bool = False
    splat_steps: int | None = None
    precision: Literal["32", "bf16", "auto"] = "32"
    offload: bool = False

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ConfigurationError(f"sampling.num_inference_steps must be at least 1, got {self.num_inference_steps}")
        if not self.residual_floor >= 0:
            raise ConfigurationError(f"sampling.residual_floor is 0 or more, got {self.residual_floor:g}")
        if self.splat_steps is not None and self.splat_steps < 1:
            raise ConfigurationError(f"sampling.splat_steps is at least 1, got {self.splat_steps}")
        check_sampler(self.sampler, self.eta, self.last_step)
