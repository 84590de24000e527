"""COLMAP models, text and binary: cameras, images, points3D.

Poses are world-to-camera as a quaternion (w x y z) and a translation, OpenCV axes; the corner of the image is at (0,
0). The files of newer versions, ``rigs`` and ``frames``, are not needed: ``images`` holds every pose
(https://colmap.github.io/format.html).
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from reconx_pl.data.formats.images import image_folder, natural_key
from reconx_pl.data.formats.scene import RawScene, frame_from_file, log_rescaling, matrix_4x4, pinhole, scene_name
from reconx_pl.errors import BadCameraError, BadDataError
from reconx_pl.geometry.estimators.sparse_cloud import sfm_cloud

logger = logging.getLogger(__name__)

# id -> (name, parameters); the reader needs the count of every model to find the next camera
MODELS = {
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
}
SUPPORTED = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
MODEL_FOLDERS = ("", "sparse/0", "sparse", "colmap/sparse/0", "dense/sparse")


@dataclass(frozen=True)
class ColmapCamera:
    """A lens: ``model`` is COLMAP's name, ``params`` in COLMAP's order, sizes in pixels."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]

    @property
    def intrinsics(self) -> np.ndarray:
        """[3, 3] pixels."""
        if self.model in ("PINHOLE", "OPENCV"):
            return pinhole(*self.params[:4])
        focal, cx, cy = self.params[:3]
        return pinhole(focal, focal, cx, cy)

    @property
    def distortion(self) -> tuple[float, ...] | None:
        """OpenCV's (k1, k2, p1, p2), or None for a pinhole."""
        match self.model:
            case "SIMPLE_RADIAL":
                return (self.params[3], 0.0, 0.0, 0.0)
            case "RADIAL":
                return (self.params[3], self.params[4], 0.0, 0.0)
            case "OPENCV":
                return self.params[4:8]
        return None


@dataclass(frozen=True)
class ColmapImage:
    """A registered image; ``observations`` [M, 2] pixels of the distorted image, ``point_ids`` [M], -1 = no point."""

    name: str
    camera_id: int
    quaternion: tuple[float, float, float, float]  # w x y z
    translation: tuple[float, float, float]
    observations: np.ndarray
    point_ids: np.ndarray

    @property
    def world_to_camera(self) -> np.ndarray:
        """[4, 4] float64. Raises BadCameraError, naming the image, for a zero or NaN quaternion."""
        norm = float(np.linalg.norm(self.quaternion))
        if not np.isfinite(norm) or norm < 1e-9:
            raise BadCameraError(f"{self.name}: the quaternion {self.quaternion} is not a rotation; remove that image")
        w, x, y, z = (value / norm for value in self.quaternion)
        rotation = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        return matrix_4x4(np.column_stack([rotation, self.translation]), self.name)


@dataclass(frozen=True)
class ColmapPoints:
    """ids [N], xyz [N, 3], rgb [N, 3] uint8, error [N] pixels, track [N] = number of views."""

    ids: np.ndarray
    xyz: np.ndarray
    rgb: np.ndarray
    error: np.ndarray
    track: np.ndarray


@dataclass(frozen=True)
class ColmapModel:
    """One reconstruction; ``points`` is None where the model has no points3D file."""

    folder: Path
    cameras: dict[int, ColmapCamera]
    images: dict[int, ColmapImage]
    points: ColmapPoints | None


def read_colmap(path: Path, *, images: Path | str | None = None, undistort: bool = True) -> RawScene:
    """Read a COLMAP reconstruction with its images.

    Args:
        path: a model folder, or a project with the model in ``sparse/0``, ``sparse``, ``colmap/sparse/0`` or
            ``dense/sparse``.
        images: folder of images, absolute or relative to ``path``; by default ``images`` or ``images_N`` in the
            project folder. They may be scaled against the model as long as the aspect is the same.
        undistort: resample images of the models with distortion to a pinhole camera when they load. Set False where
            the images were undistorted after the model was made; the coefficients are then ignored.

    Raises:
        BadDataError: no model, a damaged file, a missing image, images of another aspect; names the file.
        BadCameraError: a camera model other than pinhole, simple radial, radial, OpenCV; a zero focal length; a NaN
            pose.
    """
    model = read_model(find_model(path))
    project = path if images is not None else _project_folder(path, model.folder)
    folder = image_folder(project, images)
    points = model.points
    ids = None if points is None else points.ids[np.isfinite(points.xyz).all(axis=1)]  # what sfm_cloud keeps
    frames, sizes = [], []
    for image_id, image in sorted(model.images.items(), key=lambda item: natural_key(item[1].name)):
        camera = model.cameras.get(image.camera_id)
        if camera is None:
            raise BadDataError(
                f"{model.folder}: image {image.name} refers to camera {image.camera_id}, which is not there"
            )
        if camera.model not in SUPPORTED:
            raise BadCameraError(
                f"{model.folder}: camera {image.camera_id} of image {image.name} is {camera.model}; supported are "
                f"{', '.join(SUPPORTED)}: run COLMAP's image_undistorter and read its output"
            )
        size = (camera.width, camera.height)
        frame = frame_from_file(
            folder / image.name,
            camera.intrinsics,
            size,
            image.world_to_camera,
            image_id,
            distortion=camera.distortion if undistort else None,
        )
        observed = None if ids is None else np.flatnonzero(np.isin(ids, image.point_ids))
        frames.append(replace(frame, observed=observed))
        sizes.append((size, frame))
    log_rescaling(model.folder, sizes)
    return RawScene(
        name=scene_name(project),
        dataset="colmap",
        frames=tuple(frames),
        source=model.folder,
        cloud=sfm_cloud(points.xyz, points.rgb, points.track, points.error)
        if points is not None and len(points.ids)
        else None,
    )


def find_model(path: Path) -> Path:
    """The model folder in or below ``path``; BadDataError, naming what was looked for, if there is none."""
    for below in MODEL_FOLDERS:
        folder = path / below
        if any(
            (folder / f"cameras{suffix}").is_file() and (folder / f"images{suffix}").is_file()
            for suffix in (".bin", ".txt")
        ):
            return folder
    looked = ", ".join(below or "." for below in MODEL_FOLDERS)
    raise BadDataError(f"{path}: no COLMAP model (cameras and images as .bin or .txt) in {looked}")


def read_model(folder: Path) -> ColmapModel:
    """Read cameras, images and points of one model folder; binary files are preferred.

    Raises:
        BadDataError: a missing, truncated or otherwise damaged file; names it.
    """
    suffix = ".bin" if (folder / "images.bin").is_file() else ".txt"
    parse = _BINARY if suffix == ".bin" else _TEXT
    files = {kind: folder / f"{kind}{suffix}" for kind in ("cameras", "images", "points3D")}
    for kind in ("cameras", "images"):
        if not files[kind].is_file():
            raise BadDataError(f"{files[kind]}: this file of the COLMAP model is missing")
    current = files["cameras"]
    try:
        cameras = parse[0](current)
        current = files["images"]
        images = parse[1](current)
        current = files["points3D"]
        points = parse[2](current) if current.is_file() else None
    except (struct.error, ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        if isinstance(error, (BadDataError, BadCameraError)):
            raise
        raise BadDataError(f"{current}: damaged, or not a COLMAP file ({type(error).__name__}: {error})") from error
    if not images:
        raise BadDataError(f"{files['images']}: no registered images in it")
    return ColmapModel(folder, cameras, images, points)


def _project_folder(path: Path, model: Path) -> Path:
    if path != model:
        return path
    for folder in (model, *model.resolve().parents[:3]):
        if (folder / "images").is_dir() or any(folder.glob("images_*")):
            return folder
    return path


class _Bytes:
    """A position in a binary file; reading past its end raises struct.error."""

    def __init__(self, file: Path) -> None:
        self.data = file.read_bytes()
        self.at = 0

    def take(self, layout: str) -> tuple:
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def array(self, dtype: np.dtype, count: int) -> np.ndarray:
        values = np.frombuffer(self.data, dtype, count, self.at)
        self.at += values.nbytes
        return values

    def text(self) -> str:
        end = self.data.index(b"\0", self.at)
        text = self.data[self.at : end].decode("utf-8")
        self.at = end + 1
        return text


_OBSERVATION = np.dtype([("x", "<f8"), ("y", "<f8"), ("id", "<i8")])


def _binary_cameras(file: Path) -> dict[int, ColmapCamera]:
    data = _Bytes(file)
    cameras = {}
    for _ in range(data.take("Q")[0]):
        camera_id, model_id, width, height = data.take("IiQQ")
        if model_id not in MODELS:
            raise BadCameraError(
                f"{file}: camera {camera_id} has model {model_id}, unknown here; undistort with COLMAP first"
            )
        model, count = MODELS[model_id]
        cameras[camera_id] = ColmapCamera(model, width, height, data.take(f"{count}d"))
    return cameras


def _binary_images(file: Path) -> dict[int, ColmapImage]:
    data = _Bytes(file)
    images = {}
    for _ in range(data.take("Q")[0]):
        image_id, *pose, camera_id = data.take("I7dI")
        name = data.text()
        seen = data.array(_OBSERVATION, data.take("Q")[0])
        observations = np.stack([seen["x"], seen["y"]], axis=-1)
        w, x, y, z, *translation = pose
        images[image_id] = ColmapImage(
            name, camera_id, (w, x, y, z), tuple(translation), observations, seen["id"].copy()
        )
    return images


def _binary_points(file: Path) -> ColmapPoints:
    data = _Bytes(file)
    rows = []
    for _ in range(data.take("Q")[0]):
        point_id, x, y, z, r, g, b, error, track = data.take("Q3d3BdQ")
        data.take(f"{8 * track}x")
        rows.append((point_id, x, y, z, r, g, b, error, track))
    return _points(rows)


def _lines(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        yield from (line.rstrip("\r\n") for line in lines if not line.startswith("#"))


def _text_cameras(file: Path) -> dict[int, ColmapCamera]:
    cameras = {}
    for line in _lines(file):
        if values := line.split():
            params = tuple(float(value) for value in values[4:])
            expected = dict(MODELS.values()).get(values[1])
            if expected is not None and expected != len(params):
                raise ValueError(f"camera {values[0]}: {values[1]} has {expected} parameters, not {len(params)}")
            cameras[int(values[0])] = ColmapCamera(values[1], int(values[2]), int(values[3]), params)
    return cameras


def _text_images(file: Path) -> dict[int, ColmapImage]:
    images = {}
    lines = _lines(file)
    for line in lines:
        if not line.strip():
            continue
        image_id, *pose, camera_id, name = line.split(maxsplit=9)
        numbers = [float(value) for value in pose]
        seen = np.array(next(lines, "").split(), dtype=np.float64).reshape(-1, 3)  # an empty line: nothing observed
        w, x, y, z, tx, ty, tz = numbers
        images[int(image_id)] = ColmapImage(
            name, int(camera_id), (w, x, y, z), (tx, ty, tz), seen[:, :2], seen[:, 2].astype(np.int64)
        )
    return images


def _text_points(file: Path) -> ColmapPoints:
    rows = []
    for line in _lines(file):
        if values := line.split():
            point_id, x, y, z, r, g, b, error = values[:8]
            track = (len(values) - 8) // 2
            rows.append((int(point_id), float(x), float(y), float(z), int(r), int(g), int(b), float(error), track))
    return _points(rows)


def _points(rows: list[tuple]) -> ColmapPoints:
    table = np.array(rows, dtype=np.float64).reshape(-1, 9)
    return ColmapPoints(
        ids=np.array([row[0] for row in rows], dtype=np.int64),
        xyz=table[:, 1:4],
        rgb=table[:, 4:7].astype(np.uint8),
        error=table[:, 7],
        track=table[:, 8].astype(np.int64),
    )


_BINARY = (_binary_cameras, _binary_images, _binary_points)
_TEXT = (_text_cameras, _text_images, _text_points)
