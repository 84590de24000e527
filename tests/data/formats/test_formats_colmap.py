"""COLMAP: a real binary model against its own observations, text against binary, damaged files."""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_scenes import HEIGHT, WIDTH, assert_same_cameras, known_cameras, numbered, write_images
from scipy.spatial.transform import Rotation

from reconx_pl.data.formats.colmap import ColmapModel, read_colmap, read_model
from reconx_pl.data.formats.undistort import distort
from reconx_pl.data.packing.clip_sampling import scene_clip
from reconx_pl.errors import BadCameraError, BadDataError

BANANA = "scenes/banana/orig/colmap_sparse0"


def write_text(folder: Path, model: ColmapModel) -> None:
    """COLMAP's text format of a model; tracks are rebuilt from the observations."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["# Camera list"]
    for camera_id, camera in model.cameras.items():
        numbers = " ".join(repr(float(value)) for value in camera.params)
        lines.append(f"{camera_id} {camera.model} {camera.width} {camera.height} {numbers}")
    (folder / "cameras.txt").write_text("\n".join(lines) + "\n")
    lines, tracks = ["# Image list"], {}
    for image_id, image in model.images.items():
        pose = " ".join(repr(float(value)) for value in (*image.quaternion, *image.translation))
        lines.append(f"{image_id} {pose} {image.camera_id} {image.name}")
        observed = zip(image.observations.tolist(), image.point_ids.tolist(), strict=True)
        lines.append(" ".join(f"{x!r} {y!r} {point}" for (x, y), point in observed))
        for number, point in enumerate(image.point_ids.tolist()):
            tracks.setdefault(point, []).append(f"{image_id} {number}")
    (folder / "images.txt").write_text("\n".join(lines) + "\n")
    if model.points is None:
        return
    lines = ["# Points"]
    points = model.points
    for row, point in enumerate(points.ids.tolist()):
        x, y, z = points.xyz[row].tolist()
        r, g, b = points.rgb[row].tolist()
        lines.append(f"{point} {x!r} {y!r} {z!r} {r} {g} {b} {float(points.error[row])!r} {' '.join(tracks[point])}")
    (folder / "points3D.txt").write_text("\n".join(lines) + "\n")


def write_project(folder: Path, camera: str = f"PINHOLE {WIDTH} {HEIGHT} 70 71 32 24", model: str = "sparse/0") -> Path:
    """A text model of the known cameras (one lens) with images."""
    cameras = known_cameras()
    write_images(folder / "images", numbered())
    (folder / model).mkdir(parents=True)
    (folder / model / "cameras.txt").write_text(f"# comment\n1 {camera}\n")
    lines = []
    for view, name in enumerate(numbered()):
        x, y, z, w = Rotation.from_matrix(cameras.world_to_camera[view, :3, :3].numpy()).as_quat()
        translation = " ".join(str(value) for value in cameras.world_to_camera[view, :3, 3].tolist())
        lines += [f"{view + 1} {w} {x} {y} {z} {translation} 1 {name}", "" if view else "10 20 -1 30 40 7"]
    (folder / model / "images.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_a_real_model_reprojects_onto_its_observations(shared_dir: Path) -> None:
    model = read_model(shared_dir / BANANA)
    assert model.points is not None and len(model.images) == 14 and len(model.points.ids) == 6915
    row = {point: index for index, point in enumerate(model.points.ids.tolist())}
    errors, seen = [], np.zeros(len(row), dtype=int)
    for image in model.images.values():
        camera = model.cameras[image.camera_id]
        known = image.point_ids >= 0
        rows = [row[point] for point in image.point_ids[known].tolist()]
        np.add.at(seen, rows, 1)
        pose = image.world_to_camera
        local = model.points.xyz[rows] @ pose[:3, :3].T + pose[:3, 3]
        assert (local[:, 2] > 0).all()
        rays = distort(local[:, :2] / local[:, 2:], camera.distortion or (0, 0, 0, 0))
        pixels = rays * camera.intrinsics[[0, 1], [0, 1]] + camera.intrinsics[:2, 2]
        errors.append(np.linalg.norm(pixels - image.observations[known], axis=1))
    assert np.concatenate(errors).mean() < 1.0
    assert (seen == model.points.track).all()
    # COLMAP stores the mean error of each point: ours is the same number
    assert abs(np.concatenate(errors).mean() - np.average(model.points.error, weights=model.points.track)) < 1e-3


def test_text_equals_binary(shared_dir: Path, tmp_path: Path) -> None:
    binary = read_model(shared_dir / BANANA)
    write_text(tmp_path, binary)
    text = read_model(tmp_path)
    assert text.cameras == binary.cameras and text.images.keys() == binary.images.keys()
    for image_id, image in binary.images.items():
        assert text.images[image_id].name == image.name
        np.testing.assert_array_equal(text.images[image_id].world_to_camera, image.world_to_camera)
        np.testing.assert_array_equal(text.images[image_id].observations, image.observations)
        np.testing.assert_array_equal(text.images[image_id].point_ids, image.point_ids)
    assert text.points is not None and binary.points is not None
    for name in ("ids", "xyz", "rgb", "error", "track"):
        np.testing.assert_array_equal(getattr(text.points, name), getattr(binary.points, name))


def test_images_scaled_against_the_model(shared_dir: Path, tmp_path: Path) -> None:
    """Banana's model is of 1600x1064 originals; here a quarter of that, undistorted when they load, with the cloud."""
    model = read_model(shared_dir / BANANA)
    write_images(tmp_path / "images", [image.name for image in model.images.values()], 266, 400)
    (tmp_path / "sparse").mkdir()
    (tmp_path / "sparse/0").symlink_to(shared_dir / BANANA)
    scene = read_colmap(tmp_path)
    focal = model.cameras[1].params[0] / 4
    assert len(scene) == 14 and abs(scene.cameras.intrinsics[0, 0, 0].item() / focal - 1) < 0.002
    assert scene.cloud is not None and len(scene.cloud) == 6915
    assert scene.cloud.confidence.min() >= 1 and scene.cloud.colors.max() <= 1
    assert read_colmap(tmp_path, undistort=False).cameras.intrinsics[0, 0, 0].item() == pytest.approx(focal)


@pytest.mark.parametrize("model", ["sparse/0", "sparse", "colmap/sparse/0"])
def test_known_cameras_come_back(tmp_path: Path, model: str) -> None:
    scene = read_colmap(write_project(tmp_path, model=model))
    expected = known_cameras()
    intrinsics = torch.tensor([[70.0, 0, 32], [0, 71, 24], [0, 0, 1]], dtype=torch.float64).expand(5, 3, 3)
    assert_same_cameras(scene.cameras, type(expected)(expected.world_to_camera, intrinsics, HEIGHT, WIDTH))
    assert scene.cloud is None and scene.frame_ids == (1, 2, 3, 4, 5)
    inside = read_colmap(tmp_path / model)  # the model folder itself finds the images above it
    assert inside.frame_names == scene.frame_names


@pytest.mark.parametrize(
    ("camera", "intrinsics", "distortion"),
    [
        ("SIMPLE_PINHOLE 64 48 70 32 24", (70, 70, 32, 24), None),
        ("SIMPLE_RADIAL 64 48 70 32 24 0.1", (70, 70, 32, 24), (0.1, 0, 0, 0)),
        ("RADIAL 64 48 70 32 24 0.1 0.2", (70, 70, 32, 24), (0.1, 0.2, 0, 0)),
        ("OPENCV 64 48 70 71 32 24 0.1 0.2 0.01 0.02", (70, 71, 32, 24), (0.1, 0.2, 0.01, 0.02)),
    ],
)
def test_camera_models(tmp_path: Path, camera: str, intrinsics: tuple, distortion: tuple | None) -> None:
    found = read_model(write_project(tmp_path, camera) / "sparse/0").cameras[1]
    assert tuple(found.intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]) == intrinsics and found.distortion == distortion


def test_bad_models(shared_dir: Path, tmp_path: Path) -> None:
    for file in ("cameras.bin", "points3D.bin"):
        (tmp_path / file).write_bytes((shared_dir / BANANA / file).read_bytes())
    whole = (shared_dir / BANANA / "images.bin").read_bytes()
    (tmp_path / "images.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadDataError, match=r"images\.bin: damaged"):
        read_model(tmp_path)
    (tmp_path / "images.bin").write_bytes(struct.pack("<Q", 0))
    with pytest.raises(BadDataError, match=r"images\.bin: no registered images"):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        (f"PINHOLE {WIDTH} {HEIGHT} 0 0 32 24", r"000\.png.*focal length \(0, 0\)"),
        (f"OPENCV_FISHEYE {WIDTH} {HEIGHT} 70 70 32 24 0 0 0 0", "OPENCV_FISHEYE; supported are"),
        (f"PINHOLE {WIDTH} {HEIGHT} nan 70 32 24", r"000\.png.*NaN"),
        (f"PINHOLE {WIDTH} {HEIGHT} 70 32", r"cameras\.txt: damaged"),
    ],
)
def test_bad_cameras(tmp_path: Path, camera: str, message: str) -> None:
    with pytest.raises((BadCameraError, BadDataError), match=message):
        read_colmap(write_project(tmp_path, camera))


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    write_project(tmp_path)
    (tmp_path / "images/003.png").unlink()
    with pytest.raises(BadDataError, match=r"images/003\.png: this image is missing"):
        read_colmap(tmp_path)


def test_a_zero_quaternion_is_named(tmp_path: Path) -> None:
    write_project(tmp_path)
    file = tmp_path / "sparse/0/images.txt"
    file.write_text("1 0 0 0 0 0 0 0 1 000.png\n\n")
    with pytest.raises(BadCameraError, match=r"000\.png: the quaternion"):
        read_colmap(tmp_path)


def test_a_clip_gets_only_points_that_a_condition_view_observed(tmp_path: Path) -> None:
    project_folder = write_project(tmp_path)  # view 0 observes point 7, the others nothing
    first = known_cameras()[0].camera_to_world[0]
    rows = ["6 nan 0 0 1 2 3 0.5 1 0"]
    for point, pixel in ((7, (0.0, 0.0)), (8, (0.05, 0.1))):  # both fall into view 0
        x, y, z = (first[:3, :3] @ torch.tensor([*pixel, 1.0], dtype=torch.float64) * 2 + first[:3, 3]).tolist()
        rows.append(f"{point} {x} {y} {z} {point} 0 0 0.5 1 1")
    (project_folder / "sparse/0/points3D.txt").write_text("\n".join(rows) + "\n")
    scene = read_colmap(project_folder)
    assert scene.cloud is not None and len(scene.cloud) == 2  # the point that is not a number is gone
    cut = partial(scene_clip, height=32, width=32, min_points=1)
    cloud = cut(scene, [0, 1, 2]).cloud
    assert cloud is not None and (cloud.colors[:, 0] * 255).round().tolist() == [7.0]
    backwards = cut(scene, [2, 1, 0]).cloud
    assert backwards is not None and len(backwards) == 1
    assert cut(scene, [1, 0, 2]).cloud is None  # observed by a frame between only
    unknown = replace(scene, frames=tuple(replace(frame, observed=None) for frame in scene.frames))
    everything = cut(unknown, [0, 1, 2]).cloud
    assert everything is not None and len(everything) == 2
