"""Matches near the epipolar lines of rough cameras, and which views are matched at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.refine import Photographs, roughened
from reconx_pl.data.procedural import procedural_views
from reconx_pl.geometry.cameras import fundamental_matrix
from reconx_pl.geometry.estimators.base import KnownDepth
from reconx_pl.geometry.estimators.colmap_matches import sampson_distances
from reconx_pl.geometry.refinement.matching import Features, close_matches, find_features, likely_pairs, rough_matches

pytest.importorskip("pycolmap", reason="features need pycolmap")


@pytest.fixture(scope="module")
def true() -> Photographs:
    frames, depth, cameras = procedural_views(5, [0, 0.25, 0.5, 0.75, 1], (240, 320), kind="landscape")
    return Photographs(frames.float() / 255, cameras.to(dtype=torch.float32), depth.float())


@pytest.fixture(scope="module")
def features(true: Photographs, tmp_path_factory: pytest.TempPathFactory) -> Features:
    return find_features(true.images, 2048, tmp_path_factory.mktemp("features"), seed=0)


def test_a_band_around_the_lines_gives_more_matches_than_the_whole_image(true: Photographs, features: Features) -> None:
    rough = roughened(true, degrees=1, percent=2, focal=1, seed=0).cameras
    heard = []
    narrow = rough_matches(features, rough, [(0, 4)], 3, 0, lambda *what: heard.append(what))
    whole = rough_matches(features, rough, [(0, 4)], 44, 0)
    assert len(narrow[0, 4]) > 1.1 * len(whole[0, 4]) and heard == [("matching photographs", 1, 1)]
    x, y = (features.pixels[view][narrow[0, 4][:, at]] for at, view in enumerate((0, 4)))
    exact = sampson_distances(fundamental_matrix(true.cameras, 0, 4), x, y).diagonal()
    given = sampson_distances(fundamental_matrix(rough, 0, 4), x, y).diagonal()
    assert exact.median() < 0.5 < 2 < given.median(), "RANSAC found the motion that the rough cameras do not have"


def test_images_of_other_places_do_not_match(true: Photographs, features: Features, tmp_path: Path) -> None:
    other = procedural_views(8, [0.5], (240, 320), kind="room")[0].float() / 255
    foreign = find_features(other, 2048, tmp_path, seed=0)
    mixed = Features([features.pixels[0], *foreign.pixels], [features.descriptors[0], *foreign.descriptors])
    assert rough_matches(mixed, true.cameras[:2], [(0, 1)], 8, 0) == {}
    assert close_matches(mixed, true.cameras[:2], [(0, 1)], 2.0) == {}
    assert len(close_matches(features, true.cameras, [(0, 1)], 2.0)[0, 1]) > 100


def test_every_view_is_matched_with_its_nearest(true: Photographs) -> None:
    cloud = KnownDepth(true.depth, points=2048).estimate(true.images, true.cameras).cloud
    assert likely_pairs(true.cameras, cloud, 1) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert len(likely_pairs(true.cameras, cloud, 9)) == 10
