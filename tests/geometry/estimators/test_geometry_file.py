"""Geometry of another program, from a file of arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reconx_pl.data.procedural import procedural_clip
from reconx_pl.errors import BadCameraError, BadDataError, BadSceneError, ConfigurationError, UnplacedViewsError
from reconx_pl.geometry.cameras import project, resize_cameras
from reconx_pl.geometry.estimators.geometry_file import GeometryFile
from reconx_pl.types import Clip

SIDE, NAMES = 32, ["a.png", "b.png"]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return procedural_clip(3, 2, (2 * SIDE, 2 * SIDE), points=512)


def arrays(clip: Clip) -> dict[str, Any]:
    """The clip's geometry at half its size, as a network would write it."""
    assert clip.depth is not None
    cameras = resize_cameras(clip.cameras, SIDE, SIDE)
    return {
        "depth": clip.depth[:, ::2, ::2].numpy(),
        "world_to_camera": cameras.world_to_camera[:, :3].numpy(),
        "intrinsics": cameras.intrinsics.numpy(),
    }


def written(folder: Path, content: dict[str, Any]) -> GeometryFile:
    np.savez(folder / "found.npz", **content)
    return GeometryFile(folder / "found.npz", points=256)


def test_cameras_and_points_are_those_of_the_file_at_the_size_of_the_photographs(clip: Clip, tmp_path: Path) -> None:
    found = written(tmp_path, arrays(clip)).estimate(clip.images)
    torch.testing.assert_close(found.cameras.world_to_camera, clip.cameras.world_to_camera.float())
    torch.testing.assert_close(found.cameras.intrinsics, clip.cameras.intrinsics.float())
    _, depth = project(found.point_map.points[0].flatten(0, 1), found.cameras[0])
    even = depth[0].view(2 * SIDE, 2 * SIDE)[::2, ::2]
    valid = found.point_map.valid[0][::2, ::2]
    assert clip.depth is not None and bool(valid.any())
    torch.testing.assert_close(even[valid], clip.depth[0][::2, ::2][valid], rtol=1e-4, atol=1e-4)
    assert len(found.cloud) == 256 and bool((found.point_map.confidence[found.point_map.valid] == 2).all())


def test_names_decide_which_photograph_is_which(clip: Clip, tmp_path: Path) -> None:
    content = {**arrays(clip), "names": np.array(["sub/b.png", "a.png"])}
    content["confidence"] = np.stack([np.full((SIDE, SIDE), 3.0), np.full((SIDE, SIDE), 5.0)])
    found = written(tmp_path, content).estimate(clip.images, names=["/photos/a.png", "/photos/b.png"])
    torch.testing.assert_close(found.cameras.world_to_camera, clip.cameras.world_to_camera.float().flip(0))
    assert found.point_map.confidence[0].max() == 5 and found.point_map.confidence[1].max() == 3


def test_a_photograph_that_the_file_lacks_has_no_place(clip: Clip, tmp_path: Path) -> None:
    estimator = written(tmp_path, {**arrays(clip), "names": np.array(NAMES)})
    with pytest.raises(UnplacedViewsError, match=r"found\.npz lacks c\.png") as lacking:
        estimator.estimate(clip.images[[0, 1, 1]], names=[*NAMES, "c.png"])
    assert lacking.value.views == (2,)


def test_files_of_one_name_are_told_apart_by_their_folders(clip: Clip, tmp_path: Path) -> None:
    estimator = written(tmp_path, {**arrays(clip), "names": np.array(["left/1.png", "right/1.png"])})
    found = estimator.estimate(clip.images, names=["/photos/right/1.png", "/photos/left/1.png"])
    torch.testing.assert_close(found.cameras.world_to_camera, clip.cameras.world_to_camera.float().flip(0))
    estimator = written(tmp_path, {**arrays(clip), "names": np.array(["1.png", "2.png"])})
    with pytest.raises(BadSceneError, match=r"which of its names is left/1\.png"):
        estimator.estimate(clip.images, names=["left/1.png", "right/1.png"])


def test_photographs_that_were_cropped_are_refused(clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(BadSceneError, match=r"b\.png: of another shape than the others"):
        written(tmp_path, arrays(clip)).estimate(clip.images, names=NAMES, cropped=["b.png"])


def test_its_identity_follows_the_content(clip: Clip, tmp_path: Path) -> None:
    before = written(tmp_path, arrays(clip)).identity
    assert written(tmp_path, arrays(clip)).identity == before
    assert written(tmp_path, {**arrays(clip), "names": np.array(NAMES)}).identity != before


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], type[Exception], str]] = {
    "absent": (lambda a: a.pop("intrinsics"), BadDataError, r"needs intrinsics \[V, 3, 3\]"),
    "shape": (lambda a: a.update(depth=a["depth"][0]), BadDataError, r"needs depth \[V, h, w\]"),
    "poses": (lambda a: a.update(world_to_camera=a["world_to_camera"][:1]), BadDataError, "needs world_to_camera"),
    "text": (lambda a: a.update(intrinsics=a["intrinsics"].astype(str)), BadDataError, "are numbers"),
    "confidence": (
        lambda a: a.update(confidence=0 * a["depth"]),
        BadDataError,
        r"write 1 \+ conf",
    ),
    "infinite": (lambda a: a.update(confidence=np.inf + a["depth"]), BadDataError, "confidence is finite"),
    "pickled": (lambda a: a.update(names=np.array([NAMES, None], dtype=object)), BadDataError, "plain arrays"),
    "cropped": (lambda a: a.update(depth=a["depth"][:, :, :20]), BadSceneError, "shows a part of photographs"),
    "empty": (lambda a: a.update(depth=0 * a["depth"]), BadSceneError, "no pixel of the photographs has depth"),
    "others": (lambda a: a.update(names=np.array(["x.png", "y.png"])), BadSceneError, "of other photographs"),
    "camera": (lambda a: a.update(world_to_camera=2 * a["world_to_camera"]), BadCameraError, r"found\.npz"),
}


@pytest.mark.parametrize(("change", "error", "words"), WRONG.values(), ids=WRONG)
def test_refusals(
    clip: Clip, tmp_path: Path, change: Callable[[dict[str, Any]], Any], error: type[Exception], words: str
) -> None:
    content = arrays(clip)
    change(content)
    with pytest.raises(error, match=words):
        written(tmp_path, content).estimate(clip.images, names=NAMES)


def test_other_refusals(clip: Clip, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez_compressed(tmp_path / "damaged.npz", **arrays(clip))
    damaged = bytearray((tmp_path / "damaged.npz").read_bytes())
    damaged[200:900] = bytes(700)
    (tmp_path / "damaged.npz").write_bytes(bytes(damaged))
    for name in ("text.npz", "nowhere.npz", "damaged.npz", "."):
        with pytest.raises(BadDataError, match="plain arrays"):
            GeometryFile(tmp_path / name).estimate(clip.images)
    for name in ("nowhere.npz", "."):
        with pytest.raises(BadDataError, match="no such file"):
            _ = GeometryFile(tmp_path / name).identity
    with pytest.raises(ConfigurationError, match="cameras of its own"):
        written(tmp_path, arrays(clip)).estimate(clip.images, clip.cameras)
    with pytest.raises(BadSceneError, match="is of 2 photographs, and there are 1"):
        written(tmp_path, arrays(clip)).estimate(clip.images[:1])
