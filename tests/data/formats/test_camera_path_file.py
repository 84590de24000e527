"""Camera paths as files: three formats, one convention behind the reader, and what it refuses."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_scenes import HEIGHT, WIDTH, assert_same_cameras, edit_json, known_cameras, numbered, write_images
from scipy.spatial.transform import Rotation

from reconx_pl.data.formats.camera_path_file import read_camera_path, write_camera_path
from reconx_pl.data.formats.posed import read_posed
from reconx_pl.data.formats.transforms import read_transforms
from reconx_pl.errors import BadCameraError, BadDataError, ConfigurationError
from reconx_pl.geometry.cameras import project, resize_and_crop
from reconx_pl.types import Cameras

ANY = (BadCameraError, BadDataError)


def opengl(cameras: Cameras) -> list[np.ndarray]:
    """Camera-to-world, x right, y up, z backward."""
    pose = cameras.camera_to_world.numpy().copy()
    pose[:, :, 1:3] *= -1
    return list(pose)


def write_viewer_path(folder: Path, cameras: Cameras | None = None, **extra: object) -> Path:
    """As nerfstudio's viewer does; the vertical field of view is that of the cameras."""
    cameras = cameras or known_cameras()
    entries = [
        {
            "camera_to_world": pose.reshape(-1).tolist(),
            "fov": math.degrees(2 * math.atan(cameras.height / 2 / float(cameras.intrinsics[view, 1, 1]))),
            "aspect": 1.0,  # of the browser's window
        }
        for view, pose in enumerate(opengl(cameras))
    ]
    content = {
        "keyframes": [], "camera_type": "perspective", "render_height": cameras.height, "render_width": cameras.width,
        "fps": 24, "seconds": 4, "is_cycle": False, "crop": None, "camera_path": entries, **extra,
    }  # fmt: skip
    file = folder / "camera_path.json"
    file.write_text(json.dumps(content))
    return file


def write_transforms_path(folder: Path, cameras: Cameras | None = None, **extra: object) -> Path:
    cameras = cameras or known_cameras()
    entries = [
        {"transform_matrix": pose.tolist(), "fl_x": float(lens[0, 0]), "fl_y": float(lens[1, 1])}
        | {"cx": float(lens[0, 2]), "cy": float(lens[1, 2])}
        for pose, lens in zip(opengl(cameras), cameras.intrinsics, strict=True)
    ]
    file = folder / "transforms.json"
    file.write_text(json.dumps({"w": cameras.width, "h": cameras.height, "frames": entries, **extra}))
    return file


def write_own_path(folder: Path) -> Path:
    write_camera_path(known_cameras(), 24.0, folder / "cameras.json")
    return folder / "cameras.json"


WRITERS = [write_own_path, write_viewer_path, write_transforms_path]


@pytest.mark.parametrize("write", WRITERS)
def test_known_cameras_come_back(tmp_path: Path, write) -> None:
    assert_same_cameras(read_camera_path(write(tmp_path), HEIGHT, WIDTH), known_cameras())


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("size", [(96, 128), (30, 64), (48, 30), (100, 40)])
def test_intrinsics_follow_resize_and_crop(tmp_path: Path, write, size: tuple[int, int]) -> None:
    expected = resize_and_crop(known_cameras(), *size)[0]
    found = read_camera_path(write(tmp_path), *size)
    assert_same_cameras(found, expected)
    assert not torch.allclose(found.intrinsics, known_cameras().intrinsics)


def test_a_written_path_has_its_cameras_to_the_last_digits(tmp_path: Path) -> None:
    """A lens of no symmetry: fx is not fy, the principal point is off the middle."""
    cameras = known_cameras()
    cameras.intrinsics[:, :2] = torch.tensor([[70.0, 0.3, 30.0], [0.0, 75.0, 20.0]]).double()
    for dtype in (torch.float64, torch.float32):
        given = cameras.to(dtype=dtype)
        write_camera_path(given, 12.5, tmp_path / "path.json")
        found = read_camera_path(tmp_path / "path.json", HEIGHT, WIDTH)
        assert torch.equal(found.intrinsics, given.intrinsics.double())
        torch.testing.assert_close(found.world_to_camera, given.world_to_camera.double(), atol=1e-14, rtol=0)
    assert json.loads((tmp_path / "path.json").read_text())["fps"] == 12.5
    with pytest.raises(BadDataError, match="frame 0: lacks file"):
        read_posed(tmp_path / "path.json")  # a path is no scene


def test_a_path_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    cameras = known_cameras()
    with pytest.raises(ConfigurationError, match="positive frame rate, got 0"):
        write_camera_path(cameras, 0.0, tmp_path / "path.json")
    cameras.world_to_camera[2, 0, 3] = torch.nan
    with pytest.raises(BadCameraError, match="camera 2 has NaN"):
        write_camera_path(cameras, 8.0, tmp_path / "path.json")
    assert not list(tmp_path.iterdir())


def test_a_point_above_is_in_the_upper_half(tmp_path: Path) -> None:
    """By hand: at the origin of OpenGL's axes one sees -z, y is up; 90 degrees high, in an image twice as wide."""
    pose = np.eye(4)
    content = {"render_height": 100, "render_width": 200, "camera_type": "Perspective"}
    content["camera_path"] = [{"camera_to_world": pose.reshape(-1).tolist(), "fov": 90.0, "aspect": 2.0}] * 2
    (tmp_path / "path.json").write_text(json.dumps(content))
    cameras = read_camera_path(tmp_path / "path.json", 100, 200)
    pixels, depth = project(torch.tensor([[1.0, 0.5, -1.0]]).double(), cameras)
    torch.testing.assert_close(depth, torch.ones(2, 1).double())
    torch.testing.assert_close(pixels[0, 0], torch.tensor([150.0, 25.0]).double())


def test_what_a_reconstruction_writes_is_read_by_our_keys(tmp_path: Path) -> None:
    """Its cameras.json has the keys of nerfstudio beside ours."""
    file = write_transforms_path(tmp_path, w=3 * WIDTH, h=3 * HEIGHT)
    theirs = json.loads(file.read_text())
    ours = json.loads(write_own_path(tmp_path).read_text())
    frames = [one | other for one, other in zip(theirs["frames"], ours["frames"], strict=True)]
    for frame in frames:
        frame["transform_matrix"] = np.eye(4).tolist()
    (tmp_path / "both.json").write_text(json.dumps({**theirs, "frames": frames}))
    assert_same_cameras(read_camera_path(tmp_path / "both.json", HEIGHT, WIDTH), known_cameras())


def test_frames_of_transforms_are_in_order_of_their_numbers_where_they_have_names(tmp_path: Path) -> None:
    cameras, order = known_cameras(), [4, 0, 3, 1, 2]
    file = write_transforms_path(tmp_path, cameras[order])
    assert_same_cameras(read_camera_path(file, HEIGHT, WIDTH), cameras[order])
    edit_json(
        file,
        lambda content: [
            entry.update(file_path=f"./images/r_{8 + view}")
            for view, entry in zip(order, content["frames"], strict=True)
        ],
    )
    assert_same_cameras(read_camera_path(file, HEIGHT, WIDTH), cameras)


def test_blender_gives_an_angle_and_names_without_extension(tmp_path: Path) -> None:
    """The angle is the horizontal one: twice as wide an image has twice the focal length in pixels."""
    pose = np.eye(4).tolist()
    frames = [{"file_path": f"./train/r_{number}", "transform_matrix": pose} for number in range(2)]
    file = tmp_path / "transforms_train.json"
    file.write_text(json.dumps({"camera_angle_x": 2 * math.atan(0.4), "frames": frames}))
    with pytest.raises(BadDataError, match="frame 0: lacks w and h"):
        read_camera_path(file, 50, 100)
    write_images(tmp_path / "train", ["r_0.png", "r_1.png"], 50, 100)
    lens = torch.tensor([[125.0, 0, 50], [0, 125, 25], [0, 0, 1]]).double()
    torch.testing.assert_close(read_camera_path(file, 50, 100).intrinsics, lens.expand(2, 3, 3))


@pytest.mark.parametrize("lens", [{}, {"k1": -0.12, "k2": 0.02, "p1": 1e-3}])
def test_a_scene_and_its_file_as_a_path_have_the_same_cameras(tmp_path: Path, lens: dict) -> None:
    """Distortion, a transform that was applied, an image that gives the size: all as the reader of scenes has them."""
    applied = [[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 5]]
    file = write_transforms_path(tmp_path, applied_transform=applied, **lens)
    write_images(tmp_path / "images", numbered())

    def named(content: dict) -> None:
        del content["w"], content["h"]
        for name, entry in zip(numbered(), content["frames"], strict=True):
            entry["file_path"] = f"images/{name}"

    edit_json(file, named)
    scene = read_transforms(tmp_path).cameras
    assert_same_cameras(read_camera_path(file, HEIGHT, WIDTH), scene)
    assert torch.allclose(scene.intrinsics[:, 0, 0], known_cameras().intrinsics[:, 0, 0]) is not bool(lens)
    (tmp_path / "images/003.png").unlink()
    with pytest.raises(BadDataError, match=r"frame 3: lacks w and h, and there is no image .*003\.png"):
        read_camera_path(file, HEIGHT, WIDTH)


def test_the_world_of_the_viewer_is_left_where_it_is_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """nerfstudio turned, centred and scaled the poses of transforms.json, in which an applied transform was already."""
    cameras = known_cameras()
    turn, applied = np.eye(4), np.eye(4)
    turn[:3, :3], turn[:3, 3] = Rotation.from_rotvec([0.3, -1.0, 0.4]).as_matrix(), [1.0, -2.0, 0.5]
    applied[:3, :3] = [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    moved = torch.from_numpy(turn) @ cameras.camera_to_world
    moved[:, :3, 3] *= 0.25
    viewer = Cameras(torch.linalg.inv(moved), cameras.intrinsics, HEIGHT, WIDTH)
    file = write_viewer_path(tmp_path, viewer)
    with caplog.at_level(logging.INFO):
        assert_same_cameras(read_camera_path(file, HEIGHT, WIDTH), viewer)
    assert "put dataparser_transforms.json of its training run beside this file" in caplog.text

    world = tmp_path / "dataparser_transforms.json"
    world.write_text(json.dumps({"transform": turn[:3].tolist(), "scale": 0.25}))
    assert_same_cameras(read_camera_path(file, HEIGHT, WIDTH), cameras)
    world.write_text(json.dumps({"transform": (turn @ applied)[:3].tolist(), "scale": 0.75}))
    write_transforms_path(tmp_path, applied_transform=applied[:3].tolist(), applied_scale=3.0)
    assert_same_cameras(read_camera_path(file, HEIGHT, WIDTH), cameras)
    for broken, message in (({"scale": 1.0}, "lacks transform"), ({"transform": turn.tolist(), "scale": 0}, "scale")):
        world.write_text(json.dumps(broken))
        with pytest.raises(ANY, match=rf"dataparser_transforms\.json: {message}"):
            read_camera_path(file, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# a list", "broken JSON"),
        ("[1, 2]", "not an object"),
        ("{}", r"no list of cameras; a camera path is our cameras\.json .* or transforms\.json"),
        ('{"frames": []}', "no list of cameras"),
        ('{"frames": [{"file": "a.png"}, 3]}', "its frames have no camera; a camera path is"),
        ('{"camera_path": [], "render_height": 4, "render_width": 4}', "at least 2 cameras, this one has 0"),
        ('{"camera_path": [1, 2]}', "lacks render_height"),
        ('{"camera_path": [1, 2], "render_height": 4, "render_width": 4}', "camera 0: lacks camera_to_world"),
        ('{"frames": [{"K": 1}]}', "frame 0: lacks c2w, h, w"),
    ],
)
def test_what_is_no_path(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "path.json"
    file.write_text(text)
    with pytest.raises(BadDataError, match=rf"path\.json.*{message}"):
        read_camera_path(file, HEIGHT, WIDTH)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match=r"none\.json: no such file"):
        read_camera_path(tmp_path / "none.json", HEIGHT, WIDTH)
    torch.save({"frames": []}, tmp_path / "path.pt")
    with pytest.raises(BadDataError, match=r"path\.pt: broken JSON"):
        read_camera_path(tmp_path / "path.pt", HEIGHT, WIDTH)


@pytest.mark.parametrize("write", WRITERS)
def test_one_camera_is_no_path(tmp_path: Path, write) -> None:
    file = write(tmp_path)

    def first(content: dict) -> None:
        key = "camera_path" if "camera_path" in content else "frames"
        content[key] = content[key][:1]

    edit_json(file, first)
    with pytest.raises(BadDataError, match="at least 2 cameras, this one has 1"):
        read_camera_path(file, HEIGHT, WIDTH)


def matrix(kind: str) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, 3] = [1.0, 2.0, 3.0]
    if kind == "scaled":
        pose[:3, :3] *= 2
    elif kind == "mirrored":
        pose[0, 0] = -1
    elif kind == "singular":
        pose[1, 1] = 0
    elif kind == "NaN":
        pose[1, 3] = np.nan
    elif kind == "by columns":
        pose = pose.T
    return pose


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("scaled", "not a rigid transform"),
        ("mirrored", "not a rigid transform"),
        ("singular", "cannot be inverted"),
        ("NaN", "NaN or infinite"),
        ("by columns", "write the matrix row by row"),
    ],
)
def test_poses_that_cannot_be_used(tmp_path: Path, write, kind: str, message: str) -> None:
    file, pose = write(tmp_path), matrix(kind)

    def change(content: dict) -> None:
        if "camera_path" in content:
            content["camera_path"][3]["camera_to_world"] = pose.reshape(-1).tolist()
        else:
            content["frames"][3] |= {"c2w" if "c2w" in content["frames"][3] else "transform_matrix": pose.tolist()}

    edit_json(file, change)
    with pytest.raises(BadCameraError, match=rf"{file.name}, (frame|camera) 3.*{message}"):
        read_camera_path(file, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("write", "whole", "part", "message"),
    [
        (write_viewer_path, {"camera_type": "fisheye"}, {}, "camera_type is fisheye; save .* perspective"),
        (write_viewer_path, {"camera_type": "equirectangular"}, {}, "camera_type is equirectangular"),
        (write_viewer_path, {"render_height": float("nan")}, {}, "render_height is nan"),
        (write_viewer_path, {}, {"fov": 180.0}, "camera 1: a field of view of 180"),
        (write_viewer_path, {}, {"fov": float("nan")}, "camera 1: fov is nan"),
        (write_viewer_path, {}, {"fov": None}, "camera 1: fov is None, not a number"),
        (write_viewer_path, {}, {"camera_to_world": [1.0] * 12}, r"camera 1: the pose has shape \(12,\)"),
        (write_transforms_path, {"camera_model": "OPENCV_FISHEYE"}, {}, "OPENCV_FISHEYE"),
        (write_transforms_path, {"w": float("inf")}, {}, "frame 0: its w or h is not finite"),
        (write_transforms_path, {}, {"fl_x": 0.0, "k1": 0.1}, r"frame 1: .*focal length \(0, "),
        (write_transforms_path, {}, {"transform_matrix": "left"}, "frame 1: the pose is not a matrix"),
        (write_own_path, {}, {"K": [[float("nan")] * 3] * 3}, "frame 1: .*NaN"),
        (write_own_path, {}, {"w": float("inf")}, "frame 1: w, h or K are not numbers"),
        (write_own_path, {}, {"h": 0}, "frame 1: its image is 64 x 0 pixels"),
    ],
)
def test_lenses_that_cannot_be_used(tmp_path: Path, write, whole: dict, part: dict, message: str) -> None:
    file = write(tmp_path)

    def change(content: dict) -> None:
        content.update(whole)
        content["camera_path" if "camera_path" in content else "frames"][1].update(part)

    edit_json(file, change)
    with pytest.raises(BadCameraError, match=rf"{file.name}.*{message}"):
        read_camera_path(file, HEIGHT, WIDTH)
