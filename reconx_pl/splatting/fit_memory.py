"""What a fit will hold in memory, and whether that is there; asked before anything is allocated."""

from __future__ import annotations

import logging

import torch

from reconx_pl.devices import free_memory
from reconx_pl.errors import ConfigurationError
from reconx_pl.splatting.fit_config import FitConfig

_LOG = logging.getLogger(__name__)
SHARE = 0.8  # of the free memory that a fit may take without being told
GIB = 2**30


def fit_memory(points: int, views: int, height: int, width: int, config: FitConfig) -> int:
    """Bytes that a fit takes at its peak, beside the frames that are handed to it.

    Args:
        points: Gaussians.
        views: frames.
        height: rows of a frame.
        width: columns of a frame.
        config: of the fit.
    """
    return points * _bytes_per_point(config) + _bytes_of_pictures(views, height, width, config)


def check_memory(
    points: int, views: int, height: int, width: int, config: FitConfig, device: torch.device | str
) -> None:
    """Pass if the fit goes into ``config.max_memory``, or into what is free on the device.

    Raises:
        ConfigurationError: it does not; the message has the points, the need, the budget, and how many points go.
    """
    need = fit_memory(points, views, height, width, config)
    if config.max_memory is not None:
        budget, source = round(config.max_memory * GIB), "max_memory"
    else:
        free = free_memory(device)
        if free is None:
            _LOG.info(
                "the free memory of %s is unknown; a fit of %.2f GiB is not checked against it", device, need / GIB
            )
            return
        budget, source = round(SHARE * free), f"{SHARE:.0%} of the {free / GIB:.2f} GiB free on {device}"
    if need <= budget:
        return
    pictures = _bytes_of_pictures(views, height, width, config)
    fitting = (budget - pictures) // _bytes_per_point(config)
    remedy = (
        f"take a prefix of the cloud (points[:{fitting}]) or thin it"
        if fitting >= 4
        else f"the {views} frames of {height} x {width} alone take {pictures / GIB:.3g} GiB: use fewer or smaller ones"
    )
    raise ConfigurationError(
        f"a fit of {points} points with sh_degree {config.sh_degree} to {views} frames of {height} x {width} needs "
        f"about {need / GIB:.3g} GiB, and the budget is {budget / GIB:.3g} GiB ({source}): {remedy}, or raise "
        "max_memory"
    )


# Floats, fitted to measured peaks of the CPU backend (benchmarks/README.md).
_RENDERER = 200  # a point, beside six copies of its parameters
_KEPT = 20  # a pixel of every frame: weights, local statistics, and what arises on the way to them
_STEP = 150  # a pixel of the frames of a step: picture, losses, gradients
_LPIPS_STEP = {"vgg": 1300, "alex": 100}  # a pixel that LPIPS sees in a step
_LPIPS_KEPT = {"vgg": 122, "alex": 11}  # a pixel of every frame: features of the targets


def _bytes_per_point(config: FitConfig) -> int:
    """Parameters, gradients, Adam's two moments, the start and its copies, and the renderer's rows."""
    parameters = 11 + 3 * (config.sh_degree + 1) ** 2
    return 4 * (6 * parameters + _RENDERER)


def _bytes_of_pictures(views: int, height: int, width: int, config: FitConfig) -> int:
    pixels, drawn = height * width, min(config.frames_per_step, views)
    total = 4 * pixels * (_KEPT * views + _STEP * drawn)
    if config.loss.lpips > 0:
        crop = config.lpips_crop
        seen = pixels if crop is None else min(crop, height) * min(crop, width)
        total += 4 * drawn * seen * _LPIPS_STEP[config.lpips_net]
        features = 4 * views * pixels * _LPIPS_KEPT[config.lpips_net]
        if crop is None and features <= config.lpips_memory:
            total += features
    return total
