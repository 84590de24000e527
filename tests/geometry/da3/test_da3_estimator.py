"""Photographs to a reconstruction: cameras found, known and partly known, memory, thresholds, errors with names."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from da3_networks import tiny_network
from torch import Tensor

from reconx_pl.errors import BadCameraError, BadSceneError, ConfigurationError, MissingWeightsError
from reconx_pl.geometry.cameras import project, resize_cameras, unproject
from reconx_pl.geometry.da3 import estimator as module
from reconx_pl.geometry.da3.cameras import encoded_cameras
from reconx_pl.geometry.da3.estimator import Da3Options, DepthAnything3Estimator
from reconx_pl.geometry.da3.head import Rays
from reconx_pl.geometry.da3.inference import GIB, Da3Inference, backbone_bytes, head_bytes, predict
from reconx_pl.geometry.da3.model import Da3Output
from reconx_pl.geometry.da3.preprocess import Da3Preprocessing
from reconx_pl.geometry.da3.pretrained import PretrainedDa3
from reconx_pl.geometry.da3.weights import save_weights
from reconx_pl.geometry.procrustes import Similarity
from reconx_pl.geometry.similarity import alignment_quality
from reconx_pl.types import Cameras

SMALL = Da3Preprocessing(size=56)  # a photograph of 60 x 80 becomes 42 x 56
HEIGHT, WIDTH = 60, 80
NAMES = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
DEPTH = 4.0  # of the world's plane before every camera


def images(views: int = 4) -> Tensor:
    return torch.rand(views, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


def cameras(views: int = 4) -> Cameras:
    """Cameras of photographs, the first of them not at the origin, turned a little about y."""
    poses = torch.eye(4).repeat(views, 1, 1)
    for view in range(views):
        angle = torch.tensor(0.1 * view + 0.3)
        cos, sin = angle.cos(), angle.sin()
        poses[view, :3, :3] = torch.stack(
            [torch.stack([cos, 0 * cos, sin]), torch.tensor([0.0, 1, 0]), torch.stack([-sin, 0 * cos, cos])]
        )
        poses[view, :3, 3] = torch.tensor([1.0 - view, 0.2 * view * view, 0.5])
    intrinsics = torch.tensor([[70.0, 0, WIDTH / 2], [0, 68.0, HEIGHT / 2], [0, 0, 1]]).repeat(views, 1, 1)
    return Cameras(poses, intrinsics, HEIGHT, WIDTH)


def seen_by_the_network(scale: float = 0.25, views: int = 4, confidence: Tensor | None = None) -> Da3Output:
    """What a perfect network says of ``cameras``: in a world of its own, of other units and directions."""
    truth = cameras(views)
    rotation = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]).double()
    own = Similarity(torch.tensor(scale).double(), rotation, torch.tensor([3.0, 1, 2]).double()).transform_cameras(
        truth
    )
    window = SMALL.window(HEIGHT, WIDTH)
    small = window.cut(own)
    shape = (views, window.height, window.width)
    return Da3Output(
        torch.full(shape, DEPTH * scale),
        torch.full(shape, 3.0) if confidence is None else confidence,
        encoded_cameras(small.world_to_camera, small.intrinsics, small.height, small.width),
        small.world_to_camera,
        small.intrinsics,
        None,
    )


def estimate(output: Da3Output, *arguments: object, **options: object):
    """What the estimator makes of an output, and with which cameras the network was asked."""
    asked: list = []

    def said(model: object, pixels: Tensor, poses: object, intrinsics: object, *_: object) -> Da3Output:
        asked.append((pixels.shape, poses, intrinsics))
        return output

    options = {"preprocessing": SMALL, "points": 300, **options}
    with patch.object(module, "predict", said):
        found = DepthAnything3Estimator(tiny_network(), Da3Options(**options)).estimate(
            images(len(output.depth)), *arguments
        )  # type: ignore[arg-type]
    return found, asked[0]


def depth_of(found) -> Tensor:
    return torch.stack(
        [
            project(found.point_map.points[view].reshape(-1, 3), found.cameras[view])[1][0].view(HEIGHT, WIDTH)
            for view in range(len(found.cameras))
        ]
    )


@pytest.mark.parametrize(("views", "posed"), [(1, False), (2, False), (3, False), (1, True), (2, True), (4, True)])
def test_a_network_of_random_weights_runs_through(views: int, posed: bool) -> None:
    calls: list[tuple[str, int, int | None]] = []
    estimator = DepthAnything3Estimator(tiny_network(), Da3Options(SMALL, points=200))
    given = cameras(views) if posed else None
    found = estimator.estimate(images(views), given, progress=lambda *call: calls.append(call))
    assert found.point_map.points.shape == (views, HEIGHT, WIDTH, 3) and len(found.cloud) == 200
    assert (found.cameras.height, found.cameras.width) == (HEIGHT, WIDTH)
    found.cameras.check("found")
    assert torch.isfinite(found.point_map.points).all()
    assert calls[-1] == ("network", calls[-1][2], calls[-1][2]) and len(calls) == 6 + 1, "six blocks, one piece"
    if given is None:
        assert torch.allclose(found.cameras.world_to_camera[0], torch.eye(4), atol=1e-6)
    else:
        assert found.cameras.world_to_camera.equal(given.world_to_camera)
        assert found.cameras.intrinsics.equal(given.intrinsics)
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    for view in range(views):  # points are on the rays of the photograph's pixels
        pixels, _ = project(found.point_map.points[view].reshape(-1, 3), found.cameras[view])
        off = (pixels[0] - torch.stack([x, y], -1).reshape(-1, 2))[found.point_map.valid[view].flatten()]
        assert off.abs().max() < 1e-2


def test_found_cameras_are_in_the_frame_of_the_first_and_of_the_photographs() -> None:
    found, (shape, poses, intrinsics) = estimate(seen_by_the_network())
    assert shape == (4, 3, 42, 56) and poses is None and intrinsics is None
    truth = cameras()
    assert torch.allclose(found.cameras.intrinsics, truth.intrinsics, rtol=1e-5)
    relative = truth.world_to_camera @ torch.linalg.inv(truth.world_to_camera[:1])
    relative[:, :3, 3] *= 0.25  # the network's own units
    assert torch.allclose(found.cameras.world_to_camera, relative, atol=1e-5)
    assert torch.allclose(depth_of(found), torch.tensor(DEPTH * 0.25), rtol=1e-4)
    assert torch.allclose(found.point_map.confidence, torch.tensor(3.0)), "as the network has it"


def test_cameras_of_rays_in_place_of_the_decoders() -> None:
    output, truth = seen_by_the_network(), cameras()
    small = Cameras(output.world_to_camera, output.intrinsics, 42, 56)
    coarse = resize_cameras(small, 24, 32)
    ends = unproject(torch.ones(4, 24, 32), coarse)
    origins = coarse.centers[:, None, None].expand(-1, 24, 32, -1)
    rays = Rays(2 * (ends - origins), origins, torch.full((4, 24, 32), 2.0))
    wrong = output._replace(rays=rays, encoding=torch.zeros_like(output.encoding))
    found, _ = estimate(wrong, poses="rays")
    relative = truth.world_to_camera @ torch.linalg.inv(truth.world_to_camera[:1])
    relative[:, :3, 3] *= 0.25
    assert torch.allclose(found.cameras.world_to_camera, relative, atol=1e-4)
    assert torch.allclose(found.cameras.intrinsics, truth.intrinsics, rtol=1e-4, atol=1e-3)
    asked: list = []
    model = tiny_network()
    model.head.rays.register_forward_hook(lambda *_: asked.append(1))
    DepthAnything3Estimator(model, Da3Options(SMALL, poses="rays")).estimate(images(2), cameras(2))
    assert not asked, "of known cameras nobody asks"
    DepthAnything3Estimator(model, Da3Options(SMALL, poses="rays")).estimate(images(2))
    assert asked


@pytest.mark.parametrize("two_view_baseline", [False, True])
def test_known_cameras_are_told_to_the_network_and_returned(two_view_baseline: bool) -> None:
    truth = cameras()
    found, (_, poses, intrinsics) = estimate(seen_by_the_network(), truth, two_view_baseline=two_view_baseline)
    assert found.cameras.world_to_camera.equal(truth.world_to_camera)
    assert found.cameras.intrinsics.equal(truth.intrinsics)
    assert torch.allclose(depth_of(found), torch.tensor(DEPTH), rtol=1e-4), "in the units of the known poses"
    assert torch.allclose(poses[0], torch.eye(4), atol=1e-6)
    assert torch.allclose(intrinsics[:, 0, 0], torch.tensor(70.0 * 56 / 80)), "of the image that the network sees"


@pytest.mark.parametrize("known", [[0, 3], [1, 2, 3]])
def test_partly_known_cameras(known: list[int]) -> None:
    truth = cameras()
    fixed = torch.zeros(4, dtype=torch.bool)
    fixed[known] = True
    wrong = replace(
        truth, world_to_camera=torch.where(fixed[:, None, None], truth.world_to_camera, torch.full((4, 4), torch.nan))
    )
    found, (_, poses, _) = estimate(seen_by_the_network(), wrong, fixed)
    assert poses is None, "the network is told all or none"
    assert found.cameras.world_to_camera[known].equal(truth.world_to_camera[known])
    quality = alignment_quality(found.cameras, truth)
    assert max(quality.rotation_degrees) < 0.01 and max(quality.translation_percent) < 0.01
    assert torch.allclose(depth_of(found), torch.tensor(DEPTH), rtol=1e-3)


def test_one_known_camera_is_the_world_and_gives_no_scale() -> None:
    truth, fixed = cameras(), torch.tensor([False, False, True, False])
    found, _ = estimate(seen_by_the_network(), truth, fixed)
    assert found.cameras.world_to_camera[2].equal(truth.world_to_camera[2])
    between = found.cameras.centers[0] - found.cameras.centers[2]
    assert torch.allclose(between, 0.25 * (truth.centers[0] - truth.centers[2]), atol=1e-4)
    assert torch.allclose(depth_of(found), torch.tensor(DEPTH * 0.25), rtol=1e-4)


def test_views_without_a_camera_are_named() -> None:
    output = seen_by_the_network()
    for place, field in ((1, 0.0), (3, 3.2)):  # a ReLU that is closed, more than half a turn
        output.encoding[place, 7] = field
    with pytest.raises(BadSceneError, match=r"^b\.jpg, d\.jpg: the network found no camera.*of 0, "):
        estimate(output, None, None, NAMES)
    found, _ = estimate(output, cameras(), None, NAMES)  # its cameras are not asked for
    assert len(found.cameras) == 4
    broken = seen_by_the_network()
    broken.depth[2, 5, 5] = torch.inf
    with pytest.raises(BadSceneError, match=r"^c\.jpg: the network gave values that are not finite"):
        estimate(broken, None, None, NAMES)


def test_which_pixels_are_valid() -> None:
    ramp = torch.linspace(1, 5, 4 * 42 * 56).view(4, 42, 56)
    found, _ = estimate(seen_by_the_network(confidence=ramp))
    assert found.point_map.valid.float().mean() == pytest.approx(0.6, abs=0.01), "the 40th percentile"
    assert (~found.point_map.valid[0]).all() and found.point_map.confidence[0].max() > 1.5, "confidence is kept"
    assert found.point_map.points[0].abs().max() == 0
    low = 1 + (ramp - 1) / 400  # all below 1.05: the best tenth is left
    found, _ = estimate(seen_by_the_network(confidence=low))
    assert found.point_map.valid.float().mean() == pytest.approx(0.1, abs=0.01)
    middle = torch.where(ramp < 4, 1.01, 2.0)  # three quarters of the pixels below 1.05
    found, _ = estimate(seen_by_the_network(confidence=middle))
    assert found.point_map.valid.float().mean() == pytest.approx(0.25, abs=0.02)
    found, _ = estimate(seen_by_the_network(confidence=ramp), min_confidence=1.0)
    assert found.point_map.valid.all()
    alone = torch.linspace(1, 5, 42 * 56).view(1, 42, 56)
    found, _ = estimate(seen_by_the_network(views=1, confidence=alone))
    assert found.point_map.valid.float().mean() == pytest.approx(1 - 0.05 / 4, abs=0.01), "no other view fills it"
    with pytest.raises(BadSceneError, match=r"no pixel of view 0.*a confidence of 9.*lower min_confidence"):
        estimate(seen_by_the_network(confidence=ramp), min_confidence=9.0)


def test_too_many_views_are_refused_with_numbers() -> None:
    model = tiny_network()
    each, head = backbone_bytes(model.config, 42, 56), head_bytes(model.config, 42, 56)
    room = Da3Inference(memory_gib=(3.5 * each + head) / GIB)
    estimator = DepthAnything3Estimator(model, Da3Options(SMALL, inference=room, min_confidence=1))
    with pytest.raises(BadSceneError, match=r"4 views of 42 x 56 .*memory_gib allows, enough for 3\. Take fewer views"):
        estimator.estimate(images(4))
    pieces: list = []
    hook = model.head.register_forward_hook(lambda _, args, out: pieces.append(len(args[0][0])))
    narrow = estimator.estimate(images(3))
    hook.remove()
    assert pieces == [1, 1, 1], "the head works in pieces that fit beside the backbone"
    whole = DepthAnything3Estimator(model, Da3Options(SMALL, min_confidence=1)).estimate(images(3))
    assert torch.allclose(narrow.point_map.points, whole.point_map.points, atol=1e-3)
    with (
        patch("reconx_pl.geometry.da3.inference.free_memory", lambda device: int(head)),
        pytest.raises(BadSceneError, match=r"are free, enough for 0"),
    ):
        estimator = DepthAnything3Estimator(model, Da3Options(SMALL))
        estimator.estimate(images(1))


def test_half_precision_is_near() -> None:
    model, pixels = tiny_network(), torch.rand(2, 3, 42, 56)
    exact, rough = (predict(model, pixels, options=Da3Inference(bf16=half)) for half in (False, True))
    assert not rough.depth.equal(exact.depth) and (rough.depth / exact.depth).log().abs().median() < 0.2


def test_arguments_must_go_together() -> None:
    estimator = DepthAnything3Estimator(tiny_network(), Da3Options(SMALL))
    given = cameras()
    with pytest.raises(ConfigurationError, match="4 cameras"):
        estimator.estimate(images(3), given)
    with pytest.raises(ConfigurationError, match="no cameras"):
        estimator.estimate(images(), fixed=torch.ones(4).bool())
    with pytest.raises(ConfigurationError, match="names"):
        estimator.estimate(images(), names=["a.jpg"])
    with pytest.raises(BadSceneError, match="no image"):
        estimator.estimate(images(0))
    given.intrinsics[1, 0, 0] = 0
    with pytest.raises(BadCameraError, match="known cameras: camera 1 has focal"):
        estimator.estimate(images(), given)
    for wrong in ({"min_confidence": 0.5}, {"points": 0}, {"poses": "guess"}):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            Da3Options(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="memory_gib"):
        Da3Inference(memory_gib=0)


def test_a_file_of_weights_is_the_estimator_that_it_holds(tmp_path: Path) -> None:
    network, options, path = tiny_network(), Da3Options(SMALL, points=50), tmp_path / "tiny.safetensors"
    save_weights(network, path)
    named = PretrainedDa3(path, "cpu", options)
    found, expected = named.estimate(images(2)), DepthAnything3Estimator(network, options).estimate(images(2))
    assert found.cloud.points.equal(expected.cloud.points) and len(found.cloud) == 50
    assert named.identity == PretrainedDa3(path, "cpu", options).identity
    assert named.identity != PretrainedDa3(path, "cpu", replace(options, points=51)).identity
    save_weights(tiny_network(seed=1), tmp_path / "other.safetensors")
    assert named.identity != PretrainedDa3(tmp_path / "other.safetensors", "cpu", options).identity
    with pytest.raises(MissingWeightsError, match=re.escape("reconx weights fetch da3-base` fetches them (0.54 GB")):
        PretrainedDa3(tmp_path / "none.safetensors").estimate(images(2))


def test_the_released_one_takes_all_that_the_estimator_takes() -> None:
    ours, theirs = (
        list(inspect.signature(kind.estimate).parameters) for kind in (PretrainedDa3, DepthAnything3Estimator)
    )
    assert ours == theirs == ["self", "images", "cameras", "fixed", "names", "progress"]
