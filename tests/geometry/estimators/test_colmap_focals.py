"""When photographs refute a focal length, and what never does; what a model is worth."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from reconx_pl.geometry.estimators.colmap_focals import refuted
from reconx_pl.geometry.estimators.colmap_mapping import NOISE, agreement


def test_the_farther_a_length_is_the_more_has_to_speak_for_it() -> None:
    kept, free = 6000.0, 6100.0
    assert refuted(kept, free, [0.17]) and not refuted(kept, free, [0.19])
    assert not refuted(kept, free, [0.13, 0.13]), "two lenses would both be wrong"
    assert not refuted(kept, kept + 28, [0.031]), "as much is gained where a lens distorts"
    assert refuted(600.0, 623.0, [0.031]) and not refuted(600.0, 615.0, [0.031]), "as much is gained by chance"
    assert not refuted(kept, 2 * kept, [0.02, -0.02]), "within what EXIF is off by"
    assert not refuted(free, kept, [0.031]), "the known one fits better"


class Model:
    """Two images that see points of given tracks, each feature so many pixels beside its point."""

    def __init__(self, errors: list[float], track: int) -> None:
        point = SimpleNamespace(xyz=np.zeros(3), track=SimpleNamespace(length=lambda: track))
        self.points3D = dict(enumerate([point] * len(errors)))
        features = [
            SimpleNamespace(has_point3D=lambda: True, point3D_id=number, xy=np.array([error, 0.0]))
            for number, error in enumerate(errors)
        ]
        lone = SimpleNamespace(has_point3D=lambda: False)
        self.images = {1: SimpleNamespace(points2D=[*features, lone], project_point=lambda _: np.zeros(2))}

    def reg_image_ids(self) -> list[int]:
        return list(self.images)


def worth(errors: list[float], track: int = 4) -> float:
    model: Any = Model(errors, track)
    return agreement(model, 2.0)


def test_more_features_count_as_much_as_smaller_errors() -> None:
    assert worth([0.1] * 10) > worth([0.1] * 9) > worth([0.5] * 9)
    assert worth([0.1, 2.0, 50.0]) == pytest.approx(worth([0.1])), "what fits no better than chance counts nothing"
    assert worth([0.0]) == pytest.approx((1 - 1.5 / 4) * np.log1p((2.0 / NOISE) ** 2))


def test_points_of_two_views_fit_nearly_anything() -> None:
    assert worth([0.1] * 2, track=2) < worth([0.1], track=8)
