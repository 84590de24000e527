"""Readers of raw formats, one file a format, and the choice between them.

Each converts to the conventions of :mod:`reconx_pl.types` and checks what it reads; nothing behind a reader converts
again.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconx_pl.data.formats.colmap import find_model, read_colmap
from reconx_pl.data.formats.dtu import is_scan, read_dtu, scans
from reconx_pl.data.formats.idr import is_idr, read_idr
from reconx_pl.data.formats.llff import read_llff
from reconx_pl.data.formats.pixelsplat import chunk_files, read_chunk, read_pixelsplat
from reconx_pl.data.formats.posed import read_posed
from reconx_pl.data.formats.realestate10k import is_camera_file, read_realestate10k
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.data.formats.transforms import read_transforms
from reconx_pl.data.formats.video import read_video, video_files
from reconx_pl.data.formats.video_frames import is_video
from reconx_pl.errors import BadDataError, BadSceneError, ConfigurationError, ReconXError

logger = logging.getLogger(__name__)

Reader = Callable[..., RawScene | Iterator[RawScene]]

READERS: dict[str, Reader] = {
    "posed": read_posed,
    "transforms": read_transforms,
    "colmap": read_colmap,
    "llff": read_llff,
    "realestate10k": read_realestate10k,
    "pixelsplat": read_pixelsplat,
    "dtu": read_dtu,
    "idr": read_idr,
    "video": read_video,
}

_LOOKED_FOR = (
    "cameras.json (posed), transforms.json (transforms), a COLMAP model here or in sparse/0 (colmap), "
    "poses_bounds.npy (llff), cameras.txt or another RealEstate10K camera file (realestate10k), "
    ".torch chunks here or in train/ and test/ (pixelsplat), Rectified/ and Cameras/ (dtu), "
    "cameras.npz with image/ (idr), a video file (video)"
)


_DEPTH = 1  # a folder of batches of scenes, as DL3DV has them


@dataclass(frozen=True)
class UnreadableScene:
    """A scene among several that could not be read, and why."""

    name: str
    reason: str


def detect_format(path: Path) -> tuple[str, Reader]:
    """Name and reader of what ``path`` is: a scene's folder, its pose file, or a chunk.

    Where a folder fits several formats the first of ``READERS`` is taken, with a log line: COLMAP before LLFF, because
    it brings points and distortion.

    Raises:
        BadDataError: nothing is there, or nothing that a reader knows; lists what was looked for.
    """
    if not path.exists():
        raise BadDataError(f"{path}: no such file or folder")
    found = [name for name in READERS if _fits(name, path)]
    if not found:
        empty = path.is_dir() and not any(path.iterdir())
        raise BadDataError(
            f"{path}: {'this folder is empty' if empty else 'no known format'}; looked for {_LOOKED_FOR}"
        )
    if len(found) > 1:
        logger.info("%s: fits %s; read as %s, say format=... for another", path, ", ".join(found), found[0])
    return found[0], READERS[found[0]]


def read_scenes(path: Path, format: str = "auto", **options: Any) -> Iterator[RawScene | UnreadableScene]:
    """Yield the scenes of one scene's folder, of a folder of such folders, of a folder of camera files, or of chunks.

    Args:
        path: what to read. If it is no scene itself, its sub-folders and theirs are tried in order of name.
        format: ``auto`` or a key of ``READERS``.
        options: arguments of the reader, such as ``undistort`` or ``crop``; a reader that does not know one ignores it
            only where several formats may occur, that is with ``auto``.

    Raises:
        ReconXError: the only scene cannot be read. Among several, a bad one is yielded as ``UnreadableScene`` instead.
        ConfigurationError: an unknown format, or an option that its reader does not have.
    """
    if format != "auto" and format not in READERS:
        raise ConfigurationError(f"unknown format {format!r}; choose auto or one of {', '.join(READERS)}")
    if format != "auto":
        unknown = set(options) - _accepted(READERS[format], options)
        if unknown:
            raise ConfigurationError(f"the reader of {format} has no option {', '.join(sorted(unknown))}")
    else:
        unknown = set(options) - set().union(*(_accepted(reader, options) for reader in READERS.values()))
        if unknown:
            raise ConfigurationError(f"no reader has an option {', '.join(sorted(unknown))}")
    pieces = _pieces(path, format)
    for name, kind, piece in pieces:
        reader: Reader = read_chunk if kind == "pixelsplat" else READERS[kind]
        try:
            scenes = reader(piece, **{key: options[key] for key in _accepted(reader, options)})
            if isinstance(scenes, RawScene):
                yield scenes
            else:
                yield from scenes
        except ReconXError as error:
            if len(pieces) == 1:
                raise
            yield UnreadableScene(name, str(error))


def only_scene(folder: Path) -> RawScene:
    """The one scene of a folder.

    Raises:
        BadDataError: nothing readable in the folder.
        BadSceneError: it holds several scenes, or its scene cannot be read.
    """
    scenes = read_scenes(folder)
    raw = next(scenes)
    if next(scenes, None) is not None:
        raise BadSceneError(f"{folder} holds several scenes; name the folder of one of them")
    if isinstance(raw, UnreadableScene):
        raise BadSceneError(f"{folder}: {raw.name} cannot be read: {raw.reason}")
    return raw


def _pieces(path: Path, format: str, depth: int = _DEPTH) -> list[tuple[str, str, Path]]:
    """(name, format, path) of everything that is read by one call of a reader, ``depth`` + 1 folders deep."""
    if not path.exists():
        raise BadDataError(f"{path}: no such file or folder")
    if format == "video" and path.is_dir() and video_files(path):  # on request: finding poses takes its time
        return [(file.stem, format, file) for file in video_files(path)]
    kinds = [format] if format != "auto" else list(READERS)
    if any(_fits(kind, path) for kind in kinds):
        kind = format if format != "auto" else detect_format(path)[0]
        if kind == "pixelsplat":
            return [(chunk.name, kind, chunk) for chunk in chunk_files(path)]
        if kind == "dtu" and not is_scan(path):
            return [(scan.name, kind, scan) for scan in scans(path)]
        if kind == "realestate10k" and path.is_dir() and not (path / "cameras.txt").is_file():
            return [(file.stem, kind, file) for file in sorted(path.glob("*.txt")) if is_camera_file(file)]
        return [(path.name, kind, path)]
    if path.is_dir():
        below = [folder for folder in sorted(path.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
        pieces, left_out = [], []
        for folder in below:
            if any(_fits(kind, folder) for kind in kinds):
                pieces += _pieces(folder, format)
            else:
                deeper = _pieces(folder, format, depth - 1) if depth > 0 else []
                pieces += deeper
                left_out += [] if deeper else [folder.name]
        if pieces and left_out:
            logger.warning("%s: no scene in the sub-folders %s", path, ", ".join(left_out))
        if pieces or depth < _DEPTH:
            return pieces
    if format != "auto":
        raise BadDataError(f"{path}: no {format} scene here, nor in its sub-folders; looked for {_LOOKED_FOR}")
    detect_format(path)  # says what was looked for
    raise AssertionError("unreachable: detect_format accepts what no reader fits")


def _fits(kind: str, path: Path) -> bool:
    match kind:
        case "posed":
            return path.name == "cameras.json" if path.is_file() else (path / "cameras.json").is_file()
        case "transforms":
            if path.is_file():
                return path.name.startswith("transforms") and path.suffix == ".json"
            return (path / "transforms.json").is_file()
        case "llff":
            return path.name == "poses_bounds.npy" if path.is_file() else (path / "poses_bounds.npy").is_file()
        case "colmap":
            if path.is_file():
                return False
            try:
                find_model(path)
            except BadDataError:
                return False
            return True
        case "realestate10k":
            if path.is_file():
                return path.suffix == ".txt" and is_camera_file(path)
            return (path / "cameras.txt").is_file() or any(is_camera_file(file) for file in path.glob("*.txt"))
        case "pixelsplat":
            if path.is_file():
                return path.suffix == ".torch"
            return any(any((path / stage).glob("*.torch")) for stage in ("", "train", "test"))
        case "dtu":
            return is_scan(path) or bool(scans(path))
        case "idr":
            return is_idr(path)
        case "video":
            return is_video(path)
    return False


def _accepted(reader: Reader, options: dict[str, Any]) -> set[str]:
    """Those of the options that the reader has as keywords."""
    parameters = inspect.signature(reader).parameters.values()
    return {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY} & set(options)
