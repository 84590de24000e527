"""The sampler and guidance against recorded runs of the reference on a toy denoiser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_kits import golden_kits
from safetensors.torch import load_file
from torch import Tensor

from reconx_pl.diffusion.conditioning.conditions import Conditions
from reconx_pl.diffusion.sampling.ddim import DDIMSampler, SamplerStep
from reconx_pl.diffusion.sampling.guidance import ConditionSets, Guidance
from reconx_pl.diffusion.sampling.schedule import NoiseSchedule, ScheduleConfig


def _runs() -> list[Any]:
    return [
        pytest.param(path, run, id=f"{path.stem}-{run}")
        for path in golden_kits("ddim_*.json")
        for run in json.loads(path.read_text())["runs"]
    ]


def _conditions(latents: Tensor) -> Conditions:
    empty = torch.zeros(1, 1, 1)
    return Conditions(text_tokens=empty, image_tokens=empty, fps=torch.ones(1), concat_latents=latents)


@pytest.mark.skipif(not _runs(), reason="needs the golden kits ddim_*.json")
@pytest.mark.parametrize(("path", "run"), _runs() or [(None, None)])
def test_recorded_run(path: Path, run: str) -> None:
    description = json.loads(path.read_text())
    settings, toy = description["runs"][run], description["toy_model"]
    kit = load_file(path.with_suffix(".safetensors"))

    def model(x: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        step = t.float().view(-1, 1, 1, 1, 1) / 1000
        return toy["a"] * x + toy["b"] * conditions.concat_latents + toy["c"] * step

    schedule = NoiseSchedule(ScheduleConfig(rescale_end=0.7 if settings["dynamic_rescale"] else None))
    sampler = DDIMSampler(
        schedule,
        steps=settings["S"],
        eta=settings["eta"],
        last_step="corrected" if settings.get("fixed_prev") else "official",
    )
    cond = _conditions(kit["cond"])
    # the toy has one condition; all of it belongs to the view branch, as in the base model
    sets = ConditionSets(null=_conditions(kit["uncond"]), view=cond, full=cond)
    guidance = Guidance(
        guidance_scale=settings["cfg"], structure_guidance_scale=settings["cfg"], guidance_rescale=settings["gr"]
    )
    steps: list[SamplerStep] = []
    start = kit["x_T"]
    final = sampler.sample(
        guidance.denoiser(lambda conditions: lambda x, t: model(x, t, conditions), sets),
        tuple(start.shape),
        start=start,
        noise=kit.get(f"{run}.noise"),
        callback=steps.append,
    )

    if f"{run}.timesteps" in kit:  # recorded for some of the runs only
        assert torch.equal(sampler.timesteps, kit[f"{run}.timesteps"])
        torch.testing.assert_close(sampler.alphas, kit[f"{run}.alphas"], atol=1e-7, rtol=0)
        torch.testing.assert_close(sampler.alphas_next, kit[f"{run}.alphas_prev"], atol=1e-7, rtol=0)
        torch.testing.assert_close(sampler.sigmas, kit[f"{run}.sigmas"], atol=1e-6, rtol=0)
        torch.testing.assert_close(sampler.scales_next.float(), kit[f"{run}.scale_prev"], atol=6e-8, rtol=0)

    # tolerances of the kit, relative to the largest magnitude
    final_tolerance, inner_tolerance = (5e-6, 5e-6) if settings["eta"] == 0 else (5e-5, 5e-4)
    _close(final, kit[f"{run}.final"], final_tolerance, "final")
    assert float(final.norm()) == pytest.approx(settings["final_checksum_l2"], rel=final_tolerance)
    assert len(steps) == settings["S"]
    recorded = {"x_inter": [start, *(step.latents for step in steps)], "pred_x0": [step.x0 for step in steps]}
    for what, ours in recorded.items():
        for index, theirs in enumerate(kit.get(f"{run}.{what}", [])):  # some runs recorded the final only
            _close(ours[index], theirs, inner_tolerance, f"{what}[{index}]")


def _close(ours: Tensor, theirs: Tensor, tolerance: float, what: str) -> None:
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    assert error <= tolerance, f"{what}: relative error {error:.3g} > {tolerance:g}"
