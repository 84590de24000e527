"""Our own simple layout, ``cameras.json``: images with their pinhole cameras, and what geometry is known of them.

``{"frames": [{"file", "w", "h", "K" [3, 3] pixels, "c2w" [4, 4]}, ...], "name": ..., "fps": ..., "caption": ...}``
with OpenCV axes and the corner of the image at (0, 0), which is the convention of the package. Beside it, each
optional: ``points.npz`` (xyz [N, 3], rgb [N, 3] uint8, and confidence [N] or error [N] pixels with track [N] views)
and depth along the optical
axis, see :func:`depth_files`. ``data/posed.md`` describes the layout for those who write it.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from reconx_pl.data.formats.scene import RawScene, frame_from_file, invert_rigid, log_rescaling, matrix_4x4
from reconx_pl.errors import BadCameraError, BadDataError
from reconx_pl.files.json_files import read_object
from reconx_pl.geometry.estimators.sparse_cloud import sfm_cloud
from reconx_pl.types import PointCloud

DEPTH_FILES = ("depth.npz", "depth_and_poses.npz", "depth_left.npz")


def read_posed(path: Path) -> RawScene:
    """Read a ``cameras.json`` or the folder that holds one.

    Raises:
        BadDataError: broken JSON, a missing key, a missing image, arrays of another shape; names file and frame.
        BadCameraError: a NaN or non-rigid pose, a focal length of zero.
    """
    file = path if path.suffix == ".json" else path / "cameras.json"
    content = read_object(file)
    entries = content.get("frames")
    if not isinstance(entries, list) or not entries:
        raise BadDataError(f"{file}: it has no list of frames")
    depth = depth_files(file.parent, len(entries))
    frames, sizes = [], []
    for number, entry in enumerate(entries):
        name = f"{file}, frame {number}"
        if not isinstance(entry, dict) or "file" not in entry:
            raise BadDataError(f"{name}: lacks file")
        intrinsics, size, camera_to_world = read_camera(entry, f"{name} ({entry['file']})")
        pose = invert_rigid(camera_to_world, name)
        frame = frame_from_file(
            file.parent / str(entry["file"]), intrinsics, size, pose, number, load_depth=depth.get(number)
        )
        frames.append(frame)
        sizes.append((size, frame))
    log_rescaling(file, sizes)
    points = file.parent / "points.npz"
    fps = content.get("fps")
    return RawScene(
        name=str(content.get("name", file.resolve().parent.name)),
        dataset=str(content.get("dataset", "posed")),
        frames=tuple(frames),
        source=file,
        cloud=read_points(points) if points.is_file() else None,
        fps=float(fps) if fps else None,
        caption=str(content.get("caption", "")),
    )


def read_camera(entry: object, name: str) -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
    """The camera of one entry of ``frames``.

    Args:
        entry: has ``w``, ``h``, ``K`` and ``c2w``.
        name: what messages call it.

    Returns:
        intrinsics [3, 3] in pixels, (width, height), camera-to-world [4, 4] with OpenCV axes; float64.

    Raises:
        BadDataError: a key is missing.
        BadCameraError: something else than numbers, or a NaN pose.
    """
    lacking = {"w", "h", "K", "c2w"} - (set(entry) if isinstance(entry, dict) else set())
    if lacking or not isinstance(entry, dict):
        raise BadDataError(f"{name}: lacks {', '.join(sorted(lacking))}")
    try:
        intrinsics = np.asarray(entry["K"], dtype=np.float64).reshape(3, 3)
        size = (int(entry["w"]), int(entry["h"]))
    except (TypeError, ValueError, OverflowError) as error:
        raise BadCameraError(f"{name}: w, h or K are not numbers ({error})") from error
    return intrinsics, size, matrix_4x4(entry["c2w"], name)


def camera_entry(intrinsics: np.ndarray, size: tuple[int, int], camera_to_world: np.ndarray) -> dict[str, Any]:
    """What ``read_camera`` reads."""
    return {"w": size[0], "h": size[1], "K": intrinsics.tolist(), "c2w": camera_to_world.tolist()}


def read_points(file: Path) -> PointCloud:
    """Cloud of a ``points.npz`` (xyz, rgb, and where known confidence, or error and track).

    Raises:
        BadDataError: not such an archive, or arrays of another shape.
    """
    arrays = _load_npz(file)
    xyz, rgb = arrays.get("xyz"), arrays.get("rgb")
    if xyz is None or rgb is None or xyz.ndim != 2 or xyz.shape[1] != 3 or rgb.shape != xyz.shape:
        shapes = {key: value.shape for key, value in arrays.items()}
        raise BadDataError(f"{file}: needs xyz [N, 3] and rgb [N, 3], has {shapes}")
    if (confidence := arrays.get("confidence")) is not None:
        if confidence.shape != (len(xyz),) or not (confidence >= 1).all():
            raise BadDataError(
                f"{file}: confidence {confidence.shape} needs one value >= 1 for each of {len(xyz)} points"
            )
        colors = torch.from_numpy(rgb.astype(np.float32) / 255.0)
        return PointCloud(
            torch.from_numpy(xyz.astype(np.float32)), colors, torch.from_numpy(confidence.astype(np.float32))
        )
    track, error = arrays.get("track", np.full(len(xyz), 2)), arrays.get("error", np.zeros(len(xyz)))
    if track.shape != (len(xyz),) or error.shape != (len(xyz),):
        raise BadDataError(
            f"{file}: track {track.shape} and error {error.shape} need one value for each of {len(xyz)} points"
        )
    return sfm_cloud(xyz, rgb, track, error)


def write_posed(scene: RawScene, folder: Path) -> None:
    """Write a scene in this layout: images as PNG, cameras, and the cloud if there is one; no depth.

    ``cameras.json`` comes last, so that a folder that has it is complete.

    Raises:
        BadDataError: an image that cannot be decoded.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = [f"{view:06d}.png" for view in range(len(scene))]
    for view, name in enumerate(names):
        Image.fromarray(scene.load_image(view)).save(folder / "images" / name)
    write_cloud(scene, folder)
    (folder / "cameras.json").write_text(json.dumps(posed_content(scene, names), indent=1) + "\n", encoding="utf-8")


def posed_content(scene: RawScene, names: Sequence[str]) -> dict[str, Any]:
    """What ``cameras.json`` says about cameras whose images are ``images/<name>``."""
    frames = [
        {"file": f"images/{name}", "source": Path(frame.name).name}
        | camera_entry(frame.intrinsics, (frame.width, frame.height), invert_rigid(frame.world_to_camera, frame.name))
        for frame, name in zip(scene.frames, names, strict=True)
    ]
    content: dict[str, Any] = {"name": scene.name, "dataset": scene.dataset, "caption": scene.caption}
    content |= {"fps": scene.fps} if scene.fps else {}
    return content | {"frames": frames}


def write_cloud(scene: RawScene, folder: Path) -> None:
    """Write the scene's cloud, if it has one, to ``folder/points.npz``."""
    if scene.cloud is None:
        return
    rgb = (scene.cloud.colors.clamp(0, 1) * 255).round().byte().numpy()
    confidence = scene.cloud.confidence.numpy()
    np.savez(folder / "points.npz", xyz=scene.cloud.points.numpy(), rgb=rgb, confidence=confidence)


def depth_files(folder: Path, views: int) -> dict[int, Callable[[], np.ndarray]]:
    """Loaders of the depth that lies beside a ``cameras.json``, by frame.

    The first of ``DEPTH_FILES`` that is there counts. An array ``depths`` [V, H, W] has a map for every frame;
    ``depth`` [H, W] belongs to the first frame alone. Depth is along the optical axis in world units; 0, NaN and
    infinity mean none.

    Raises:
        BadDataError: neither array is in the file, or another number of maps than frames.
    """
    file = next((folder / name for name in DEPTH_FILES if (folder / name).is_file()), None)
    if file is None:
        return {}
    arrays = _load_npz(file)
    if "depths" in arrays and arrays["depths"].ndim == 3 and len(arrays["depths"]) == views:
        return {view: partial(_clean_depth, depth) for view, depth in enumerate(arrays["depths"])}
    if "depth" in arrays and arrays["depth"].ndim == 2:
        return {0: partial(_clean_depth, arrays["depth"])}
    shapes = {key: value.shape for key, value in arrays.items()}
    raise BadDataError(f"{file}: needs depths [{views}, H, W] or depth [H, W] of the first frame, has {shapes}")


def _clean_depth(depth: np.ndarray) -> np.ndarray:
    return np.maximum(np.nan_to_num(depth.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0), 0.0)


def _load_npz(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise BadDataError(f"{file}: cannot read it as an archive of plain arrays ({error})") from error
