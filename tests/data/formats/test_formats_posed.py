"""cameras.json with its points and depth, on real scenes and on broken ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from raw_scenes import HEIGHT, WIDTH, assert_same_cameras, edit_json, known_cameras, picture, reference, write_posed

from reconx_pl.data.formats.posed import read_posed
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.errors import BadCameraError, BadDataError, BadSceneError
from reconx_pl.geometry.cameras import project, unproject


def colour_error(scene: RawScene, flip: bool) -> float:
    """Median difference of each point's colour from the pixel it falls on, over a few views; 0 to 1."""
    assert scene.cloud is not None
    cloud, errors = scene.cloud, []
    for view in (0, len(scene) // 2, len(scene) - 1):
        image = torch.from_numpy(scene.load_image(view).copy()).float() / 255
        pixels, depth = project(cloud.points.double(), scene.cameras[view])
        x, y = pixels[0].unbind(-1)
        y = image.shape[0] - y if flip else y
        inside = (depth[0] > 0) & (x >= 0) & (y >= 0) & (x < image.shape[1]) & (y < image.shape[0])
        seen = image[y[inside].long(), x[inside].long()]
        errors.append((seen - cloud.colors[inside]).abs().mean(1))
    return float(torch.cat(errors).median())


@pytest.mark.parametrize("name", ["banana", "brighton_beach"])
def test_points_project_onto_pixels_of_their_colour(shared_dir: Path, name: str) -> None:
    scene = reference(shared_dir / "scenes" / name)
    right, wrong = colour_error(scene, flip=False), colour_error(scene, flip=True)
    assert right < 0.06 and wrong > 2 * right, (right, wrong)
    assert scene.cloud is not None and scene.cloud.confidence.min() >= 1


def test_room_has_depth_along_the_axis(shared_dir: Path) -> None:
    """Its depth, taken from one view to another, meets the other's depth; as distance along the ray it does not."""
    scene = reference(shared_dir / "scenes/pi3_room")
    cameras = scene.cameras
    maps = [scene.depth(view) for view in range(2)]
    assert maps[0] is not None and maps[1] is not None
    depth = [torch.from_numpy(one).double() for one in maps]
    points = unproject(depth[0][None], cameras[0]).reshape(-1, 3)[depth[0].reshape(-1) > 0]
    pixels, z = project(points, cameras[1])
    x, y, z = pixels[0, :, 0], pixels[0, :, 1], z[0]
    inside = (z > 0) & (x >= 0) & (y >= 0) & (x < cameras.width) & (y < cameras.height)
    other = depth[1][y[inside].long(), x[inside].long()]
    error = ((other - z[inside]).abs() / z[inside])[other > 0]
    assert len(error) > 1000 and error.median() < 0.01


def test_motorcycle_has_depth_for_its_left_view_alone(shared_dir: Path) -> None:
    scene = reference(shared_dir / "scenes/motorcycle_stereo")
    depth = scene.depth(0)
    assert scene.depth(1) is None and depth is not None and np.isfinite(depth).all() and (depth > 0).mean() > 0.9
    cameras, valid = scene.cameras, depth > 0
    points = unproject(torch.from_numpy(depth).double()[None], cameras[0])[0][torch.from_numpy(valid)]
    pixels, _ = project(points, cameras[1])
    x, y = pixels[0].long().unbind(-1)
    inside = ((x >= 0) & (x < cameras.width) & (y >= 0) & (y < cameras.height)).numpy()
    left = scene.load_image(0)[valid][inside].astype(float)
    right = scene.load_image(1)[y.numpy()[inside], x.numpy()[inside]].astype(float)
    assert np.median(np.abs(left - right)) < 8  # grey levels


def test_known_cameras_come_back(tmp_path: Path) -> None:
    write_posed(tmp_path, name="a scene", fps=12.5, caption="a room")
    np.savez(tmp_path / "points.npz", xyz=np.ones((4, 3), np.float32), rgb=np.full((4, 3), 255, np.uint8))
    np.savez(tmp_path / "depth.npz", depths=np.full((5, 24, 32), 3.0, np.float32))
    scene = read_posed(tmp_path)
    assert_same_cameras(scene.cameras, known_cameras())
    assert (scene.name, scene.fps, scene.caption) == ("a scene", 12.5, "a room")
    assert scene.cloud is not None and scene.cloud.colors.max() == 1.0
    depth = scene.depth(4)
    assert depth is not None and depth.shape == (24, 32)


def test_images_of_different_sizes_are_named(tmp_path: Path) -> None:
    write_posed(tmp_path)
    picture(0, HEIGHT * 2, WIDTH * 2).save(tmp_path / "images/002.png")  # same aspect: a camera, but not of one size
    scene = read_posed(tmp_path)
    assert scene.frames[2].camera.width == 2 * WIDTH
    with pytest.raises(BadSceneError, match=r"002\.png is 128x96, but .*000\.png is 64x48"):
        _ = scene.cameras


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"K": [[0, 0, 32], [0, 0, 24], [0, 0, 1]]}, BadCameraError, r"002\.png.*focal length \(0, 0\)"),
        ({"c2w": [[float("nan")] * 4] * 4}, BadCameraError, r"frame 2 \(images/002\.png\).*NaN"),
        ({"c2w": np.diag([1.0, 1, -1, 1]).tolist()}, BadCameraError, r"002\.png.*not a rigid"),
        ({"file": "images/none.png"}, BadDataError, r"images/none\.png: this image is missing"),
        ({"w": 100}, BadDataError, r"002\.png: the image is 64x48, its camera is for 100x48"),
    ],
)
def test_bad_frames(tmp_path: Path, change: dict, error: type[Exception], message: str) -> None:
    write_posed(tmp_path)
    edit_json(tmp_path / "cameras.json", lambda content: content["frames"][2].update(change))
    with pytest.raises(error, match=message):
        read_posed(tmp_path)


def test_missing_keys_and_broken_files(tmp_path: Path) -> None:
    write_posed(tmp_path)
    edit_json(tmp_path / "cameras.json", lambda content: content["frames"][1].pop("K"))
    with pytest.raises(BadDataError, match=r"cameras\.json, frame 1 \(images/001\.png\): lacks K"):
        read_posed(tmp_path)
    write_posed(tmp_path)
    np.savez(tmp_path / "points.npz", xyz=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BadDataError, match=r"points\.npz: cannot read it as an archive of plain arrays"):
        read_posed(tmp_path)
    (tmp_path / "points.npz").unlink()
    np.savez(tmp_path / "depth.npz", depths=np.ones((3, 4, 4)))
    with pytest.raises(BadDataError, match=r"depth\.npz: needs depths \[5, H, W\]"):
        read_posed(tmp_path)
    (tmp_path / "cameras.json").write_text("{")
    with pytest.raises(BadDataError, match=r"cameras\.json: broken JSON"):
        read_posed(tmp_path)
