"""The layouts of DL3DV, Mip-NeRF 360, Tanks and Temples and MVImgNet, written from real photographs and read back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from raw_scenes import assert_same_cameras, reference

from reconx_pl.data.formats.exporting import export_posed
from reconx_pl.data.formats.readers import only_scene, read_scenes
from reconx_pl.data.formats.scene import RawScene, scene_name
from reconx_pl.data.formats.undistort import distort
from reconx_pl.data.packing.epipolar import epipolar_pairs
from reconx_pl.geometry.cameras import resize_cameras
from reconx_pl.types import Cameras

DL3DV_HASH = "032dee9fb0a8bc1b90871dc5fe950080d0bcd3caf166447f44e60ca50ac04ec7"
DL3DV_LENS = (-0.2, 0.05, 0.004, -0.003)  # k1 k2 p1 p2, strong enough to show in matches


def some_views(shared_dir: Path, name: str, views: tuple[int, ...]) -> RawScene:
    scene = reference(shared_dir / "scenes" / name)
    return replace(scene, frames=tuple(replace(scene.frames[view], observed=None) for view in views))


def epipolar(scene: RawScene) -> float:
    (pair,) = epipolar_pairs(replace(scene, frames=scene.frames[:2]), 1, long_side=480)
    return pair.median


def through_lens(image: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """A pinhole image as the lens would have taken it: each pixel looks up where its ray falls in the pinhole."""
    height, width = image.shape[:2]
    pixels = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
    focal, centre = np.diag(intrinsics)[:2], intrinsics[:2, 2]
    seen = (pixels - centre) / focal
    rays = seen.copy()
    for _ in range(20):  # the inverse of distort, by iteration
        rays += seen - distort(rays, DL3DV_LENS)
    x, y = (rays * focal + centre - 0.5).round().astype(int).clip(0, [width - 1, height - 1]).transpose(2, 0, 1)
    return image[y, x]


def write_dl3dv(scene: RawScene, folder: Path, reduced: int) -> None:
    """nerfstudio's layout as DL3DV has it: everything in the full size, and one folder of reduced, distorted images."""
    (folder / f"images_{reduced}").mkdir(parents=True)
    frames = []
    for view, frame in enumerate(scene.frames):
        name = f"frame_{view + 1:05d}.png"
        Image.fromarray(through_lens(scene.load_image(view), frame.intrinsics)).save(
            folder / f"images_{reduced}" / name
        )
        pose = np.linalg.inv(frame.world_to_camera) @ np.diag([1.0, -1.0, -1.0, 1.0])
        frames.append({"file_path": f"images/{name}", "transform_matrix": pose.tolist(), "colmap_im_id": view + 1})
    k = scene.frames[0].intrinsics
    content = {
        "w": scene.frames[0].width * reduced, "h": scene.frames[0].height * reduced, "camera_model": "OPENCV",
        "fl_x": k[0, 0] * reduced, "fl_y": k[1, 1] * reduced, "cx": k[0, 2] * reduced, "cy": k[1, 2] * reduced,
        **dict(zip(("k1", "k2", "p1", "p2"), DL3DV_LENS, strict=True)), "frames": frames,
    }  # fmt: skip
    (folder / "transforms.json").write_text(json.dumps(content))


@pytest.mark.parametrize(("inner", "reduced"), [("", 8), ("nerfstudio", 4)])
def test_dl3dv_reduced_and_distorted(shared_dir: Path, tmp_path: Path, inner: str, reduced: int) -> None:
    """The data set has the files in the scene's folder, the protocol one folder further down."""
    source = some_views(shared_dir, "ingp_fox", (0, 4))
    write_dl3dv(source, tmp_path / DL3DV_HASH / inner, reduced)
    scene = only_scene(tmp_path / DL3DV_HASH)
    assert scene.name == DL3DV_HASH  # as the index files have it
    assert [scene.name for scene in read_scenes(tmp_path, "transforms")] == [DL3DV_HASH]
    assert (scene.frames[0].width, scene.frames[0].height) == (360, 640)
    torch.testing.assert_close(scene.cameras.world_to_camera, source.cameras.world_to_camera, atol=1e-9, rtol=0)
    straight, wrong = epipolar(scene), epipolar(only_scene_undistorted(tmp_path))
    assert straight < 0.7
    assert wrong > 1.5 * straight  # the lens matters here, and the reader takes it out


def only_scene_undistorted(folder: Path) -> RawScene:
    (scene,) = read_scenes(folder, "transforms", undistort=False)
    assert isinstance(scene, RawScene)
    return scene


def as_binary(model: Path) -> None:
    """Text to binary by COLMAP's own code, which is how the data sets ship their models."""
    pycolmap = pytest.importorskip("pycolmap")
    reconstruction = pycolmap.Reconstruction(str(model))
    for file in model.glob("*.txt"):
        file.unlink()
    reconstruction.write_binary(str(model))


def write_colmap(scene: RawScene, folder: Path, reduced: tuple[int, ...] = ()) -> Cameras:
    """``images`` and ``sparse/0``; or a model of larger images and ``images_N`` alone. The model's cameras."""
    factor = 2 if reduced else 1
    large = resize_cameras(scene.cameras, *(factor * size for size in (scene.frames[0].height, scene.frames[0].width)))
    frames = []
    for view, frame in enumerate(scene.frames):
        whole = np.asarray(Image.fromarray(scene.load_image(view)).resize((large.width, large.height)))
        frames.append(
            replace(
                frame,
                width=large.width,
                height=large.height,
                intrinsics=large.intrinsics[view].numpy(),
                load=lambda w=whole: w,
            )
        )
    export_posed(replace(scene, frames=tuple(frames)), folder, "colmap")
    as_binary(folder / "sparse/0")
    for less in reduced:
        (folder / f"images_{less}").mkdir()
        for file in sorted((folder / "images").iterdir()):
            with Image.open(file) as image:
                # as the published folders: a size that is no multiple is rounded
                image.resize((round(image.width / less), round(image.height / less))).save(
                    folder / f"images_{less}" / file.name
                )
    if reduced:
        shutil.rmtree(folder / "images")
    return large


def test_mip_nerf_360_has_models_of_the_full_size(shared_dir: Path, tmp_path: Path) -> None:
    source = some_views(shared_dir, "banana", (3, 4, 5))
    large = write_colmap(source, tmp_path / "360_v2/garden", (4, 8))
    np.save(tmp_path / "360_v2/garden/poses_bounds.npy", np.zeros((3, 17)))  # lies there too, and is not what is read
    scene = only_scene(tmp_path / "360_v2/garden")
    assert (scene.name, scene.dataset, scene.frames[0].width) == ("garden", "colmap", round(large.width / 4))
    assert_same_cameras(scene.cameras, resize_cameras(large, scene.frames[0].height, scene.frames[0].width), 1e-6, 1e-4)
    assert scene.cloud is not None and source.cloud is not None and len(scene.cloud) == len(source.cloud)
    assert epipolar(scene) < 0.8
    (eighth,) = read_scenes(tmp_path / "360_v2", images="images_8")
    assert isinstance(eighth, RawScene) and (eighth.frames[0].width, eighth.frames[0].height) == (160, 106)
    assert_same_cameras(eighth.cameras, resize_cameras(large, 106, 160), 1e-6, 1e-4)  # 852 / 8 is no whole number


def test_tanks_and_temples_of_the_3dgs_release(shared_dir: Path, tmp_path: Path) -> None:
    """A folder called train must not be taken for a split of chunks."""
    for name in ("train", "truck"):
        write_colmap(some_views(shared_dir, "banana", (3, 4)), tmp_path / "tandt" / name)
    train, truck = read_scenes(tmp_path / "tandt")
    assert isinstance(train, RawScene) and isinstance(truck, RawScene)
    assert (train.name, truck.name, train.dataset) == ("train", "truck", "colmap")
    assert epipolar(truck) < 1.0


def test_mvimgnet_has_categories_of_instances(shared_dir: Path, tmp_path: Path) -> None:
    source = some_views(shared_dir, "banana", (3, 4))
    for name in ("0/1a00b2c3", "0/1a00b2c4", "17/0d00ffee"):
        write_colmap(source, tmp_path / name)
        (tmp_path / name / "masks").mkdir()  # of MVImgNet 2.0
    (tmp_path / "17/without_model/images").mkdir(parents=True)
    scenes = [scene for scene in read_scenes(tmp_path, "colmap") if isinstance(scene, RawScene)]
    assert [scene.name for scene in scenes] == ["1a00b2c3", "1a00b2c4", "0d00ffee"]
    assert_same_cameras(scenes[2].cameras, source.cameras, 1e-6, 1e-4)


def test_names_of_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [scene_name(Path(p)) for p in ("a/b", "a/nerfstudio", "a/gaussian_splat", "/colmap")] == [
        "b",
        "a",
        "a",
        "colmap",
    ]
    (tmp_path / "garden").mkdir()
    monkeypatch.chdir(tmp_path / "garden")
    assert scene_name(Path(".")) == "garden"
