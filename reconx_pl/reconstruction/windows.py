"""Which clips generate a closed sequence of frames, 360 degrees included, window after window (ReconX, V-D)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from reconx_pl.errors import ConfigurationError


@dataclass(frozen=True)
class Window:
    """A clip of the sequence: two frames that are there already, and those that it adds.

    Attributes:
        start: frame of the sequence that the clip begins with, its first condition.
        end_condition_frame: frame of the clip that is its second condition.
        generates: frames of the sequence that are kept of it, ascending; what else it generates is thrown away.
    """

    start: int
    end_condition_frame: int
    generates: tuple[int, ...]


def plan_windows(total: int, photographs: Sequence[int], frames: int, end_condition_frame: int) -> tuple[Window, ...]:
    """Cover a closed sequence, in which frame 0 follows frame ``total`` - 1, with clips.

    The paper says "a sliding window of such clips, closed on the first input". (ours) From one photograph to the next,
    and from the last to the first, clips of extrapolation follow each other, each conditioned on the newest frame and
    the one ``end_condition_frame`` frames before it, until the rest fits into one clip; that one interpolates between
    the newest frame and the photograph. The last extrapolation is cut so that the interpolation has its full length.
    Photographs that are near enough to each other have no extrapolation between them: with gaps of ``frames`` - 1
    throughout, all clips interpolate between neighbours. A clip between nearer ones goes on after the second, where the
    next gap needs it.

    Args:
        total: M frames of the sequence.
        photographs: their places in it, ascending from 0, at least two.
        frames: T of a clip.
        end_condition_frame: k, the second condition of an extrapolation, 1 to T - 2. It is less where the sequence is
            not yet that long.

    Returns:
        Windows in the order of generation. Their conditions are photographs or frames of windows before; every frame
        that is no photograph is kept of exactly one window.

    Raises:
        ConfigurationError: numbers out of range; the first two photographs are too far apart for one clip.
    """
    places = list(photographs)
    if len(places) < 2 or places[0] != 0 or any(b <= a for a, b in pairwise([*places, total])):
        raise ConfigurationError(
            f"two photographs or more have ascending places from 0 to less than {total}, got {places}"
        )
    if not 0 < end_condition_frame < frames - 1:
        raise ConfigurationError(
            f"a clip of {frames} frames extrapolates from a frame in 1 to {frames - 2}, got {end_condition_frame}"
        )
    reach = frames - 1
    if places[1] > reach:
        raise ConfigurationError(
            f"photographs at frames 0 and {places[1]} lie further apart than a clip of {frames} frames reaches, and "
            f"extrapolation starts from two known frames: let the path have at most {reach} frames from the first to "
            "the second"
        )
    stops = [*places[1:], total]
    windows: list[Window] = []
    newest = 0  # all frames up to it are there
    for stop, following in zip(stops, [*stops[1:], total], strict=True):
        while stop - newest > reach:
            behind = min(end_condition_frame, newest)
            end = min(newest - behind + reach, stop - reach)
            windows.append(Window(newest - behind, behind, tuple(range(newest + 1, end + 1))))
            newest = end
        end = stop if following - stop <= reach else min(newest + reach, following - reach)
        generates = tuple(frame for frame in range(newest + 1, end + 1) if frame not in (stop, total))
        if generates:
            windows.append(Window(newest, stop - newest, generates))
        newest = end
    return tuple(windows)
