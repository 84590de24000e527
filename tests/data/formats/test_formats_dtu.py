"""DTU: real photographs and cameras written into the layouts of MVSNet and IDR, read back, and held against matches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from raw_scenes import assert_same_cameras, reference

from reconx_pl.data.formats.dtu import camera_size, dtu_scene_name, read_dtu
from reconx_pl.data.formats.idr import decompose, read_idr
from reconx_pl.data.formats.readers import detect_format, read_scenes
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.data.packing.epipolar import epipolar_pairs
from reconx_pl.data.packing.packing import scene_clip
from reconx_pl.errors import BadCameraError, BadDataError
from reconx_pl.types import Cameras

VIEWS = 4
# of the published files: Cameras/00000000_cam.txt and Cameras/train/00000000_cam.txt
FULL = np.array([[2892.33, 0, 823.205], [0, 2883.18, 619.071], [0, 0, 1]])
TRAIN = np.array([[361.54125, 0, 82.900625], [0, 360.3975, 66.383875], [0, 0, 1]])


def photographs(shared_dir: Path) -> tuple[list[Image.Image], Cameras]:
    """The first views of scan24 as photographs of 1600 x 1200 with black sides: the real ones are 384 x 384, the
    middle 1200 x 1200 reduced."""
    scene = reference(shared_dir / "scenes/dtu_scan24")
    images = []
    for view in range(VIEWS):
        whole = Image.new("RGB", (1600, 1200))
        whole.paste(Image.fromarray(scene.load_image(view)).resize((1200, 1200), Image.Resampling.BICUBIC), (200, 0))
        images.append(whole)
    cameras = scene.cameras[list(range(VIEWS))]
    undo = torch.tensor([[1 / 0.32, 0, 200], [0, 1 / 0.32, 0], [0, 0, 1]], dtype=torch.float64)
    return images, Cameras(cameras.world_to_camera, undo @ cameras.intrinsics, 1200, 1600)


def camera_text(pose: np.ndarray, intrinsics: np.ndarray) -> str:
    rows = [" ".join(repr(float(value)) for value in row) for row in pose]
    return "\n".join(
        [
            "extrinsic",
            *rows,
            "",
            "intrinsic",
            *(" ".join(map(repr, row.tolist())) for row in intrinsics),
            "",
            "425.0 2.5",
        ]
    )


def write_pfm(file: Path, depth: np.ndarray) -> None:
    """Rows from the bottom, little-endian, as MVSNet's depths are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    header = f"Pf\n{depth.shape[1]} {depth.shape[0]}\n-1.0\n".encode()
    file.write_bytes(header + np.ascontiguousarray(depth[::-1], dtype="<f4").tobytes())


def write_rectified(shared_dir: Path, root: Path) -> Cameras:
    """Photographs and training images of one scan, cameras of both, depth of the training images; the true cameras."""
    images, cameras = photographs(shared_dir)
    (root / "Cameras/train").mkdir(parents=True)
    for view, image in enumerate(images):
        k, pose = cameras.intrinsics[view].numpy(), cameras.world_to_camera[view].numpy()
        quarter = (
            np.diag([0.25, 0.25, 1]) @ np.array([[1, 0, -80], [0, 1, -44], [0, 0, 1]]) @ np.diag([0.5, 0.5, 1]) @ k
        )
        (root / f"Cameras/{view:08d}_cam.txt").write_text(camera_text(pose, k))
        (root / f"Cameras/train/{view:08d}_cam.txt").write_text(camera_text(pose, quarter))
        for name, picture in (
            ("scan24", image),
            ("scan24_train", image.resize((800, 600), Image.Resampling.BOX).crop((80, 44, 720, 556))),
        ):
            folder = root / "Rectified" / name
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"rect_{view + 1:03d}_3_r5000.png", compress_level=1)
        depth = np.full((128, 160), 600.0 + view, np.float32)
        depth[0] = 0.0
        write_pfm(root / f"Depths/scan24_train/depth_map_{view:04d}.pfm", depth)
    return cameras


@pytest.fixture(scope="module")
def rectified(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Cameras]:
    root = tmp_path_factory.mktemp("dtu")
    return root, write_rectified(shared_dir, root)


def epipolar(scene: RawScene, first: int = 0, second: int = 1) -> float:
    (pair,) = epipolar_pairs(replace(scene, frames=(scene.frames[first], scene.frames[second])), 1, long_side=480)
    return pair.median


def test_photographs_and_training_images_of_the_rectified_layout(rectified: tuple[Path, Cameras]) -> None:
    root, cameras = rectified
    full, train = read_scenes(root)
    assert isinstance(full, RawScene) and isinstance(train, RawScene)
    assert detect_format(root)[0] == detect_format(root / "Rectified/scan24")[0] == "dtu"
    assert (full.name, full.dataset, train.name) == ("scan24", "dtu", "scan24")
    assert full.frame_ids == (0, 1, 2, 3)
    assert_same_cameras(full.cameras, cameras)
    crop = torch.tensor([[0.5, 0, -80], [0, 0.5, -44], [0, 0, 1]], dtype=torch.float64)
    assert_same_cameras(train.cameras, Cameras(cameras.world_to_camera, crop @ cameras.intrinsics, 512, 640))
    assert epipolar(full) < 2.5 and epipolar(train) < 1.0  # pixels of 1600 and of 640 columns


def test_cameras_of_the_other_size_are_seen_by_the_matches(rectified: tuple[Path, Cameras]) -> None:
    """What the reader prevents: taking the photographs' intrinsics, scaled, for those of the cropped images."""
    root, _ = rectified
    train = read_dtu(root / "Rectified/scan24_train")
    wrong = tuple(replace(f, intrinsics=np.diag([0.4, 0.4, 1]) @ FULL) for f in train.frames)
    assert epipolar(replace(train, frames=wrong)) > 1.5 * epipolar(train)


def test_published_intrinsics_tell_their_size() -> None:
    assert camera_size(FULL, "a") == (1600, 1200) and camera_size(TRAIN, "a") == (160, 128)
    assert camera_size(np.diag([4, 4, 1]) @ TRAIN, "a") == (640, 512)
    assert camera_size(np.diag([0.25, 0.25, 1]) @ FULL, "a") == (400, 300)
    with pytest.raises(BadCameraError, match=r"a: its principal point \(512, 384\)"):
        camera_size(np.array([[800, 0, 512], [0, 800, 384], [0, 0, 1.0]]), "a")


def test_depth_maps_go_with_the_training_images(rectified: tuple[Path, Cameras]) -> None:
    root, _ = rectified
    train = read_dtu(root / "Rectified/scan24_train")
    depth = train.depth(2)
    assert depth is not None and depth.shape == (128, 160) and depth.dtype == np.float32
    assert (depth[0] == 0).all() and (depth[1:] == 602).all()  # the first row is the upper one
    assert read_dtu(root / "Rectified/scan24").depth(0) is None
    clip = scene_clip(train, [0, 1], 64, 64, points=100)
    assert clip.cloud is not None and clip.depth is not None and float(clip.depth.max()) == 601


def test_masks_fit_photographs_and_training_images(rectified: tuple[Path, Cameras], tmp_path: Path) -> None:
    root, _ = rectified
    (tmp_path / "scan24/mask").mkdir(parents=True)
    mask = np.zeros((1200, 1600, 3), np.uint8)
    mask[400:800, 160:600] = 255
    for view in range(VIEWS):
        Image.fromarray(mask).save(tmp_path / f"scan24/mask/{view:03d}.png")
    full = read_dtu(root / "Rectified/scan24", masks=tmp_path).mask(1)
    train = read_dtu(root / "Rectified/scan24_train", masks=tmp_path).mask(1)
    assert full is not None and full.dtype == bool and np.array_equal(full, mask[..., 0] > 0)
    expected = np.zeros((512, 640), bool)
    expected[200 - 44 : 400 - 44, 80 - 80 : 300 - 80] = True
    assert train is not None and np.array_equal(train, expected)
    assert read_dtu(root / "Rectified/scan24").mask(1) is None
    with pytest.raises(BadDataError, match=r"no mask of scan24 here"):
        read_dtu(root / "Rectified/scan24", masks=tmp_path / "scan24")


def test_what_is_missing_is_named(rectified: tuple[Path, Cameras], tmp_path: Path) -> None:
    root, _ = rectified
    scan = tmp_path / "Rectified/scan24"
    scan.mkdir(parents=True)
    for file in (root / "Rectified/scan24").iterdir():
        (scan / file.name).symlink_to(file)
    with pytest.raises(BadDataError, match=r"there is no folder .*Cameras"):
        read_dtu(scan)
    (tmp_path / "Cameras").symlink_to(root / "Cameras")
    assert len(read_dtu(scan)) == VIEWS
    with pytest.raises(BadDataError, match=r"rect_NNN_5_r5000\.png; lights that are there: 3"):
        read_dtu(scan, light=5)
    (scan / "rect_002_3_r5000.png").unlink()
    with pytest.raises(BadDataError, match=r"rect_002_3_r5000\.png is missing \(1 of 4"):
        read_dtu(scan)
    for file in scan.iterdir():
        file.unlink()
    Image.new("RGB", (500, 500)).save(scan / "rect_001_3_r5000.png")
    with pytest.raises(
        BadDataError, match=r"no camera files for images of 500x500; found .*1600x1200.*train \(160x128\)"
    ):
        read_dtu(scan)


def test_a_damaged_camera_file_is_named(rectified: tuple[Path, Cameras], tmp_path: Path) -> None:
    root, _ = rectified
    (tmp_path / "Rectified").symlink_to(root / "Rectified")
    (tmp_path / "Cameras").mkdir()
    for file in (root / "Cameras").glob("*.txt"):
        (tmp_path / "Cameras" / file.name).write_text(file.read_text())
    last, scan = tmp_path / "Cameras/00000003_cam.txt", tmp_path / "Rectified/scan24"
    whole = last.read_text()
    last.write_text(whole.replace("intrinsic", "").strip())
    with pytest.raises(BadDataError, match=r"00000003_cam\.txt: not a camera file of MVSNet"):
        read_dtu(scan)
    last.write_text(whole.replace("extrinsic\n", "extrinsic\nnan ", 1))
    with pytest.raises(BadDataError, match=r"00000003_cam\.txt: not a camera file of MVSNet"):
        read_dtu(scan)
    last.unlink()
    with pytest.raises(BadDataError, match=r"00000003_cam\.txt: cannot read"):
        read_dtu(scan)


def test_names_of_index_files() -> None:
    assert [dtu_scene_name(name) for name in ("scan1_train_03", "scan110_train", "scan24", "scanner", "0a1b")] == [
        "scan1", "scan110", "scan24", "scanner", "0a1b",
    ]  # fmt: skip


# --- the layout of IDR


def write_idr(shared_dir: Path, root: Path, size: tuple[int, int] = (1600, 1200)) -> tuple[Path, Cameras]:
    images, cameras = photographs(shared_dir)
    folder = root / "scan24"
    (folder / "image").mkdir(parents=True)
    (folder / "mask").mkdir()
    published = np.load(shared_dir / "scenes/dtu_scan24/orig/cameras.npz")
    arrays = {name: published[name] for name in published.files if int(name.split("_")[-1]) < VIEWS}
    np.savez(folder / "cameras.npz", **arrays)
    for view, image in enumerate(images):
        image.resize(size).save(folder / f"image/{view:06d}.png", compress_level=1)
        mask = Image.new("RGB", (1600, 1200))
        mask.paste((255, 255, 255), (0, 0, 800, 1200))
        mask.save(folder / f"mask/{view:03d}.png")
    return folder, cameras


def test_projection_matrices_of_the_idr_layout(shared_dir: Path, tmp_path: Path) -> None:
    folder, cameras = write_idr(shared_dir, tmp_path)
    scene = next(read_scenes(tmp_path))
    assert isinstance(scene, RawScene) and (scene.name, scene.dataset, len(scene)) == ("scan24", "dtu", VIEWS)
    assert detect_format(folder)[0] == "idr"
    # the matrices are float32 of some thousands
    assert_same_cameras(scene.cameras, cameras, pose=2e-3, pixels=5e-2)
    assert epipolar(scene) < 2.5
    mask = scene.mask(0)
    assert mask is not None and mask.shape == (1200, 1600) and mask[:, :800].all() and not mask[:, 800:].any()
    (folder / "cameras.npz").rename(folder / "cameras_sphere.npz")
    assert_same_cameras(read_idr(folder).cameras, scene.cameras)


def test_reduced_photographs_and_their_masks(shared_dir: Path, tmp_path: Path) -> None:
    folder, cameras = write_idr(shared_dir, tmp_path, (400, 300))
    scene = read_idr(folder)
    half = torch.diag(torch.tensor([0.25, 0.25, 1], dtype=torch.float64))
    assert_same_cameras(
        scene.cameras, Cameras(cameras.world_to_camera, half @ cameras.intrinsics, 300, 400), 2e-3, 2e-2
    )
    mask = scene.mask(3)
    assert mask is not None and mask.shape == (300, 400) and mask.mean() == 0.5


def test_real_images_that_are_a_centre_crop(shared_dir: Path, tmp_path: Path) -> None:
    """MonoSDF's images with the matrices of the photographs; cameras.json was checked by matches."""
    source = shared_dir / "scenes/dtu_scan24"
    (tmp_path / "images").symlink_to(source / "images")
    (tmp_path / "cameras.npz").symlink_to(source / "orig/cameras.npz")
    known = reference(source)
    scene = read_idr(tmp_path, crop="centre")
    assert_same_cameras(scene.cameras, known.cameras, pose=2e-3, pixels=2e-2)
    assert epipolar(scene) < 1.1 * epipolar(known)
    with pytest.raises(BadDataError, match=r"images/000\.jpg: the principal point .*384x384; say crop=centre"):
        read_idr(tmp_path)


def test_matrices_that_are_no_camera(tmp_path: Path) -> None:
    pose = np.eye(4)
    pose[:3, 3] = (1, 2, 5)
    matrix = np.eye(4)
    matrix[:3] = FULL @ pose[:3]
    for sign in (1.0, -2.0):  # a projection is known up to scale and sign
        scaled = matrix.copy()
        scaled[:3] *= sign
        intrinsics, found = decompose(scaled, "a")
        np.testing.assert_allclose(intrinsics, FULL, atol=1e-9)
        np.testing.assert_allclose(found, pose, atol=1e-9)
    with pytest.raises(BadCameraError, match="a: the matrix is singular"):
        decompose(np.diag([1.0, 1.0, 0.0, 1.0]), "a")
    skewed = matrix.copy()
    skewed[:3] = (FULL + np.array([[0, 30, 0], [0, 0, 0], [0, 0, 0]])) @ pose[:3]
    with pytest.raises(BadCameraError, match="a: its camera has skew 30"):
        decompose(skewed, "a")


def test_archives_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "image/000.png")
    file = tmp_path / "cameras.npz"
    np.savez(file, world_mat_0=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BadDataError, match=r"cameras\.npz: cannot read it as an archive of plain arrays"):
        read_idr(tmp_path)
    np.savez(file, world_mat_0=np.eye(4), world_mat_2=np.eye(4))
    with pytest.raises(BadDataError, match=r"without a gap, has \[0, 2\]"):
        read_idr(tmp_path)
    np.savez(file, world_mat_0=np.eye(4), world_mat_1=np.eye(4))
    with pytest.raises(BadDataError, match="2 matrices world_mat, but 1 images"):
        read_idr(tmp_path)
    with pytest.raises(BadDataError, match="no camera file here"):
        read_idr(tmp_path / "image")
