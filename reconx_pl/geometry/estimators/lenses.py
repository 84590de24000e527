"""Which views were taken with one lens, and what is known of its focal length beforehand."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from reconx_pl.errors import ConfigurationError


@dataclass(frozen=True)
class Lenses:
    """Lenses of V views whose cameras are to be found.

    Args:
        groups: a number a view; views of the same number share their intrinsics.
        focals: focal length of each view, pixels of the images, as EXIF gives it; None where unknown; empty: none is
            known. A group takes the median of those of its views.

    Raises:
        ConfigurationError: not one of each a view, or a focal length that is not positive.
    """

    groups: tuple[int, ...]
    focals: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.focals:
            object.__setattr__(self, "focals", (None,) * len(self.groups))
        if len(self.groups) != len(self.focals):
            raise ConfigurationError(
                f"{len(self.groups)} groups do not go with {len(self.focals)} focal lengths: give one of each a view"
            )
        for focal in self.focals:
            if focal is not None and not (math.isfinite(focal) and focal > 0):
                raise ConfigurationError(f"a focal length is positive, in pixels, or None; not {focal}")

    def __len__(self) -> int:
        return len(self.groups)

    def cameras(self) -> list[tuple[list[int], float | None]]:
        """Views and focal length of every group, in the order of their first views."""
        members: dict[int, list[int]] = {}
        for view, group in enumerate(self.groups):
            members.setdefault(group, []).append(view)
        return [(views, self._focal(views)) for views in members.values()]

    def _focal(self, views: list[int]) -> float | None:
        known = [focal for view in views if (focal := self.focals[view]) is not None]
        return statistics.median(known) if known else None
