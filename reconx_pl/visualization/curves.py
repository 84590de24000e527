"""Loss curves out of TensorBoard event files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from reconx_pl.errors import BadDataError

Series = tuple[np.ndarray, np.ndarray]  # steps [M] int64, values [M] float64
TRAIN_TAGS = ("train/loss", "train_loss", "train/loss_step", "train/loss_epoch", "loss")
VALIDATION_TAGS = ("val/loss", "val_loss", "validation/loss", "val/loss_epoch")
TRAIN_COLOR, VALIDATION_COLOR, GRID = "#2b6cb0", "#c05621", "#e4e6ea"


@dataclass(frozen=True)
class RunCurves:
    """The scalars of one training run.

    Args:
        name: shown above its plot, usually the stage.
        scalars: tag to its series, sorted by step.
    """

    name: str
    scalars: dict[str, Series] = field(default_factory=dict)

    def first_of(self, tags: Sequence[str]) -> Series | None:
        return next((self.scalars[tag] for tag in tags if tag in self.scalars), None)

    @property
    def train(self) -> Series | None:
        return self.first_of(TRAIN_TAGS)

    @property
    def validation(self) -> Series | None:
        return self.first_of(VALIDATION_TAGS)


def read_run(folder: str | Path, name: str | None = None) -> RunCurves:
    """Read every event file below a log folder; a resumed run's later value of a step replaces the earlier one.

    Raises:
        BadDataError: no event file there.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(folder)
    files = [folder] if folder.is_file() else list(folder.rglob("events.out.tfevents.*"))
    if not files:
        raise BadDataError(f"{folder} holds no TensorBoard event file (events.out.tfevents.*)")
    values: dict[str, dict[int, float]] = {}
    for file in sorted(files, key=lambda path: (path.stat().st_mtime, path.name)):
        accumulator = EventAccumulator(str(file), size_guidance={"scalars": 0})
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            series = values.setdefault(tag, {})
            events = accumulator.Scalars(tag)
            if events:
                # The run went back to this step: what an earlier process logged beyond it was not kept.
                series = values[tag] = {step: value for step, value in series.items() if step < events[0].step}
            series.update((event.step, event.value) for event in events)
    scalars = {
        tag: (np.array(sorted(series), dtype=np.int64), np.array([series[step] for step in sorted(series)]))
        for tag, series in values.items()
    }
    return RunCurves(name or _run_name(folder), scalars)


def _run_name(folder: Path) -> str:
    """The part of the path that tells runs apart: loggers end their folders in names like version_0."""
    generic = ("version_", "lightning_logs", "events.out", "logs", "tensorboard")
    parts = [part for part in folder.resolve().parts if not part.startswith(generic)]
    return parts[-1] if parts else folder.name


def smooth(values: np.ndarray, share: float = 0.08) -> np.ndarray:
    """Running mean over a window of ``share`` of the curve, shrunk symmetrically at the ends."""
    half = int(len(values) * share / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)


def fall(values: np.ndarray) -> tuple[float, float]:
    """Means of the first and of the last tenth of a curve."""
    edge = max(1, len(values) // 10)
    return float(values[:edge].mean()), float(values[-edge:].mean())


def plot_run(run: RunCurves) -> bytes | None:
    """Training loss (raw pale, smoothed strong) and validation loss of a run.

    Returns:
        an SVG file, or None if the run has no loss.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if run.train is None and run.validation is None:
        return None
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    axis = figure.subplots()
    shown = []
    if run.train is not None:
        steps, values = run.train
        axis.plot(steps, values, color=TRAIN_COLOR, alpha=0.25, linewidth=0.8)
        axis.plot(steps, smooth(values), color=TRAIN_COLOR, linewidth=1.8, label="training")
        shown.append(smooth(values))
    if run.validation is not None:
        steps, values = run.validation
        marker = "o" if len(steps) <= 40 else None
        axis.plot(steps, values, color=VALIDATION_COLOR, linewidth=1.6, marker=marker, markersize=4, label="validation")
        shown.append(values)
    numbers = np.concatenate(shown)
    numbers = numbers[np.isfinite(numbers)]
    if len(numbers) and numbers.min() > 0 and numbers.max() > 5 * numbers.min():
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_title(run.name, fontsize=11, loc="left")
    axis.set_xlabel("step", fontsize=9)
    axis.set_ylabel("loss", fontsize=9)
    axis.tick_params(which="both", labelsize=8, color="#999999")
    axis.grid(color=GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#999999")
    if run.validation is not None:  # else there is nothing to tell apart
        axis.legend(frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
