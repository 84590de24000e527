"""Frames along any path: how it is cut into clips, and what a stand-in view generator is shown of each."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reconx_pl.data.formats.camera_path_file import write_camera_path
from reconx_pl.data.procedural import procedural_clip
from reconx_pl.errors import BadSceneError, ConfigurationError
from reconx_pl.geometry.cameras import interpolate_cameras
from reconx_pl.geometry.rendering.views import DepthViews
from reconx_pl.reconstruction.camera_path import CameraPath, PathConfig, path_of
from reconx_pl.reconstruction.input_views import InputViews
from reconx_pl.reconstruction.path_sequence import generate_path, plan_path
from reconx_pl.types import Cameras, Clip

T, SIDE = 5, 16
CPU = torch.device("cpu")

# --- the plan


def test_a_plan_covers_every_frame_once_from_frames_that_are_there() -> None:
    """All paths of up to 12 frames with up to three more known ones, and all lengths of clips up to 6."""
    cases = 0
    for total, frames in itertools.product(range(1, 13), range(2, 7)):
        for count in range(3):
            for more in itertools.combinations(range(1, total), count):
                known = {0, *more}
                there, cases = set(known), cases + 1
                for window in plan_path(total, known, frames):
                    assert window.start in there, (total, known, frames)
                    if window.end_condition_frame:
                        end = window.start + window.end_condition_frame
                        assert end in there and window.stop == end - 1 and window.end_condition_frame < frames
                    new = range(window.start + 1, window.stop + 1)
                    assert new and there.isdisjoint(new) and window.stop - window.start < frames
                    there.update(new)
                assert there == set(range(total)), (total, known, frames)
    assert cases > 1000


def test_views_that_are_a_clip_apart_take_one_clip_each() -> None:
    windows = plan_path(9, {0, 4, 8}, 5)
    assert [(w.start, w.end_condition_frame, w.stop) for w in windows] == [(0, 4, 3), (4, 4, 7)]


def test_what_is_farther_than_a_clip_is_reached_from_what_was_generated() -> None:
    windows = plan_path(12, {0, 9}, 5)
    # two whole clips, then the one that ends in the known view, then to the end of the path
    assert [(w.start, w.end_condition_frame, w.stop) for w in windows] == [(0, 0, 4), (4, 0, 8), (9, 0, 11)]
    assert [(w.start, w.end_condition_frame, w.stop) for w in plan_path(8, {0, 6}, 5)][1] == (4, 2, 5)


def test_neighbours_take_no_clip() -> None:
    assert plan_path(4, {0, 1, 2, 3}, 5) == () and plan_path(1, {0}, 5) == ()


# --- frames


class Camera:
    """Sees where it is: a frame's red is the x of its camera. Remembers what it was shown, and its draws."""

    def __init__(self) -> None:
        self.shown: list[tuple[Clip, int, DepthViews]] = []
        self.draws: list[float] = []

    @staticmethod
    def frames(cameras: Cameras) -> Tensor:
        picture = torch.zeros(len(cameras), 3, SIDE, SIDE)
        picture[:, 0] = cameras.centers[:, 0, None, None].float().clamp(0, 1)
        return picture

    def generate(
        self, clip: Clip, generator: torch.Generator, *, end_condition_frame: int, views: DepthViews
    ) -> Tensor:
        self.shown.append((clip, end_condition_frame, views))
        self.draws.append(float(torch.rand((), generator=generator)))
        return self.frames(clip.cameras)


def line(*places: float) -> Cameras:
    """Cameras beside each other, at these x."""
    pose = torch.eye(4).repeat(len(places), 1, 1)
    pose[:, 0, 3] = -torch.tensor(places)
    intrinsics = torch.tensor([[20.0, 0, 8], [0, 20, 8], [0, 0, 1]]).repeat(len(places), 1, 1)
    return Cameras(pose, intrinsics, SIDE, SIDE)


def inputs_of(*places: float, **more: Any) -> InputViews:
    """Photographs that are no multiples of 1 / 255, as far as they are from those of ``Camera``."""
    draw = torch.Generator().manual_seed(0)
    count = len(places)
    given: dict[str, Any] = {
        "key": "scene",
        "images": torch.rand(count, 3, SIDE, SIDE, generator=draw),
        "cameras": line(*places),
        "cloud": None,
        "depth": torch.full((count, SIDE, SIDE), 3.0),
        "caption": "a line",
    }
    return InputViews(**given | more)


def path_at(places: list[float], views: list[int | None], closed: bool = False) -> CameraPath:
    return CameraPath(line(*places), tuple(views), closed)


def run(inputs: InputViews, path: CameraPath, frames: int = T, **options: Any) -> tuple[Any, Camera]:
    camera = Camera()
    return generate_path(inputs, path, camera, frames, 7, CPU, **options), camera


def stored(frames: Tensor) -> Tensor:
    return (frames * 255).round() / 255


def test_a_path_through_views_has_them_to_the_bit_and_the_rest_from_the_generator() -> None:
    inputs = inputs_of(0.1, 0.5, 0.8)
    xs = torch.linspace(0.1, 0.8, 11).tolist()
    xs[4] = 0.5
    path = path_at(xs, [0, 4, 10])
    done: list[tuple[str, int, int | None]] = []
    made, camera = run(inputs, path, progress=lambda *call: done.append(call))
    assert made.input_places == [0, 4, 10] and made.posed
    assert torch.equal(made.images[[0, 4, 10]], inputs.images)
    rest = [frame for frame in range(11) if frame not in (0, 4, 10)]
    torch.testing.assert_close(made.images[rest], stored(Camera.frames(path.cameras))[rest])
    assert torch.equal(made.cameras.world_to_camera, path.cameras.world_to_camera)
    # from 0 to 4, from 4 as far as a clip goes, from 8 to 10
    assert [(clip.frame_indices[0], end) for clip, end, _ in camera.shown] == [(0, 4), (4, 0), (8, 2)]
    assert done == [("generating along the path", number, 3) for number in (1, 2, 3)]


def test_a_clip_is_blind_but_for_what_is_there() -> None:
    inputs = inputs_of(0.1, 0.8, indices=(3, 9))
    path = path_at(torch.linspace(0.1, 0.8, 8).tolist(), [0, 7])
    made, camera = run(inputs, path)
    (first, end, views), (second, last, _) = camera.shown
    assert (end, last) == (0, 3)
    assert torch.equal(views.images, inputs.images) and torch.equal(views.depth, inputs.depth)
    assert torch.equal(views.cameras.world_to_camera, inputs.cameras.world_to_camera)
    assert torch.equal(first.frames[0], (inputs.images[0] * 255).round().to(torch.uint8))
    assert int(first.frames[1:].sum()) == 0 and first.depth is None
    assert torch.equal(first.cameras.world_to_camera, path.cameras.world_to_camera[:5])
    # the next one begins with a frame that was generated, and knows the photograph it goes to
    assert torch.equal(second.frames[0], (made.images[4] * 255).round().to(torch.uint8))
    assert torch.equal(second.frames[3], (inputs.images[1] * 255).round().to(torch.uint8))
    assert int(second.frames[[1, 2, 4]].sum()) == 0
    # beyond the end of the path the camera stands still
    assert second.frame_indices == (4, 5, 6, 7, 7)
    assert torch.equal(second.cameras.world_to_camera[4], path.cameras.world_to_camera[7])
    assert first.caption == "a line" and (first.key, second.key) == ("scene+path-0", "scene+path-1")
    assert camera.draws[0] != camera.draws[1]


def test_noise_follows_from_seed_and_clip_alone() -> None:
    inputs, path = inputs_of(0.1, 0.8), path_at(torch.linspace(0.1, 0.8, 8).tolist(), [0, 7])
    _, first = run(inputs, path)
    _, again = run(inputs, path)
    assert first.draws == again.draws
    other = Camera()
    generate_path(inputs, path, other, T, 8, CPU)
    assert other.draws != first.draws
    _, elsewhere = run(replace(inputs, key="another"), path)
    assert elsewhere.draws != first.draws


def test_the_way_to_a_path_is_generated_and_thrown_away() -> None:
    inputs = inputs_of(0.1, 0.9)
    path = path_at([0.6, 0.65, 0.7], [None, None])
    made, camera = run(inputs, path)
    assert len(made.images) == 3 + 2 and made.input_places == [3, 4]
    torch.testing.assert_close(made.images[:3], stored(Camera.frames(path.cameras)))
    assert torch.equal(made.images[3:], inputs.images)
    assert torch.equal(made.cameras.world_to_camera[:3], path.cameras.world_to_camera)
    assert torch.equal(made.cameras.world_to_camera[3:], inputs.cameras.world_to_camera)
    # it starts from the nearer of the two photographs, and ends where the path begins
    clip, end, _ = camera.shown[0]
    assert end == 0 and torch.equal(clip.frames[0], (inputs.images[1] * 255).round().to(torch.uint8))
    assert clip.cameras.centers[:, 0].tolist() == pytest.approx([0.9, 0.825, 0.75, 0.675, 0.6])


def test_a_path_that_meets_a_view_later() -> None:
    inputs = inputs_of(0.1, 0.9)
    path = path_at([0.3, 0.6, 0.9, 0.95], [None, 2])
    made, camera = run(inputs, path)
    assert made.input_places == [4, 2] and len(made.images) == 5
    assert torch.equal(made.images[2], inputs.images[1]) and torch.equal(made.images[4], inputs.images[0])
    assert torch.equal(made.cameras.world_to_camera[4], inputs.cameras.world_to_camera[0])
    # the photograph is known where the second clip goes to it
    assert [(clip.frame_indices[0], end) for clip, end, _ in camera.shown] == [(0, 0), (4, 2), (6, 0)]
    assert torch.equal(camera.shown[1][0].frames[2], (inputs.images[1] * 255).round().to(torch.uint8))


def test_a_closed_path_ends_where_it_began() -> None:
    inputs = inputs_of(0.1, 0.5)
    path = path_at([0.1, 0.2, 0.3, 0.4, 0.5, 0.4, 0.3, 0.2], [0, 4], closed=True)
    made, camera = run(inputs, path)
    assert len(made.images) == 8 and made.input_places == [0, 4]
    assert torch.equal(made.images[[0, 4]], inputs.images)
    clip, end, _ = camera.shown[-1]
    assert end == 4 and torch.equal(clip.frames[4], (inputs.images[0] * 255).round().to(torch.uint8))
    assert torch.equal(clip.cameras.world_to_camera[4], inputs.cameras.world_to_camera[0])
    open_path, shown = run(inputs, replace(path, closed=False))
    assert len(open_path.images) == 8 and shown.shown[-1][1] == 0


def test_one_photograph_and_a_file(tmp_path: Path) -> None:
    inputs = inputs_of(0.1)
    file = tmp_path / "path.json"
    write_camera_path(line(0.1, 0.2, 0.3, 0.4, 0.5, 0.6), 8.0, file)
    path = path_of(PathConfig.parse(str(file)), inputs.cameras, T)
    assert path.places == (0,) and len(path) == 6
    made, camera = run(inputs, path)
    assert made.input_places == [0] and torch.equal(made.images[:1], inputs.images)
    torch.testing.assert_close(made.images[1:], stored(Camera.frames(path.cameras))[1:])
    assert [end for _, end, _ in camera.shown] == [0, 0] and len(camera.shown[0][2]) == 1
    # and one that it does not pass through
    write_camera_path(line(0.3, 0.4), 8.0, file)
    path = path_of(PathConfig.parse(str(file)), inputs.cameras, T)
    assert path.places == (None,)
    made, _ = run(inputs, path)
    assert made.input_places == [2] and torch.equal(made.images[2], inputs.images[0])
    with pytest.raises(ConfigurationError, match="the camera path interpolated needs 2 views .* got 1 views"):
        path_of(PathConfig(), inputs.cameras, T)


def test_clips_of_two_frames_and_a_path_of_one() -> None:
    inputs = inputs_of(0.1, 0.9)
    made, camera = run(inputs, path_at([0.1, 0.2, 0.3], [0, None]), frames=2)
    assert [(clip.frame_indices, end) for clip, end, _ in camera.shown] == [((0, 1), 0), ((1, 2), 0)]
    assert made.input_places == [0, 3]
    made, camera = run(inputs, path_at([0.1], [0, None]))
    assert not camera.shown and torch.equal(made.images, inputs.images)


def test_clips_that_are_kept_are_not_generated_again() -> None:
    inputs, path = inputs_of(0.1, 0.8), path_at(torch.linspace(0.1, 0.8, 8).tolist(), [0, 7])
    kept: dict[int, Tensor] = {}

    def keep(number: int, make: Callable[[], Tensor]) -> Tensor:
        if number not in kept:
            kept[number] = make()
        return kept[number]

    first, camera = run(inputs, path, keep=keep)
    assert len(camera.shown) == 2 and kept[0].dtype == torch.uint8 and kept[0].shape == (T, 3, SIDE, SIDE)
    again, idle = run(inputs, path, keep=keep)
    assert not idle.shown and torch.equal(first.images, again.images)


def test_the_cloud_of_the_inputs_comes_along() -> None:
    scene = procedural_clip(1, 2, (SIDE, SIDE), "room", points=50)
    inputs = inputs_of(0.1, 0.8, cloud=scene.cloud)
    _, camera = run(inputs, path_at([0.1, 0.4, 0.8], [0, 2]))
    assert scene.cloud is not None and camera.shown[0][0].cloud is not None
    assert torch.equal(camera.shown[0][0].cloud.points, scene.cloud.points)


class Broken(Camera):
    def generate(self, clip: Clip, generator: torch.Generator, **options: Any) -> Tensor:
        return torch.full(clip.frames.shape, torch.nan)


def test_what_is_refused() -> None:
    inputs, path = inputs_of(0.1, 0.8), path_at([0.1, 0.4, 0.8], [0, 2])
    with pytest.raises(BadSceneError, match="scene: the input views have no depth"):
        run(replace(inputs, depth=None), path)
    with pytest.raises(ConfigurationError, match="at least 2 frames, got 1"):
        run(inputs, path, frames=1)
    with pytest.raises(BadSceneError, match=r"clip scene\+path-0: the generated frames have NaN"):
        generate_path(inputs, path, Broken(), T, 7, CPU)


def test_cameras_on_the_way_are_between_those_of_view_and_path() -> None:
    inputs, path = inputs_of(0.1), path_at([0.5, 0.6], [None])
    turned = path.cameras.world_to_camera.clone()
    angle = torch.tensor(0.4)
    turned[:, 0, 0], turned[:, 0, 2], turned[:, 2, 0], turned[:, 2, 2] = (
        angle.cos(),
        angle.sin(),
        -angle.sin(),
        angle.cos(),
    )
    path = replace(path, cameras=replace(path.cameras, world_to_camera=turned))
    _, camera = run(inputs, path)
    ends = replace(
        path.cameras,
        world_to_camera=torch.cat([inputs.cameras.world_to_camera, turned[:1]]),
        intrinsics=path.cameras.intrinsics,
    )
    expected = interpolate_cameras(ends, torch.linspace(0, 1, T, dtype=torch.float64))
    torch.testing.assert_close(camera.shown[0][0].cameras.world_to_camera, expected.world_to_camera)
