"""Samplers by evaluations of the model: on Gaussian data with a known answer, and on a trained model.

``python -m benchmarks.samplers --help`` names the options; the defaults are what ``make demo`` leaves.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from jsonargparse import CLI
from torch import Tensor

from reconx_pl.data.shards.stream import read_clips
from reconx_pl.diffusion.pipeline import SamplingConfig
from reconx_pl.diffusion.sampling.ddim import SamplerStep
from reconx_pl.diffusion.sampling.guidance import Guidance
from reconx_pl.diffusion.sampling.schedule import NoiseSchedule
from reconx_pl.diffusion.sampling.solvers import make_sampler
from reconx_pl.geometry.cameras import relative_to_first
from reconx_pl.metrics.image import psnr
from reconx_pl.training.runs import load_run

STEPS = (2, 4, 6, 10, 20, 50)
SETTINGS = {
    "ddim, eta 1": SamplingConfig(eta=1.0, last_step="corrected"),
    "ddim, eta 0": SamplingConfig(eta=0.0, last_step="corrected"),
    "ddim, eta 0, quadratic": SamplingConfig(eta=0.0, last_step="corrected", spacing="quadratic"),
    "dpm++, trailing": SamplingConfig(sampler="dpm++", spacing="trailing"),
    "dpm++": SamplingConfig(sampler="dpm++"),
    "unipc": SamplingConfig(sampler="unipc"),
    "sde-dpm++": SamplingConfig(sampler="sde-dpm++"),
}
STOCHASTIC = ("ddim, eta 1", "sde-dpm++")


class Bench:
    """Generates the same clips from the same starting noise with any sampler; guidance is the run's own."""

    def __init__(self, run: Path, shards: Path, clips: int) -> None:
        module = load_run(run)
        self.network, self.sampling = module.network, module.sampling
        chosen = [clip for _, clip in zip(range(clips), read_clips(shards), strict=False)]
        self.truth = torch.stack([clip.images for clip in chosen])  # [B, T, 3, H, W]
        points = None
        encoder = self.network.structure_encoder if module.uses_structure else None
        if encoder is not None:
            clouds = [clip.cloud.points[: encoder.config.points] for clip in chosen if clip.cloud is not None]
            first = [clip.cameras.world_to_camera[:1] for clip in chosen]
            points = torch.cat([relative_to_first(p[None], c) for p, c in zip(clouds, first, strict=True)])
        self.sets = self.network.condition_sets(
            self.truth[:, [0, -1]],
            torch.tensor([clip.fps for clip in chosen]),
            self.truth.shape[1],
            points,
            [clip.caption for clip in chosen],
            torch.Generator().manual_seed(0),
        )

    @torch.inference_mode()
    def latents(self, steps: int, config: SamplingConfig) -> tuple[Tensor, int]:
        """Generated latents [B, C, T, h, w], and the evaluations of the guided model that they took."""
        own = self.sampling
        guidance = Guidance(own.guidance_scale, own.structure_guidance_scale, own.guidance_rescale, own.batched)
        sampler = make_sampler(
            self.network.schedule, config.sampler, steps, config.eta, config.last_step, config.spacing
        )
        denoise, count = guidance.denoiser(self.network, self.sets), 0

        def counted(x: Tensor, t: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return denoise(x, t)

        shape = tuple(self.sets.full.concat_latents.shape)
        return sampler.sample(counted, shape, torch.Generator().manual_seed(0)), count

    @torch.inference_mode()
    def score(self, latents: Tensor) -> float:
        """Mean PSNR of the frames between the two views, dB."""
        generated = self.network.decode(latents).float()[:, 1:-1].flatten(0, 1)
        return float(psnr(generated, self.truth[:, 1:-1].flatten(0, 1)).mean())


def gaussian() -> None:
    """RMS distance to the exact end of the probability flow, v-prediction with the base model's process.

    The clean latents are normal with mean 0.5 and standard deviations from 0.05 to 2, spaced evenly in the logarithm:
    their posterior mean is known, and so is where every start ends. What is compared is the last clean latent, without
    the noise that DDIM leaves.
    """
    schedule = NoiseSchedule()
    mean, std = 0.5, torch.logspace(math.log10(0.05), math.log10(2), 4096).reshape(1, 4, 1, 32, 32)
    start = torch.randn(std.shape, generator=torch.Generator().manual_seed(0))

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        a, s = float(schedule.tables["alphas_cumprod"][t[0]]), float(schedule.tables["scale"][t[0]])
        deviation = x - a**0.5 * s * mean
        variance = a * (s * std) ** 2 + 1 - a
        clean, noise = (s * std) ** 2 * a**0.5 / variance * deviation, (1 - a) ** 0.5 / variance * deviation
        return a**0.5 * noise - (1 - a) ** 0.5 * (s * mean + clean)

    print(f"{'Gaussian data':24s}" + "".join(f"{steps:9d}" for steps in STEPS))
    for name, config in SETTINGS.items():
        errors = []
        for steps in STEPS if name not in STOCHASTIC else ():
            sampler = make_sampler(schedule, config.sampler, steps, config.eta, config.last_step, config.spacing)
            seen: list[SamplerStep] = []
            sampler.sample(denoise, tuple(std.shape), torch.Generator(), start=start, callback=seen.append)
            errors.append(rms(seen[-1].x0, mean + std * start))
        if errors:
            print(f"{name:24s}" + "".join(f"{error:9.4f}" for error in errors))


def rms(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())


def main(
    run: Path = Path("runs/demo/stage2"),
    shards: Path = Path("data/procedural-val"),
    clips: int = 2,
    reference_steps: int = 64,
) -> None:
    """Print the tables.

    Args:
        run: folder of a training run.
        shards: folder of packed clips.
        clips: how many of them are generated.
        reference_steps: of the converged probability flow.
    """
    torch.set_num_threads(1)
    gaussian()
    if not (run / "config.yaml").is_file() or not shards.is_dir():
        raise SystemExit(f"{run} or {shards} is missing; `make demo` trains the model and packs the clips")
    bench = Bench(run, shards, clips)
    reference, _ = bench.latents(reference_steps, SETTINGS["dpm++"])
    other, _ = bench.latents(reference_steps // 2, SETTINGS["unipc"])
    print(f"reference: dpm++, {reference_steps} steps, {bench.score(reference):.2f} dB, latents of RMS "
          f"{float(reference.square().mean().sqrt()):.3f}; unipc, {reference_steps // 2} steps, is "
          f"{rms(other, reference):.4f} away")  # fmt: skip
    print(f"{'':24s}{'steps':>6s}{'evaluations':>13s}{'PSNR, dB':>10s}{'RMS distance':>14s}")
    for name, config in SETTINGS.items():
        for steps in STEPS:
            latents, count = bench.latents(steps, config)
            distance = "" if name in STOCHASTIC else f"{rms(latents, reference):14.4f}"
            print(f"{name:24s}{steps:6d}{count:13d}{bench.score(latents):10.2f}{distance}", flush=True)


if __name__ == "__main__":
    CLI(main)
