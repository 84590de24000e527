"""Posed scenes for other programs: nerfstudio's ``transforms.json`` and COLMAP's text model, with images and points.

Images are written as the scene gives them, upright and without lens distortion, as PNG named by their number, so that
every camera is a pinhole of exactly its image. The readers of these formats give back the same cameras.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from reconx_pl.data.formats.posed import write_posed
from reconx_pl.data.formats.scene import RawFrame, RawScene, invert_rigid
from reconx_pl.data.formats.transforms import OPENGL_TO_OPENCV
from reconx_pl.errors import BadCameraError, ConfigurationError
from reconx_pl.files.atomic import atomic_write
from reconx_pl.types import PointCloud, Progress

ExportFormat = Literal["transforms", "colmap", "posed"]


def export_posed(scene: RawScene, folder: Path, format: ExportFormat, progress: Progress | None = None) -> None:
    """Write images, cameras and the scene's cloud, if it has one, into a new folder.

    - ``transforms``: ``transforms.json`` (OpenGL axes, camera-to-world, intrinsics for all frames where they are the
      same), ``images/``, and ``points.ply`` named by ``ply_file_path``.
    - ``colmap``: ``sparse/0/{cameras,images,points3D}.txt`` (PINHOLE, points without tracks), ``images/``.
    - ``posed``: our own layout (data/posed.md).

    The folder appears under its name when it is complete.

    Raises:
        ConfigurationError: the folder is there and not empty.
        BadCameraError: a camera has skew, which neither foreign format can say.
        BadDataError: an image that cannot be decoded.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} is there already and not empty; remove it or choose another folder")
    if folder.exists():
        folder.rmdir()
    with atomic_write(folder) as partial:
        partial.mkdir()
        if format == "posed":
            write_posed(scene, partial)
            return
        names = [f"{view:06d}.png" for view in range(len(scene))]
        write_images(scene, partial, names, progress)
        if format == "transforms":
            content = transforms_content(scene, names) | write_points(scene, partial)
            (partial / "transforms.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        else:
            write_colmap_model(scene, partial, names)


def write_images(scene: RawScene, folder: Path, names: Sequence[str], progress: Progress | None = None) -> None:
    """Write the images of a scene to ``folder/images`` under these names, as PNG."""
    (folder / "images").mkdir()
    for view, name in enumerate(names):
        Image.fromarray(scene.load_image(view)).save(folder / "images" / name)
        if progress is not None:
            progress("writing images", view + 1, len(names))


def _pinhole(frame: RawFrame) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy in pixels."""
    k = frame.intrinsics
    if abs(k[0, 1]) > 1e-6 * k[0, 0]:
        raise BadCameraError(
            f"{frame.name}: its camera has skew {k[0, 1]:g} px, which a pinhole of this format has not"
        )
    return float(k[0, 0]), float(k[1, 1]), float(k[0, 2]), float(k[1, 2])


def transforms_content(scene: RawScene, names: Sequence[str]) -> dict[str, Any]:
    """What nerfstudio's ``transforms.json`` says about cameras whose images are ``images/<name>``.

    Raises:
        BadCameraError: a camera has skew.
    """
    lenses, frames = [], []
    for frame, name in zip(scene.frames, names, strict=True):
        keys = ("fl_x", "fl_y", "cx", "cy", "w", "h")
        lenses.append(dict(zip(keys, (*_pinhole(frame), frame.width, frame.height), strict=True)))
        pose = invert_rigid(frame.world_to_camera, frame.name) @ OPENGL_TO_OPENCV  # its own inverse
        frames.append({"file_path": f"images/{name}", "transform_matrix": pose.tolist()})
    content: dict[str, Any] = {"camera_model": "PINHOLE"}
    if all(lens == lenses[0] for lens in lenses):
        content |= lenses[0]
    else:
        frames = [frame | lens for frame, lens in zip(frames, lenses, strict=True)]
    return content | {"frames": frames}


def write_points(scene: RawScene, folder: Path) -> dict[str, str]:
    """Write the scene's cloud to ``folder/points.ply``, a plain coloured cloud as nerfstudio starts Gaussians from.

    Returns:
        what ``transforms.json`` says about it; nothing where there is no cloud.
    """
    cloud = scene.cloud
    if cloud is None:
        return {}
    form = [("x", "float", "<f4"), ("y", "float", "<f4"), ("z", "float", "<f4")]
    form += [(name, "uchar", "u1") for name in ("red", "green", "blue")]
    rows = np.empty(len(cloud), [(name, dtype) for name, _, dtype in form])
    for axis, name in enumerate("xyz"):
        rows[name] = cloud.points[:, axis].numpy()
    for channel, name in enumerate(("red", "green", "blue")):
        rows[name] = _rgb(cloud)[:, channel]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(cloud)}"]
    header += [f"property {kind} {name}" for name, kind, _ in form] + ["end_header", ""]
    (folder / "points.ply").write_bytes("\n".join(header).encode("ascii") + rows.tobytes())
    return {"ply_file_path": "points.ply"}


def write_colmap_model(scene: RawScene, folder: Path, names: Sequence[str]) -> None:
    """Write COLMAP's text model of a scene whose images are ``folder/images/<name>`` to ``folder/sparse/0``.

    Raises:
        BadCameraError: a camera has skew.
    """
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    cameras: dict[str, int] = {}  # line without its number -> number
    images = []
    for view, (frame, name) in enumerate(zip(scene.frames, names, strict=True), start=1):
        lens = f"PINHOLE {frame.width} {frame.height} {_numbers(_pinhole(frame))}"
        camera = cameras.setdefault(lens, len(cameras) + 1)
        x, y, z, w = Rotation.from_matrix(frame.world_to_camera[:3, :3]).as_quat()
        pose = _numbers((w, x, y, z, *frame.world_to_camera[:3, 3]))
        images += [f"{view} {pose} {camera} {name}", ""]  # the second line would list observations
    points = []
    if scene.cloud is not None:
        for number, (xyz, rgb) in enumerate(
            zip(scene.cloud.points.tolist(), _rgb(scene.cloud).tolist(), strict=True), start=1
        ):
            points.append(f"{number} {_numbers(xyz)} {rgb[0]} {rgb[1]} {rgb[2]} 0")
    for file, head, lines in (
        ("cameras.txt", "CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]", [f"{n} {lens}" for lens, n in cameras.items()]),
        ("images.txt", "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then POINTS2D[]", images),
        ("points3D.txt", "POINT3D_ID X Y Z R G B ERROR TRACK[]", points),
    ):
        (model / file).write_text("\n".join([f"# {head}", *lines]) + "\n", encoding="utf-8")


def _numbers(values: Any) -> str:
    return " ".join(repr(float(value)) for value in values)  # repr: reads back as the same double


def _rgb(cloud: PointCloud) -> np.ndarray:  # [N, 3] uint8
    return (cloud.colors.clamp(0, 1) * 255).round().byte().numpy()
