"""Posed scenes for other programs: our readers and pycolmap find the same cameras, images and points."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from raw_scenes import VIEWS, assert_same_cameras, edit_json, known_cameras, reference, write_posed

from reconx_pl.data.formats.exporting import export_posed
from reconx_pl.data.formats.readers import read_scenes
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.errors import BadCameraError, BadDataError, ConfigurationError
from reconx_pl.types import Cameras, PointCloud


@pytest.fixture
def scene(tmp_path: Path) -> RawScene:
    generator = torch.Generator().manual_seed(0)
    points, colors = torch.randn(20, 3, generator=generator), torch.rand(20, 3, generator=generator)
    return replace(reference(write_posed(tmp_path / "in")), cloud=PointCloud(points, colors, torch.ones(20)))


def one_lens(scene: RawScene) -> RawScene:
    first = scene.frames[0].intrinsics
    return replace(scene, frames=tuple(replace(frame, intrinsics=first) for frame in scene.frames))


@pytest.mark.parametrize("lenses", ["one", "several"])
@pytest.mark.parametrize("format", ["transforms", "colmap", "posed"])
def test_our_readers_find_the_same_scene(scene: RawScene, tmp_path: Path, format: str, lenses: str) -> None:
    scene = one_lens(scene) if lenses == "one" else scene
    export_posed(scene, tmp_path / "out", format)
    (found,) = read_scenes(tmp_path / "out", format)
    assert isinstance(found, RawScene)
    assert_same_cameras(found.cameras, scene.cameras, pose=1e-12)
    for view in range(VIEWS):
        np.testing.assert_array_equal(found.load_image(view), scene.load_image(view))
    if format != "transforms":  # its reader takes no points
        assert found.cloud is not None and torch.equal(found.cloud.points, scene.cloud.points)
        torch.testing.assert_close(found.cloud.colors, scene.cloud.colors, atol=0.51 / 255, rtol=0)


@pytest.mark.parametrize(("lenses", "cameras"), [("one", 1), ("several", VIEWS)])
def test_pycolmap_reads_the_model(scene: RawScene, tmp_path: Path, lenses: str, cameras: int) -> None:
    pycolmap = pytest.importorskip("pycolmap", reason="pycolmap has no wheel for this machine")
    scene = one_lens(scene) if lenses == "one" else scene
    export_posed(scene, tmp_path / "out", "colmap")
    model = pycolmap.Reconstruction(str(tmp_path / "out/sparse/0"))
    assert len(model.cameras) == cameras and len(model.images) == VIEWS
    images = sorted(model.images.values(), key=lambda image: image.name)
    poses = np.tile(np.eye(4), (VIEWS, 1, 1))
    poses[:, :3] = [image.cam_from_world().matrix() for image in images]
    lens = np.stack([image.camera.calibration_matrix() for image in images])
    first = images[0].camera
    found = Cameras(torch.from_numpy(poses), torch.from_numpy(lens), first.height, first.width)
    assert_same_cameras(found, scene.cameras, pose=1e-6)
    points = [model.points3D[number] for number in sorted(model.points3D)]
    np.testing.assert_allclose([point.xyz for point in points], scene.cloud.points.numpy(), atol=1e-6)
    expected = (scene.cloud.colors * 255).round().numpy()
    np.testing.assert_array_equal([point.color for point in points], expected)


def test_transforms_say_what_nerfstudio_reads(scene: RawScene, tmp_path: Path) -> None:
    export_posed(one_lens(scene), tmp_path / "out", "transforms")
    content = json.loads((tmp_path / "out/transforms.json").read_text())
    assert {"fl_x", "fl_y", "cx", "cy", "w", "h", "ply_file_path"} <= content.keys()
    assert content["frames"][3]["file_path"] == "images/000003.png"
    pose = np.array(content["frames"][3]["transform_matrix"])
    expected = known_cameras().camera_to_world[3].numpy()
    np.testing.assert_allclose(pose[:3, 3], expected[:3, 3], atol=1e-12)
    np.testing.assert_allclose(pose[:3, 2], -expected[:3, 2], atol=1e-12)  # OpenGL looks along -z
    np.testing.assert_allclose(pose[:3, 1], -expected[:3, 1], atol=1e-12)
    header, _, body = (tmp_path / "out/points.ply").read_bytes().partition(b"end_header\n")
    assert b"element vertex 20" in header and header.count(b"property uchar") == 3
    rows = np.frombuffer(body, [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    np.testing.assert_array_equal(rows["xyz"], scene.cloud.points.numpy())
    np.testing.assert_array_equal(rows["rgb"], (scene.cloud.colors * 255).round().numpy())


def test_a_folder_that_holds_something_is_left_alone(scene: RawScene, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_posed(scene, tmp_path / "out", "colmap")  # empty: taken
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigurationError, match="there already and not empty"):
        export_posed(scene, tmp_path / "out", "transforms")
    assert sorted(tmp_path.rglob("*")) == before


def test_nothing_is_left_of_a_scene_that_fails(tmp_path: Path) -> None:
    folder = write_posed(tmp_path / "in")
    (folder / "images/003.png").write_bytes((folder / "images/003.png").read_bytes()[:60])
    with pytest.raises(BadDataError, match=r"003\.png"):
        export_posed(reference(folder), tmp_path / "out", "transforms")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_skew_cannot_be_said(tmp_path: Path) -> None:
    folder = write_posed(tmp_path / "in")

    def skew(content: dict) -> None:
        content["frames"][2]["K"][0][1] = 0.5

    edit_json(folder / "cameras.json", skew)
    with pytest.raises(BadCameraError, match=r"002\.png: .*skew 0\.5"):
        export_posed(reference(folder), tmp_path / "out", "colmap")
