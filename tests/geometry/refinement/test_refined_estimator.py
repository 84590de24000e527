"""Rough cameras of procedural scenes, whose true cameras and depth are exact, polished by bundle adjustment."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.refine import Photographs, Rough, errors, roughened
from reconx_pl.data.procedural import procedural_views
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.files.identity import identity_of
from reconx_pl.geometry.default_estimator import refined_estimator
from reconx_pl.geometry.estimators.base import KnownDepth, Reconstruction, arguments_of, name_of
from reconx_pl.geometry.estimators.colmap import ColmapEstimator
from reconx_pl.geometry.estimators.lenses import Lenses
from reconx_pl.geometry.estimators.plane_sweep_estimator import PlaneSweepEstimator
from reconx_pl.geometry.point_maps import depth_from_point_map
from reconx_pl.geometry.refinement.estimator import RefinedEstimator
from reconx_pl.geometry.refinement.poses import RefinementOptions
from reconx_pl.reconstruction.alignment import holds_fixed_views
from reconx_pl.types import Cameras

pytest.importorskip("pycolmap", reason="bundle adjustment needs pycolmap")
HEIGHT, WIDTH = 240, 320
LENS = Lenses((0, 0, 0, 0), (None,) * 4)


@pytest.fixture(scope="module")
def true() -> Photographs:
    """Four views of a landscape."""
    frames, depth, cameras = procedural_views(5, [0, 0.3, 0.7, 1], (HEIGHT, WIDTH), kind="landscape")
    return Photographs(frames.float() / 255, cameras.to(dtype=torch.float32), depth.float())


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "reconx_pl.geometry.refinement")
    return caplog


def after(found: Reconstruction, true: Photographs) -> Any:
    return errors(found.cameras, depth_from_point_map(found.point_map, found.cameras), true)


def test_rough_cameras_and_depth_become_better(true: Photographs, said: pytest.LogCaptureFixture) -> None:
    rough = roughened(true, degrees=2, percent=3, focal=1, seed=0)
    before = errors(rough.cameras, rough.depth, true)
    found = RefinedEstimator(rough).estimate(true.images, lenses=LENS)
    now = after(found, true)
    assert before.rotation > 2 and before.translation > 2 and before.depth > 4
    assert now.rotation < 0.5 and now.translation < 1 and now.depth < 2
    assert "poses refined" in said.text and "image 0, image 1, image 2, image 3" in said.text
    assert found.point_map.points.shape == (4, HEIGHT, WIDTH, 3) and len(found.cloud) == 4096
    # the world is the estimator's: orientations agree on average, and depth keeps its scale
    turns = found.cameras.world_to_camera[:, :3, :3].transpose(1, 2) @ rough.cameras.world_to_camera[:, :3, :3]
    skew = turns.mean(0) - turns.mean(0).T
    assert skew.abs().max() < 1e-2
    depth = depth_from_point_map(found.point_map, found.cameras)
    factors = torch.stack([(one / other)[other > 0].median() for one, other in zip(depth, rough.depth, strict=True)])
    assert factors.log().mean().abs() < 1e-3 and factors.log().abs().max() > 0.02
    again = RefinedEstimator(rough).estimate(true.images, lenses=LENS)
    assert torch.equal(again.cameras.world_to_camera, found.cameras.world_to_camera), "to the last bit"


def test_true_cameras_are_not_refuted(true: Photographs, said: pytest.LogCaptureFixture) -> None:
    found = RefinedEstimator(Rough(true.cameras, true.depth)).estimate(true.images, lenses=LENS)
    assert torch.equal(found.cameras.world_to_camera, true.cameras.world_to_camera)
    assert "kept as given" in said.text and "agree with the given ones as well" in said.text


def test_a_view_that_shares_nothing_keeps_its_camera(true: Photographs, said: pytest.LogCaptureFixture) -> None:
    rough = roughened(true, degrees=2, percent=3, focal=1, seed=0)
    images = true.images.clone()
    images[3] = procedural_views(8, [0.5], (HEIGHT, WIDTH), kind="room")[0].float() / 255
    names = ["one.jpg", "two.jpg", "three.jpg", "other.jpg"]
    found = RefinedEstimator(rough).estimate(images, names=names, lenses=LENS)
    assert torch.equal(found.cameras.world_to_camera[3], rough.cameras.world_to_camera[3])
    assert torch.equal(found.cameras.intrinsics[3], rough.cameras.intrinsics[3])
    first = [0, 1, 2]
    part = Photographs(true.images[first], true.cameras[first], true.depth[first])
    depth = depth_from_point_map(found.point_map, found.cameras)
    torch.testing.assert_close(depth[3], rough.depth[3], rtol=1e-4, atol=1e-4)
    assert errors(found.cameras[first], depth[first], part).rotation < 0.6
    assert "for want of matches with other photographs: other.jpg" in said.text


def test_without_any_match_all_stays_as_it_was(true: Photographs, said: pytest.LogCaptureFixture) -> None:
    rough = roughened(true, degrees=2, percent=3, focal=1, seed=0)
    found = RefinedEstimator(rough).estimate(torch.full_like(true.images, 0.5))
    assert torch.equal(found.cameras.world_to_camera, rough.cameras.world_to_camera)
    assert len(said.records) == 1 and "kept as given" in said.text


def test_few_points_refine_nothing(true: Photographs, said: pytest.LogCaptureFixture) -> None:
    rough = roughened(true, degrees=2, percent=3, focal=1, seed=0)
    found = RefinedEstimator(rough, RefinementOptions(min_points=5000)).estimate(true.images, lenses=LENS)
    assert torch.equal(found.cameras.world_to_camera, rough.cameras.world_to_camera)
    assert "points, fewer than 5000" in said.text


def test_a_view_that_would_be_turned_too_far_keeps_its_camera(
    true: Photographs, said: pytest.LogCaptureFixture
) -> None:
    """One camera lies on its side by more than cameras are believed to be off: the others are refined without it."""
    rough = roughened(true, degrees=0.5, percent=1, focal=1, seed=0)
    turn = torch.eye(4)
    turn[:2, :2] = torch.tensor([[math.cos(0.12), -math.sin(0.12)], [math.sin(0.12), math.cos(0.12)]])  # 6.9 degrees
    poses = rough.cameras.world_to_camera.clone()
    poses[3] = turn @ poses[3]
    astray = Rough(replace(rough.cameras, world_to_camera=poses), rough.depth)
    found = RefinedEstimator(astray, RefinementOptions(tolerance=4)).estimate(true.images, lenses=LENS)
    assert torch.equal(found.cameras.world_to_camera[3], poses[3])
    assert "matches do not determine another: image 3" in said.text
    first = [0, 1, 2]
    part = Photographs(true.images[first], true.cameras[first], true.depth[first])
    assert (
        errors(found.cameras[first], depth_from_point_map(found.point_map, found.cameras)[first], part).rotation < 0.4
    )
    believed = RefinedEstimator(astray, RefinementOptions(tolerance=8)).estimate(true.images, lenses=LENS)
    assert after(believed, true).rotation < 0.5


def test_a_focal_length_of_exif_takes_the_place_of_the_one_found(true: Photographs) -> None:
    rough = roughened(true, degrees=1, percent=2, focal=1.08, seed=1)
    exif = float(true.cameras.intrinsics[0, 0, 0])
    found = RefinedEstimator(rough).estimate(true.images, lenses=Lenses((3, 3, 1, 1), (None, exif, exif, None)))
    assert (found.cameras.intrinsics[:, [0, 1], [0, 1]] - exif).abs().max() < 0.01 * exif
    assert after(found, true).rotation < 0.5


def test_a_wrong_focal_length_is_freed_where_the_views_refute_it(true: Photographs) -> None:
    rough = roughened(true, degrees=1, percent=2, focal=1.15, seed=1)
    found = RefinedEstimator(rough).estimate(true.images, lenses=LENS)
    off = found.cameras.intrinsics[:, 0, 0] / true.cameras.intrinsics[:, 0, 0] - 1
    assert off.abs().max() < 0.08 and off.std() < 1e-6, "one lens"


@dataclass
class Recorder:
    """Keeps what it is given."""

    heard: dict[str, Any]
    depth: Tensor | None = None
    identity: str = "a recorder"

    def estimate(
        self,
        images: Tensor,
        cameras: Cameras | None = None,
        fixed: Tensor | None = None,
        names: Sequence[str] | None = None,
    ) -> Reconstruction:
        self.heard = {"cameras": cameras, "fixed": fixed, "names": names}
        assert self.depth is not None
        return KnownDepth(self.depth, points=64).estimate(images, cameras)


def test_given_cameras_are_nothing_to_refine(true: Photographs) -> None:
    """Generated frames beside photographs whose cameras are fixed: the inner estimator's answer is the answer."""
    given = roughened(true, degrees=2, percent=3, focal=1, seed=0).cameras  # of which features tell better ones
    inner, names = Recorder({}, true.depth), ["a", "b", "c", "d"]
    fixed = torch.tensor([True, False, False, True])
    found = RefinedEstimator(inner).estimate(true.images, given, fixed, names=names, lenses=LENS)
    assert found.cameras is given
    assert inner.heard == {"cameras": given, "fixed": fixed, "names": names}


def test_it_takes_what_the_inner_estimator_takes() -> None:
    assert holds_fixed_views(RefinedEstimator(Recorder({})))
    plain = RefinedEstimator(Rough(None, None))  # type: ignore[arg-type]
    assert not holds_fixed_views(plain)
    assert {"names", "lenses", "progress"} <= arguments_of(plain) and "cropped" not in arguments_of(plain)
    assert name_of(RefinedEstimator(Recorder({}))) == "RefinedEstimator of Recorder"


def test_identity_tells_options_and_the_inner_estimator_apart() -> None:
    one, other = Recorder({}), Recorder({}, identity="another")
    options = RefinementOptions(tolerance=5)
    told = {identity_of(RefinedEstimator(one)), identity_of(RefinedEstimator(one, options))}
    told |= {identity_of(RefinedEstimator(other)), identity_of(one)}
    assert len(told) == 4 and all("pycolmap" in word for word in told if word != "a recorder")
    assert identity_of(RefinedEstimator(Recorder({}))) in told


def test_structure_from_motion_is_refined_already(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for estimator in (ColmapEstimator(), PlaneSweepEstimator(device="cpu")):
        assert refined_estimator(estimator) is estimator
    assert caplog.text.count("ends with bundle adjustment already") == 2
    inner = Recorder({})
    wrapped = refined_estimator(inner)
    assert isinstance(wrapped, RefinedEstimator) and wrapped.inner is inner
    with pytest.raises(ConfigurationError, match="ColmapEstimator has no depth of its own"):
        RefinedEstimator(ColmapEstimator())


def test_cameras_in_one_place_stay(true: Photographs, said: pytest.LogCaptureFixture) -> None:
    poses = true.cameras.world_to_camera.clone()
    poses[:, :3, 3] = 0
    found = RefinedEstimator(Rough(replace(true.cameras, world_to_camera=poses), true.depth)).estimate(true.images)
    assert torch.equal(found.cameras.world_to_camera, poses) and "kept as given" in said.text


REFUSED = (
    ({"tolerance": 0}, "tolerance 0 or"),
    ({"tolerance": 45}, "below 45"),
    ({"min_angle": 90}, "below 90"),
    ({"max_error": 0}, "max_error 0"),
    ({"features": 0}, "features, neighbours and min_points are positive"),
    ({"neighbours": 0}, "neighbours"),
    ({"min_points": 0}, "min_points"),
    ({"seed": -1}, "not negative"),
)


@pytest.mark.parametrize(("options", "words"), REFUSED)
def test_options_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        RefinementOptions(**options)


def test_lenses_of_other_views_and_errors_of_the_inner_estimator(true: Photographs) -> None:
    rough = Rough(true.cameras, true.depth)
    with pytest.raises(ConfigurationError, match="lenses of 2 views do not go with 4 images"):
        RefinedEstimator(rough).estimate(true.images, lenses=Lenses((0, 0), (None, None)))
    with pytest.raises(BadSceneError, match="do not go with images"):
        RefinedEstimator(rough).estimate(true.images[:2])
