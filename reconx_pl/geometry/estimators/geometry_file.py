"""Geometry that another program found, read from a file of arrays: VGGT, MapAnything, MASt3R, Pi3, a scanner."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path, PurePath

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reconx_pl.errors import BadDataError, BadSceneError, ConfigurationError, UnplacedViewsError
from reconx_pl.files.checksums import file_sha256
from reconx_pl.geometry.cameras import resize_cameras
from reconx_pl.geometry.estimators.base import KnownDepth, Reconstruction
from reconx_pl.types import Cameras

ARRAYS = {  # name -> shape
    "depth": "[V, h, w]",
    "world_to_camera": "[V, 4, 4] or [V, 3, 4]",
    "intrinsics": "[V, 3, 3]",
    "confidence": "[V, h, w]",
    "names": "[V]",
}
_SHAPE = 0.05  # relative difference of aspect: networks resize to multiples of 14 pixels


class GeometryFile:
    """An ``.npz`` file with one depth map and one camera a photograph (docs/extending.md), as a ``PointMapEstimator``.

    ``depth`` [V, h, w] is along the optical axis; 0, negative or not finite is none. ``world_to_camera`` [V, 4, 4] (or
    [V, 3, 4]) has OpenCV axes and the units of the depth. ``intrinsics`` [V, 3, 3] are in pixels of the depth maps, the
    image's corner at (0, 0). ``confidence`` [V, h, w] may be there, 1 or more; so may ``names`` [V], the names of the
    photographs' files, without which they are taken in their order. The maps show whole photographs, at any size.

    Args:
        path: the file. Nothing in it is unpickled.
        points: size of the cloud.
    """

    def __init__(self, path: Path, points: int = 16384) -> None:
        self.path, self.points = Path(path), points

    @property
    def identity(self) -> str:
        """What its results follow from: the content of the file.

        Raises:
            BadDataError: no such file.
        """
        if not self.path.is_file():
            raise BadDataError(f"{self.path}: no such file; name an .npz file with depth and cameras")
        return f"GeometryFile, SHA-256 {file_sha256(self.path)[:16]}, points={self.points}"

    def estimate(
        self,
        images: Tensor,
        cameras: Cameras | None = None,
        names: Sequence[str] | None = None,
        cropped: Sequence[str] = (),
    ) -> Reconstruction:
        """See ``PointMapEstimator``.

        Args:
            images: [V, 3, H, W] in [0, 1].
            cameras: None; those of the file are the cameras.
            names: of the images, paths among them, which the names in the file are compared with, from their ends.
            cropped: names of images that were cut off to have the shape of the others.

        Raises:
            BadDataError: no such file, or arrays that are missing, or do not go together.
            BadSceneError: the file is of other photographs, or has no depth of them; a name fits several; photographs
                of several shapes.
            UnplacedViewsError: it lacks some of the photographs.
            BadCameraError: a camera that cannot be used.
            ConfigurationError: cameras are given too.
        """
        if cameras is not None:
            raise ConfigurationError(f"{self.path} has cameras of its own, and the photographs have some too: drop one")
        if cropped:
            raise BadSceneError(
                f"{', '.join(cropped)}: of another shape than the others, and cropped to theirs, which the maps of "
                f"{self.path} are not; give photographs of one shape"
            )
        arrays = self._read()
        chosen = self._chosen(arrays, images, names)
        depth = torch.from_numpy(arrays["depth"][chosen].astype(np.float32))
        height, width = images.shape[-2:]
        rows, columns = depth.shape[-2:]
        if abs(columns * height / (rows * width) - 1) > _SHAPE:
            raise BadSceneError(
                f"{self.path}: depth of {rows} x {columns} pixels shows a part of photographs of {height} x {width}; "
                "write maps of whole photographs"
            )
        poses = torch.eye(4, dtype=torch.float64).repeat(len(chosen), 1, 1)
        poses[:, :3] = torch.from_numpy(arrays["world_to_camera"][chosen, :3].astype(np.float64))
        intrinsics = torch.from_numpy(arrays["intrinsics"][chosen].astype(np.float64))
        found = resize_cameras(Cameras(poses, intrinsics, rows, columns), height, width).check(str(self.path))
        confidence = arrays.get("confidence")
        trust = None
        if confidence is not None:
            trust = _enlarged(torch.from_numpy(confidence[chosen].astype(np.float32)), images)
        known = torch.where(torch.isfinite(depth), depth, 0.0).clamp(min=0.0)
        if not bool((known > 0).any()):
            raise BadSceneError(f"{self.path}: no pixel of the photographs has depth; write it along the optical axis")
        return KnownDepth(_enlarged(known, images), trust, self.points).estimate(images, found.to(dtype=torch.float32))

    def _read(self) -> dict[str, np.ndarray]:
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files if name in ARRAYS}
        except (
            *(OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError, TypeError),
            *(zlib.error, NotImplementedError),  # damaged, or packed in a way that Python does not know
        ) as error:
            raise BadDataError(f"{self.path}: cannot read it as an archive of plain arrays ({error})") from error
        shapes = {name: array.shape for name, array in arrays.items()}
        size = shapes.get("depth", ())
        views = size[0] if size else 0
        right = {
            "depth": len(size) == 3 and min(size) > 0,
            "world_to_camera": shapes.get("world_to_camera") in ((views, 4, 4), (views, 3, 4)),
            "intrinsics": shapes.get("intrinsics") == (views, 3, 3),
            "confidence": shapes.get("confidence", size) == size,
            "names": shapes.get("names", (views,)) == (views,),
        }
        if wrong := [name for name, fits in right.items() if not fits]:
            needs = ", ".join(f"{name} {ARRAYS[name]}" for name in wrong)
            raise BadDataError(
                f"{self.path}: needs {needs}, V views of h x w pixels; it has {shapes or 'none of them'}"
            )
        if any(array.dtype.kind not in ("U" if name == "names" else "fiu") for name, array in arrays.items()):
            raise BadDataError(f"{self.path}: depth, cameras and confidence are numbers, and names are text")
        confidence = arrays.get("confidence", np.ones(1))
        if not (np.isfinite(confidence) & (confidence >= 1)).all():
            raise BadDataError(
                f"{self.path}: confidence is finite, and 1 or more (docs/conventions.md); write 1 + confidence if it "
                "starts at 0"
            )
        return arrays

    def _chosen(self, arrays: dict[str, np.ndarray], images: Tensor, names: Sequence[str] | None) -> list[int]:
        """The place in the file of each image."""
        count = len(arrays["depth"])
        if "names" not in arrays or names is None:
            if count != len(images):
                raise BadSceneError(
                    f"{self.path} is of {count} photographs, and there are {len(images)}; add names, the files' names"
                )
            return list(range(count))
        named = [str(name) for name in arrays["names"]]
        alike = [[_alike(name, known) for known in named] for name in names]
        lost = [view for view, scores in enumerate(alike) if not any(scores)]
        if len(lost) == len(names):
            raise BadSceneError(f"{self.path} is of other photographs: it names {', '.join(named[:4])}")
        if lost:
            raise UnplacedViewsError(f"{self.path} lacks {', '.join(names[view] for view in lost)}", lost)
        chosen = [scores.index(max(scores)) for scores in alike]
        for name, scores, place in zip(names, alike, chosen, strict=True):
            if scores.count(max(scores)) > 1 or chosen.count(place) > 1:
                raise BadSceneError(f"{self.path}: which of its names is {name}? Write names with their folders")
        return chosen


def _alike(one: str, other: str) -> int:
    """How many parts two paths share at their ends: 0 if not even the name of the file."""
    pairs = zip(reversed(PurePath(one).parts), reversed(PurePath(other).parts), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _enlarged(maps: Tensor, images: Tensor) -> Tensor:
    """Maps [V, h, w] at the pixels of the images, the nearest value each, so that none lies between two surfaces."""
    return F.interpolate(maps[:, None], images.shape[-2:], mode="nearest-exact")[:, 0]
