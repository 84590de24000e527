"""Adam on the objective, with the schedule of DUSt3R, a warm-up, and an end where nothing moves any more."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from reconx_pl.geometry.alignment.drift import Drift
from reconx_pl.geometry.alignment.objective import objective
from reconx_pl.geometry.alignment.observations import ViewGroup
from reconx_pl.geometry.alignment.options import AlignmentOptions
from reconx_pl.geometry.alignment.state import AlignmentState, Gauge
from reconx_pl.types import Progress

logger = logging.getLogger(__name__)


def learning_rate(position: float, step: int, options: AlignmentOptions) -> float:
    """Of the step at ``position`` (in steps) of the cosine schedule, and the ``step``-th that is taken."""
    low, high = options.final_learning_rate, options.learning_rate
    cosine = low + (high - low) * (1 + math.cos(math.pi * position / options.steps)) / 2
    return cosine * min(1.0, (step + 1) / max(1, options.warmup))


def minimise(
    state: AlignmentState,
    gauge: Gauge,
    groups: list[ViewGroup],
    options: AlignmentOptions = AlignmentOptions(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
) -> Tensor:
    """Change the parameters of ``state`` in place. Nothing waits for the device but one look at the loss a window.

    Args:
        state: where it starts.
        gauge: what is held.
        groups: see ``grouped``.
        options: see there.
        progress: called at every look with the loss, the steps done, and those to do as far as is known.

    Returns:
        the loss before each step and after the last: [steps taken + 1], world units, on the CPU.
    """
    parameters = state.parameters()
    adam = torch.optim.Adam(parameters, lr=options.learning_rate, betas=(0.9, 0.9), fused=True)
    losses = parameters[0].new_zeros(options.steps + options.settle + 1)
    drift = None if options.tolerance is None else Drift(state, gauge, groups, options.window)
    step, position, stride, flat = 0, 0.0, 1.0, False
    while position < options.steps - 0.5:
        adam.param_groups[0]["lr"] = learning_rate(position, step, options)
        adam.zero_grad()
        loss = objective(state, gauge, groups)
        losses[step] = loss.detach()
        loss.backward()
        adam.step()
        step += 1
        position += stride
        if drift is not None:
            drift.add()
        if step % options.window == 0 and (progress or drift is not None or logger.isEnabledFor(logging.DEBUG)):
            seen = losses[max(0, step - 2 * options.window) : step].cpu()
            if drift is not None:
                flat = flat or (step > options.warmup and _flat(seen, options))
                left = options.steps - step
                if flat and drift.known and left > options.settle and _arrived(drift, left, options):
                    # the rest of the schedule in a few strides, after what the steps between them would have moved
                    drift.move(_skipped(left, options))
                    drift, stride = None, left / options.settle
            total = step + round((options.steps - position) / stride)
            logger.debug("alignment: %d of %d steps, loss %.5g", step, total, seen[-1])
            if progress is not None:
                progress(f"alignment, loss {float(seen[-1]):.4g}", step, total)
    with torch.no_grad():
        losses[step] = objective(state, gauge, groups)
    logger.info("alignment: loss %.5g at first, %.5g after %d steps", losses[0], losses[step], step)
    return losses[: step + 1].cpu()


def _flat(seen: Tensor, options: AlignmentOptions) -> bool:
    if options.tolerance is None or len(seen) < 2 * options.window:
        return False
    before, now = seen.chunk(2)
    return bool(now.mean() > before.mean() * (1 - options.tolerance))


def _arrived(drift: Drift, left: int, options: AlignmentOptions) -> bool:
    """Whether stopping with ``left`` steps to go leaves out little of the cameras' way, or next to no steps."""
    way = drift.of_cameras(_skipped(left, options))
    logger.debug("alignment: cameras drift %.2g from here, pairs disagree by %.2g", way, drift.disagreement())
    return way <= options.still * drift.disagreement() or left <= options.settle + options.window


def _skipped(left: int, options: AlignmentOptions) -> float:
    """What an early stop leaves out of the last ``left`` steps, in steps at the present rate."""
    rates = [learning_rate(options.steps - left + step, options.warmup, options) for step in range(left)]
    return (1 - options.settle / left) * sum(rates) / rates[0]
