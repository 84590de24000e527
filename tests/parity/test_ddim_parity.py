"""The sampler and guidance against recorded runs of the reference on a toy denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_kits import Held, described, golden_kits, read_kit
from torch import Tensor

from reconx_pl.diffusion.conditioning.conditions import Conditions
from reconx_pl.diffusion.sampling.ddim import DDIMSampler, SamplerStep
from reconx_pl.diffusion.sampling.guidance import ConditionSets, Guidance
from reconx_pl.diffusion.sampling.schedule import NoiseSchedule, ScheduleConfig

TABLES = {"alphas": "alphas", "alphas_prev": "alphas_next", "sigmas": "sigmas", "scale_prev": "scales_next"}
TABLE_TOLERANCES = {"alphas": 1e-7, "alphas_prev": 1e-7, "sigmas": 1e-6, "scale_prev": 6e-8}


def _runs() -> list[Any]:
    return [
        pytest.param(path, run, id=f"{path.stem}-{run}")
        for path in golden_kits("ddim_*.json")
        for run in described(path)["runs"]
    ]


def _conditions(latents: Tensor, batch: int) -> Conditions:
    """Of a batch; a kit may have one condition for all of it."""
    empty = torch.zeros(batch, 1, 1)
    return Conditions(
        text_tokens=empty,
        image_tokens=empty,
        fps=torch.ones(batch),
        concat_latents=latents.expand(batch, *latents.shape[1:]),
    )


@pytest.mark.skipif(not _runs(), reason="needs the golden kits ddim_*.json")
@pytest.mark.parametrize(("path", "run"), _runs() or [(None, None)])
def test_recorded_run(path: Path, run: str) -> None:
    description, kit = read_kit(path)
    settings, toy = description["runs"][run], description["toy_model"]

    def model(x: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        step = t.float().view(-1, 1, 1, 1, 1) / 1000
        return toy["a"] * x + toy["b"] * conditions.concat_latents + toy["c"] * step

    schedule = NoiseSchedule(ScheduleConfig(rescale_end=0.7 if settings["dynamic_rescale"] else None))
    sampler = DDIMSampler(
        schedule,
        steps=settings["S"],
        eta=settings["eta"],
        last_step="corrected" if settings.get("fixed_prev") else "official",
        spacing="uniform" if description.get("spacing") == "uniform" else "trailing",
    )
    start = kit["x_T"]
    batch = len(start)
    cond = _conditions(kit["cond"], batch)
    # the toy has one condition; all of it belongs to the view branch, as in the base model
    null = cond if settings["cfg"] == 1 and "uncond" not in kit else _conditions(kit["uncond"], batch)
    guidance = Guidance(
        guidance_scale=settings["cfg"], structure_guidance_scale=settings["cfg"], guidance_rescale=settings["gr"]
    )
    noise = None if settings["eta"] == 0 else kit[f"{run}.noise"]
    steps: list[SamplerStep] = []
    final = sampler.sample(
        guidance.denoiser(
            lambda conditions: lambda x, t: model(x, t, conditions), ConditionSets(null=null, view=cond, full=cond)
        ),
        tuple(start.shape),
        start=start,
        noise=noise if noise is None else noise.expand(-1, *start.shape),
        callback=steps.append,
    )

    # recorded for some of the runs only
    if f"{run}.timesteps" in kit:
        assert torch.equal(sampler.timesteps, kit[f"{run}.timesteps"])
    for theirs, ours in TABLES.items():
        if (table := kit.get(f"{run}.{theirs}")) is not None:
            found = getattr(sampler, ours).float()
            torch.testing.assert_close(found, table, atol=TABLE_TOLERANCES[theirs], rtol=0)

    # tolerances of the kit, relative to the largest magnitude
    final_tolerance, inner_tolerance = (5e-6, 5e-6) if settings["eta"] == 0 else (5e-5, 5e-4)
    assert len(steps) == len(sampler.timesteps)
    recorded = {"x_inter": [start, *(step.latents for step in steps)], "pred_x0": [step.x0 for step in steps]}
    for what, ours in recorded.items():
        for index, theirs in enumerate(kit.get(f"{run}.{what}", [])):  # some runs recorded the final only
            _close(ours[index], theirs, inner_tolerance, f"{what}[{index}]")
    if "final_checksum_l2" in settings:
        assert float(final.norm()) == pytest.approx(settings["final_checksum_l2"], rel=final_tolerance)
    with Held(kit) as held:
        for _, theirs in held.of([f"{run}.final"]):
            _close(final, theirs, final_tolerance, "final")


def _close(ours: Tensor, theirs: Tensor, tolerance: float, what: str) -> None:
    assert ours.shape == theirs.shape, what
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    assert error <= tolerance, f"{what}: relative error {error:.3g} > {tolerance:g}"
