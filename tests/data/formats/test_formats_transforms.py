"""transforms.json: OpenGL axes, scaled and distorted images, what it refuses."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from raw_scenes import HEIGHT, WIDTH, assert_same_cameras, edit_json, known_cameras, numbered, reference, write_images

from reconx_pl.data.formats.readers import read_scenes
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.data.formats.transforms import read_transforms
from reconx_pl.data.formats.undistort import Undistortion, distort
from reconx_pl.errors import BadCameraError, BadDataError


def write_transforms(folder: Path, extension: str = ".png", **extra: object) -> Path:
    cameras = known_cameras()
    write_images(folder / "images", numbered())
    frames = []
    for view, name in enumerate(numbered()):
        pose = cameras.camera_to_world[view].numpy().copy()
        pose[:, 1:3] *= -1  # OpenGL: y up, z towards the viewer
        focal = float(cameras.intrinsics[view, 0, 0])
        file = f"./images/{Path(name).stem}{extension}"
        frames.append({"file_path": file, "transform_matrix": pose.tolist(), "fl_x": focal, "fl_y": focal})
    content = {"w": WIDTH, "h": HEIGHT, "cx": WIDTH / 2, "cy": HEIGHT / 2, "frames": frames, **extra}
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("extension", [".png", ""])
def test_known_cameras_come_back(tmp_path: Path, extension: str) -> None:
    scene = read_transforms(write_transforms(tmp_path, extension))
    assert_same_cameras(scene.cameras, known_cameras())
    assert scene.load_image(0).shape == (HEIGHT, WIDTH, 3)


def test_frames_are_in_order_of_their_numbers(tmp_path: Path) -> None:
    write_transforms(tmp_path)
    for number in range(5):
        (tmp_path / f"images/{number:03d}.png").rename(tmp_path / f"images/r_{number + 8}.png")

    def shuffle(content: dict) -> None:
        for number, frame in enumerate(content["frames"]):
            frame["file_path"] = f"images/r_{number + 8}"
        content["frames"].reverse()

    edit_json(tmp_path / "transforms.json", shuffle)
    scene = read_transforms(tmp_path)
    assert [Path(name).stem for name in scene.frame_names] == ["r_8", "r_9", "r_10", "r_11", "r_12"]
    assert_same_cameras(scene.cameras, known_cameras())


def test_a_file_of_another_name_is_read_when_it_is_passed(tmp_path: Path) -> None:
    (write_transforms(tmp_path) / "transforms.json").rename(tmp_path / "transforms_train.json")
    (scene,) = read_scenes(tmp_path / "transforms_train.json")
    assert isinstance(scene, RawScene) and len(scene) == 5


def test_focal_length_from_the_field_of_view(tmp_path: Path) -> None:
    write_transforms(tmp_path)

    def blender(content: dict) -> None:
        for frame in content["frames"]:
            del frame["fl_x"], frame["fl_y"]
        for key in ("w", "h", "cx", "cy"):
            del content[key]
        content["camera_angle_x"] = 2 * np.arctan(WIDTH / 2 / 90.0)

    edit_json(tmp_path / "transforms.json", blender)
    intrinsics = read_transforms(tmp_path).cameras.intrinsics
    expected = torch.tensor([[90.0, 0, WIDTH / 2], [0, 90.0, HEIGHT / 2], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(intrinsics, expected.expand(5, 3, 3))


def test_reduced_images_beside_full_size_poses(tmp_path: Path) -> None:
    """DL3DV's layout: entries name images/, and only images_4 or images_8 was fetched."""
    write_transforms(tmp_path)
    for reduced in (2, 4):
        write_images(tmp_path / f"images_{reduced}", numbered(), HEIGHT // reduced, WIDTH // reduced)
    assert read_transforms(tmp_path).frames[0].width == WIDTH
    assert read_transforms(tmp_path, images="images_4").frames[0].width == WIDTH // 4
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    half = read_transforms(tmp_path)
    assert half.frames[0].width == WIDTH // 2
    torch.testing.assert_close(half.cameras.intrinsics[:, 0, 0], known_cameras().intrinsics[:, 0, 0] / 2)


def test_fox(shared_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """instant-ngp's file for 1080x1920 beside images of 360x640 that were undistorted by another tool."""
    source = shared_dir / "scenes/ingp_fox"
    expected = reference(source)
    (tmp_path / "images").mkdir()
    for frame in json.loads((source / "cameras.json").read_text())["frames"]:
        (tmp_path / "images" / frame["orig"]).symlink_to(source / frame["file"])
    (tmp_path / "transforms.json").symlink_to(source / "orig/transforms.json")

    with pytest.raises(BadDataError, match=r"images/0\d+\.jpg: this image is missing"):
        read_transforms(tmp_path, undistort=False)
    with caplog.at_level(logging.INFO):
        scene = read_transforms(tmp_path, undistort=False, missing="skip")
    assert "17 of 67 images are missing" in caplog.text
    assert "cameras are for 1080x1920, images are 360x640" in caplog.text
    assert len(scene) == len(expected) == 50
    torch.testing.assert_close(scene.cameras.world_to_camera, expected.cameras.world_to_camera, atol=1e-9, rtol=0)
    torch.testing.assert_close(scene.cameras.intrinsics[0, 0, 0], torch.tensor(1375.52 / 3, dtype=torch.float64))

    # that tool cut the border away as well: its pinhole camera is the one that our undistortion chooses, but for 0.2 %
    ours = read_transforms(tmp_path, missing="skip").cameras.intrinsics[0]
    theirs = expected.cameras.intrinsics[0]
    assert abs(ours[0, 0] / theirs[0, 0] - 1) < 2e-3 and abs(ours[1, 1] / theirs[1, 1] - 1) < 2e-3
    assert (ours[:2, 2] - theirs[:2, 2]).abs().max() < 0.1


@pytest.mark.parametrize("coefficients", [(-0.12, 0.02, 0.0, 0.0, 0.0), (0.08, -0.05, 1e-3, -2e-3, 0.0)])
def test_undistortion_finds_the_pinhole_image(coefficients: tuple[float, ...]) -> None:
    height, width = 90, 120
    intrinsics = np.array([[100.0, 0, 61.0], [0, 104.0, 44.0], [0, 0, 1]])

    def pattern(rays: np.ndarray) -> np.ndarray:  # [*, 2] normalised -> [*, 3]
        waves = [np.sin(9 * rays[..., 0]), np.sin(9 * rays[..., 1]), np.sin(5 * rays.sum(-1))]
        return 127 + 100 * np.stack(waves, axis=-1)

    def rays_of(matrix: np.ndarray) -> np.ndarray:
        columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        return np.stack([(columns - matrix[0, 2]) / matrix[0, 0], (rows - matrix[1, 2]) / matrix[1, 1]], axis=-1)

    seen = rays_of(intrinsics)
    rays = seen.copy()
    for _ in range(50):  # the lens inverted by fixed-point iteration
        rays = rays + seen - distort(rays, coefficients)
    assert np.abs(distort(rays, coefficients) - seen).max() < 1e-9
    plan = Undistortion.plan(intrinsics, coefficients, width, height, "test")
    assert plan is not None
    straight = plan.image(np.rint(pattern(rays)).astype(np.uint8))
    inner = (slice(1, -1), slice(1, -1))
    error = np.abs(straight - pattern(rays_of(plan.pinhole)))[inner].max()
    untouched = np.abs(pattern(rays) - pattern(rays_of(plan.pinhole)))[inner].max()
    assert error < 1.2 and untouched > 6 * error, (error, untouched)  # grey levels


def test_negligible_distortion_is_left_alone() -> None:
    intrinsics = np.array([[100.0, 0, 60.0], [0, 100.0, 45.0], [0, 0, 1]])
    assert Undistortion.plan(intrinsics, (1e-4, 0.0, 0.0, 0.0), 120, 90, "test") is None
    with pytest.raises(BadCameraError, match="too strong"):
        Undistortion.plan(intrinsics, (-6.0, 0.0, 0.0, 0.0), 120, 90, "test")


def test_depth_is_scaled_to_world_units(tmp_path: Path) -> None:
    write_transforms(tmp_path)
    Image.fromarray(np.full((HEIGHT, WIDTH), 2500, dtype=np.uint16)).save(tmp_path / "depth.png")
    edit_json(tmp_path / "transforms.json", lambda content: content["frames"][1].update(depth_file_path="depth.png"))
    scene = read_transforms(tmp_path)
    depth = scene.depth(1)
    assert scene.depth(0) is None and depth is not None
    assert depth.shape == (HEIGHT, WIDTH) and np.allclose(depth, 2.5)


def test_broken_json(tmp_path: Path) -> None:
    write_transforms(tmp_path)
    file = tmp_path / "transforms.json"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(BadDataError, match=r"transforms\.json: broken JSON"):
        read_transforms(tmp_path)


def test_another_aspect_names_both_sizes(tmp_path: Path) -> None:
    write_transforms(tmp_path, w=100, h=100)
    with pytest.raises(BadDataError, match=r"000\.png: the image is 64x48, its camera is for 100x100"):
        read_transforms(tmp_path)


def test_exif_orientation_is_not_applied_and_a_rotated_camera_is_explained(tmp_path: Path) -> None:
    write_transforms(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    names = [f"{number:03d}.jpg" for number in range(5)]
    for name in numbered():
        (tmp_path / "images" / name).unlink()
    write_images(tmp_path / "images", names)
    for name in names:
        with Image.open(tmp_path / "images" / name) as image:
            image.load()
            image.save(tmp_path / "images" / name, exif=exif)
    edit_json(
        tmp_path / "transforms.json",
        lambda content: [
            frame.update(file_path=f"images/{n}") for n, frame in zip(names, content["frames"], strict=True)
        ],
    )
    assert read_transforms(tmp_path).load_image(0).shape == (HEIGHT, WIDTH, 3)  # as stored, although marked as rotated
    edit_json(tmp_path / "transforms.json", lambda content: content.update(w=HEIGHT, h=WIDTH))
    with pytest.raises(BadDataError, match=r"000\.jpg.*EXIF orientation is 6"):
        read_transforms(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fl_x": 0.0, "fl_y": 0.0}, r"002\.png.*focal length \(0, 0\)"),
        ({"transform_matrix": [[float("nan")] * 4] * 4}, r"002\.png.*NaN"),
        ({"transform_matrix": [[2.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}, r"002\.png.*not a rigid"),
        ({"transform_matrix": np.zeros((4, 4)).tolist()}, r"002\.png.*cannot be inverted"),
        ({"camera_model": "OPENCV_FISHEYE"}, r"002\.png.*OPENCV_FISHEYE"),
        ({"fl_x": "wide"}, r"002\.png.*fl_x is 'wide'"),
        ({"k4": 0.1}, r"002\.png.*k4"),
    ],
)
def test_cameras_that_cannot_be_used(tmp_path: Path, change: dict, message: str) -> None:
    write_transforms(tmp_path)
    edit_json(tmp_path / "transforms.json", lambda content: content["frames"][2].update(change))
    with pytest.raises(BadCameraError, match=message):
        read_transforms(tmp_path)
