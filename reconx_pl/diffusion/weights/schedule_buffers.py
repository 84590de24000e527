"""The noise schedule that a released checkpoint stores, compared with the configured one.

Ours follows from the configuration and is what is used; the stored one only tells whether the configuration is that of
the checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from reconx_pl.diffusion.sampling.schedule import NoiseSchedule, ScheduleConfig
from reconx_pl.diffusion.weights.released import SCHEDULE_BUFFERS
from reconx_pl.errors import BadWeightsError

log = logging.getLogger(__name__)
TOLERANCE = 1e-6  # absolute and relative, of float32 buffers


def official_buffers(config: ScheduleConfig) -> dict[str, Tensor]:
    """The buffers of the official model for ``config``, by their names in the checkpoint; [steps] float64 each.

    Posterior terms are those of Ho et al. 2020, equations 6 and 7. The two reciprocals are zero under v-prediction,
    where the last step would divide by zero. Of ``scale_arr`` (absent without a dynamic rescale) these are the
    reachable entries.
    """
    tables = NoiseSchedule(config).tables
    betas, alphas = tables["betas"], tables["alphas_cumprod"]
    before = torch.cat([alphas.new_ones(1), alphas[:-1]])
    variance = betas * (1 - before) / (1 - alphas)
    recip = torch.zeros_like(alphas) if config.prediction == "v" else 1 / alphas
    buffers = {
        "betas": betas,
        "alphas_cumprod": alphas,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": alphas.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alphas).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alphas).log(),
        "sqrt_recip_alphas_cumprod": recip.sqrt(),
        "sqrt_recipm1_alphas_cumprod": (recip - 1).clamp_min(0).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp_min(1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - alphas),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - alphas),
    }
    return buffers if config.rescale_end is None else buffers | {"scale_arr": tables["scale"]}


def check_schedule(config: ScheduleConfig, buffers: Mapping[str, Tensor], source: str) -> None:
    """Compare the schedule buffers of a released checkpoint with ``config``; differences are logged.

    Args:
        config: the schedule that will be used.
        buffers: under the official names; none at all cannot be compared, which is logged.
        source: file named in messages.

    Raises:
        BadWeightsError: the dynamic rescale is that of another release, with which the model would sample badly; or
            some buffers are missing.
    """
    if not buffers:
        log.warning("%s stores no noise schedule: whether the configured one is its own cannot be told", source)
        return
    ours = official_buffers(config)
    _check_rescale(config, ours, buffers, source)
    if missing := sorted(SCHEDULE_BUFFERS - {"scale_arr"} - buffers.keys()):
        raise BadWeightsError(f"{source}: the noise schedule is not complete, missing: {', '.join(missing)}")
    different = _differences(ours, buffers)
    if not different:
        return
    names, largest = ", ".join(sorted(different)), max(different.values())
    plain = official_buffers(replace(config, zero_terminal_snr=False)) if config.zero_terminal_snr else ours
    if not _differences(plain, buffers):
        log.warning(
            "%s stores the noise schedule from before the rescale to zero terminal SNR (%s; largest difference %.3g). "
            "This is known and harmless: the schedule follows from the configuration, and ours is used",
            source, names, largest,
        )  # fmt: skip
    else:
        log.warning(
            "%s stores another noise schedule than the configured one (%s; largest difference %.3g); ours is used. "
            "Check ScheduleConfig against the release",
            source, names, largest,
        )  # fmt: skip


def _check_rescale(
    config: ScheduleConfig, ours: Mapping[str, Tensor], buffers: Mapping[str, Tensor], source: str
) -> None:
    stored = buffers.get("scale_arr")
    if stored is None and config.rescale_end is not None:
        raise BadWeightsError(
            f"{source}: no scale_arr, so the model was trained without dynamic rescale (DynamiCrafter 256 is such a "
            f"model), and the schedule is configured with rescale_end={config.rescale_end}; use a 512 or 1024 "
            "checkpoint, or set schedule.rescale_end to null"
        )
    expected = {"scale_arr": ours.get("scale_arr", torch.ones(config.steps, dtype=torch.float64))}
    if stored is not None and _differences(expected, {"scale_arr": stored}):
        end = f"{float(stored.flatten()[-1]):.3g}" if stored.numel() else "nothing"
        raise BadWeightsError(
            f"{source}: scale_arr is that of another release: the stored dynamic rescale ends at {end}, the configured "
            f"one has rescale_end={config.rescale_end} (0.7 for DynamiCrafter 512, 0.3 for 1024 and ViewCrafter); set "
            "schedule.rescale_end to that of the checkpoint"
        )


def _differences(ours: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest absolute difference of each buffer that differs; infinite where the shapes do."""
    found = {}
    for name, expected in ours.items():
        if name not in buffers:
            continue
        stored = buffers[name].detach().cpu()
        tolerance = max(TOLERANCE, 4 * torch.finfo(stored.dtype).eps) if stored.is_floating_point() else TOLERANCE
        theirs = stored.double().flatten()[: expected.numel()]
        if theirs.shape != expected.shape:
            found[name] = float("inf")
        elif not torch.allclose(theirs, expected, rtol=tolerance, atol=tolerance):
            found[name] = float((theirs - expected).abs().max())
    return found
