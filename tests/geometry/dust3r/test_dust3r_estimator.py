"""Images to a reconstruction: sizes there and back, known cameras, errors that name the images."""

from __future__ import annotations

import inspect
import logging
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from dust3r_networks import tiny_network
from pair_scenes import PairScene, pair_scene, predictions_of
from torch import Tensor

from reconx_pl.errors import BadCameraError, BadSceneError, ConfigurationError, MissingWeightsError
from reconx_pl.geometry.alignment.options import AlignmentOptions
from reconx_pl.geometry.cameras import project, resize_cameras
from reconx_pl.geometry.dust3r import estimator as module
from reconx_pl.geometry.dust3r.estimator import Dust3rEstimator, Dust3rOptions
from reconx_pl.geometry.dust3r.preprocess import Preprocessing, Window
from reconx_pl.geometry.dust3r.pretrained import PretrainedDust3r
from reconx_pl.geometry.dust3r.resample import to_photograph
from reconx_pl.geometry.dust3r.weights import save_weights
from reconx_pl.geometry.estimators.pair_predictions import PairPredictions
from reconx_pl.geometry.estimators.pairs import PairGraph
from reconx_pl.types import Cameras

SMALL = Preprocessing(size=64)  # a photograph of 72 x 96 becomes 48 x 64
NAMES = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def images(views: int = 4, height: int = 72, width: int = 96) -> Tensor:
    return torch.rand(views, 3, height, width, generator=torch.Generator().manual_seed(0))


def estimator_of(predictions: PairPredictions, **options: object):
    """An estimator whose network says these predictions."""
    options = {"preprocessing": SMALL, "alignment": AlignmentOptions(steps=80), "points": 500, **options}
    return patch.object(module, "predict_pairs", lambda *_: predictions), Dust3rEstimator(
        tiny_network(), Dust3rOptions(**options)
    )


def scene_48() -> PairScene:
    return pair_scene(((48, 64),) * 4, (60.0, 52.0, 66.0, 58.0))


def photograph_cameras(scene: PairScene) -> Cameras:
    """Cameras of the scene's views at 72 x 96 pixels."""
    return resize_cameras(
        Cameras(
            torch.cat([one.world_to_camera for one in scene.cameras]).float(),
            torch.cat([one.intrinsics for one in scene.cameras]).float(),
            48,
            64,
        ),
        72,
        96,
    )


@pytest.mark.parametrize("closed_form", [False, True])
def test_a_network_of_random_weights_runs_through(closed_form: bool) -> None:
    calls: list[tuple[str, int, int | None]] = []
    views = 2 if closed_form else 3
    options = Dust3rOptions(
        SMALL, alignment=AlignmentOptions(steps=20), min_confidence=1.0, closed_form=closed_form, points=200
    )
    estimator = Dust3rEstimator(tiny_network(), options)
    found = estimator.estimate(images(views, 60, 100), progress=lambda *call: calls.append(call))
    assert found.point_map.points.shape == (views, 60, 100, 3) and len(found.cameras) == views
    assert (found.cameras.height, found.cameras.width) == (60, 100)
    assert torch.isfinite(found.point_map.points).all() and len(found.cloud) == 200
    assert {call[0].split(",")[0] for call in calls} == ({"pairs"} if closed_form else {"pairs", "alignment"})


def test_cameras_and_points_are_those_of_the_photographs() -> None:
    scene = scene_48()
    patched, estimator = estimator_of(predictions_of(scene), min_confidence=1.5)
    with patched:
        found = estimator.estimate(images())
    truth = photograph_cameras(scene)
    assert torch.allclose(found.cameras.intrinsics, truth.intrinsics, rtol=1e-2)
    for view in range(4):  # points are on the rays of the photograph's pixels
        pixels, _ = project(found.point_map.points[view].reshape(-1, 3), found.cameras[view])
        y, x = torch.meshgrid(torch.arange(72) + 0.5, torch.arange(96) + 0.5, indexing="ij")
        valid = found.point_map.valid[view].flatten()
        off = (pixels[0] - torch.stack([x, y], -1).reshape(-1, 2))[valid]
        assert off.abs().max() < 1e-2
        assert valid.float().mean() > 0.7
    assert found.point_map.points[~found.point_map.valid].abs().max() == 0


def test_known_cameras_come_back_as_they_were_given_and_points_lie_in_their_world() -> None:
    scene = scene_48()
    cameras = photograph_cameras(scene)
    fixed = torch.tensor([True, True, False, True])
    wrong = replace(cameras, world_to_camera=cameras.world_to_camera.clone())
    wrong.world_to_camera[2] = torch.eye(4)
    patched, estimator = estimator_of(predictions_of(scene), min_confidence=1.5, graph=PairGraph())
    with patched:
        found = estimator.estimate(images(), wrong, fixed)
    assert found.cameras.world_to_camera[fixed].equal(cameras.world_to_camera[fixed])
    assert found.cameras.intrinsics[fixed].equal(cameras.intrinsics[fixed])
    assert torch.allclose(found.cameras.world_to_camera[2], cameras.world_to_camera[2], atol=2e-2)
    # nearest pixels of the truth
    y, x = torch.meshgrid((torch.arange(72) * 48 // 72), (torch.arange(96) * 64 // 96), indexing="ij")
    off = torch.stack([(found.point_map.points[v] - scene.points[v][y, x]).norm(dim=-1) for v in range(4)])
    assert off[found.point_map.valid].median() < 0.05


def test_depth_at_the_pixels_of_the_photograph() -> None:
    window = Window(48, 120, 24, 60, 4, 6, 16, 48)
    y, x = torch.meshgrid(torch.arange(16) + 0.5, torch.arange(48) + 0.5, indexing="ij")
    depth = (10 + 0.02 * x + 0.01 * y)[None]
    found, confidence, inside = to_photograph(depth, torch.full((1, 16, 48), 4.0), window)
    ys, xs = torch.meshgrid(torch.arange(48) + 0.5, torch.arange(120) + 0.5, indexing="ij")
    wanted = 10 + 0.02 * (xs / 2 - 6) + 0.01 * (ys / 2 - 4)
    assert inside.equal((xs / 2 >= 6) & (xs / 2 <= 54) & (ys / 2 >= 4) & (ys / 2 <= 20))
    core = inside & (xs / 2 > 6.5) & (xs / 2 < 53.5) & (ys / 2 > 4.5) & (ys / 2 < 19.5)
    assert torch.allclose(found[0][core], wanted[core], atol=1e-4)
    assert found[0][~inside].abs().max() == 0 and confidence[0][~inside].max() == 1
    assert confidence[0][inside].equal(torch.full_like(confidence[0][inside], 4.0))
    step = torch.where(x < 24, 1.0, 3.0)[None]
    assert set(to_photograph(step, step, window)[0][0][inside].tolist()) == {1.0, 3.0}  # nothing floats between


def test_one_image_and_the_same_image_are_refused() -> None:
    estimator = Dust3rEstimator(tiny_network(), Dust3rOptions(SMALL))
    with pytest.raises(BadSceneError, match=r"a.jpg.*two images"):
        estimator.estimate(images(1), names=["a.jpg"])
    with pytest.raises(BadSceneError, match=r"a.jpg, b.jpg are one and the same image"):
        estimator.estimate(images(1).repeat(2, 1, 1, 1), names=["a.jpg", "b.jpg"])


def test_confidence_at_the_floor_and_graphs_that_fall_apart_name_the_images() -> None:
    predictions, floor = predictions_of(scene_48()), torch.ones(48, 64)
    patched, estimator = estimator_of(replace(predictions, confidence=[(floor, floor)] * 12))
    with patched, pytest.raises(BadSceneError, match=r"a.jpg, b.jpg, c.jpg, d.jpg is at its floor"):
        estimator.estimate(images(), names=NAMES)
    apart = [
        both if set(pair) in ({0, 1}, {2, 3}) else (floor, floor)
        for pair, both in zip(predictions.edges.tolist(), predictions.confidence, strict=True)
    ]
    patched, estimator = estimator_of(replace(predictions, confidence=apart))
    with patched, pytest.raises(BadSceneError, match="a.jpg, b.jpg; c.jpg, d.jpg"):
        estimator.estimate(images(), names=NAMES)
    patched, estimator = estimator_of(predictions, min_confidence=1e6)
    with patched, pytest.raises(BadSceneError, match=r"no pixel of a.jpg, b.jpg.*lower min_confidence"):
        estimator.estimate(images(), names=NAMES)


def test_short_baselines_are_told(caplog: pytest.LogCaptureFixture) -> None:
    scene = pair_scene(((48, 64),) * 2, (60.0, 60.0))
    near = replace(scene, cameras=[scene.cameras[0]] * 2, points=[scene.points[0]] * 2)
    for told, one in ((False, scene), (True, near)):
        caplog.clear()
        patched, estimator = estimator_of(predictions_of(one), min_confidence=1.5)
        with patched, caplog.at_level(logging.WARNING, "reconx_pl"):
            estimator.estimate(images(2), names=["a.jpg", "b.jpg"])
        assert ("a.jpg, b.jpg stand within" in caplog.text) == told


def test_arguments_must_go_together() -> None:
    estimator = Dust3rEstimator(tiny_network(), Dust3rOptions(SMALL))
    cameras = photograph_cameras(scene_48())
    with pytest.raises(ConfigurationError, match="4 cameras"):
        estimator.estimate(images(3), cameras)
    with pytest.raises(ConfigurationError, match="one bool a view"):
        estimator.estimate(images(), cameras, torch.ones(3).bool())
    with pytest.raises(ConfigurationError, match="no cameras"):
        estimator.estimate(images(), fixed=torch.ones(4).bool())
    with pytest.raises(ConfigurationError, match="names"):
        estimator.estimate(images(), names=["a.jpg"])
    cameras.intrinsics[1, 0, 0] = 0
    with pytest.raises(BadCameraError, match="known cameras: camera 1 has focal"):
        estimator.estimate(images(), cameras)
    with pytest.raises(ConfigurationError, match="min_confidence"):
        Dust3rOptions(min_confidence=0.5)


def test_a_file_of_weights_is_the_estimator_that_it_holds(tmp_path: Path) -> None:
    network, options = tiny_network(), Dust3rOptions(SMALL, min_confidence=1.0, closed_form=True, points=50)
    save_weights(network, tmp_path / "tiny.safetensors")
    views = images(2, 60, 100)
    named = PretrainedDust3r(tmp_path / "tiny.safetensors", "cpu", options)
    found, expected = named.estimate(views), Dust3rEstimator(network, options).estimate(views)
    assert torch.equal(found.cloud.points, expected.cloud.points) and len(found.cloud) == 50
    assert named.identity == PretrainedDust3r(tmp_path / "tiny.safetensors", "cpu", options).identity
    others = replace(options, points=51)
    assert named.identity != PretrainedDust3r(tmp_path / "tiny.safetensors", "cpu", others).identity
    with torch.no_grad():
        next(network.parameters()).add_(1)
    save_weights(network, tmp_path / "other.safetensors")
    assert named.identity != PretrainedDust3r(tmp_path / "other.safetensors", "cpu", options).identity
    with pytest.raises(MissingWeightsError, match="reconx weights fetch dust3r-512-dpt"):
        PretrainedDust3r(tmp_path / "none.safetensors").estimate(views)


def test_the_released_one_takes_all_that_the_estimator_takes() -> None:
    ours, theirs = (list(inspect.signature(kind.estimate).parameters) for kind in (PretrainedDust3r, Dust3rEstimator))
    assert ours == theirs, "what it has no parameter for, progress for one, callers leave out without a word"
