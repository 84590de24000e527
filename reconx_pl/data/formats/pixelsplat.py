"""pixelSplat chunks: ``.torch`` files, each with some clips of RealEstate10K, ACID or DL3DV, and ``index.json``.

A chunk is a list of dictionaries: ``key``, ``url``, ``timestamps`` [V], ``cameras`` [V, 18] (fx fy cx cy normalised by
the image size, two zeros, world-to-camera rows) and ``images``, one uint8 tensor of JPEG bytes a frame (Charatan et
al. 2024).
"""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reconx_pl.data.formats.images import image_size, read_rgb
from reconx_pl.data.formats.realestate10k import denormalise, frame_rate
from reconx_pl.data.formats.scene import RawFrame, RawScene, matrix_4x4
from reconx_pl.errors import BadDataError

logger = logging.getLogger(__name__)


def read_pixelsplat(path: Path, *, dataset: str = "realestate10k") -> Iterator[RawScene]:
    """Yield the scenes of a chunk, or of all chunks of a folder in order of name; one chunk is in memory at a time.

    Args:
        path: a ``.torch`` file, a folder of them, or a folder with ``train`` and ``test`` below.
        dataset: name of the data set, which the chunks do not hold.

    Raises:
        BadDataError: no chunks, a chunk of ``index.json`` that is missing, a file that holds anything but tensors,
            lists, dictionaries and strings, an undecodable image; names chunk and scene.
        BadCameraError: a NaN or non-rigid pose, a focal length of zero.
    """
    for chunk in chunk_files(path):
        yield from read_chunk(chunk, dataset=dataset)


def chunk_files(path: Path) -> list[Path]:
    """The chunks of ``path``; BadDataError if there are none, or ``index.json`` lists one that is missing."""
    if path.is_file():
        return [path]
    folders = [path, *(path / stage for stage in ("train", "test") if (path / stage).is_dir())]
    chunks: list[Path] = []
    for folder in folders:
        here = sorted(folder.glob("*.torch"))
        index = folder / "index.json"
        if index.is_file():
            try:
                listed = set(json.loads(index.read_text(encoding="utf-8")).values())
            except (ValueError, AttributeError, TypeError) as error:
                raise BadDataError(f"{index}: not an index of scenes to chunks ({error})") from error
            lacking = sorted(listed - {chunk.name for chunk in here})
            if lacking:
                raise BadDataError(f"{folder / lacking[0]}: this chunk is missing, {index} lists it; fetch it again")
        chunks += here
    if not chunks:
        raise BadDataError(f"{path}: no .torch chunks here, nor in train/ or test/ below")
    return chunks


def read_chunk(chunk: Path, *, dataset: str = "realestate10k") -> Iterator[RawScene]:
    """Yield the scenes of one chunk; see :func:`read_pixelsplat`."""
    try:
        content = torch.load(chunk, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise BadDataError(
            f"{chunk}: refused, because reading it would run code from the file; chunks hold only tensors, lists, "
            f"dictionaries and strings ({str(error).splitlines()[0]})"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise BadDataError(f"{chunk}: cannot read this chunk ({error}); fetch it again") from error
    if not isinstance(content, list):
        raise BadDataError(
            f"{chunk}: holds a {type(content).__name__}, not a list of scenes; this is no pixelSplat chunk"
        )
    for number, entry in enumerate(content):
        yield _scene(chunk, number, entry, dataset)


def _scene(chunk: Path, number: int, entry: Any, dataset: str) -> RawScene:
    name = f"{chunk}, scene {number}"
    if not isinstance(entry, dict) or not {"key", "cameras", "images", "timestamps"} <= set(entry):
        raise BadDataError(f"{name}: lacks one of key, cameras, images, timestamps; this is no pixelSplat chunk")
    key, cameras, images = str(entry["key"]), entry["cameras"], entry["images"]
    timestamps = tuple(int(value) for value in entry["timestamps"])
    if not isinstance(cameras, torch.Tensor) or cameras.ndim != 2 or cameras.shape[1] != 18:
        raise BadDataError(f"{name} ({key}): cameras are not a tensor [views, 18]")
    if not len(cameras) == len(images) == len(timestamps):
        raise BadDataError(
            f"{name} ({key}): {len(cameras)} cameras, {len(images)} images and {len(timestamps)} timestamps "
            "do not go together"
        )
    frames = []
    for view, (row, encoded, timestamp) in enumerate(zip(cameras.double().numpy(), images, timestamps, strict=True)):
        frame = f"{name} ({key}), image {view}"
        if not isinstance(encoded, torch.Tensor) or encoded.dtype != torch.uint8:
            raise BadDataError(f"{frame}: not a uint8 tensor of JPEG bytes")
        data = encoded.numpy().tobytes()
        width, height = image_size(data, frame)
        frames.append(
            RawFrame(
                frame,
                width,
                height,
                denormalise(row[:4], width, height, "none", frame),
                matrix_4x4(row[6:].reshape(3, 4), frame),
                timestamp,
                partial(read_rgb, data, frame),
            )
        )
    return RawScene(name=key, dataset=dataset, frames=tuple(frames), source=chunk, fps=frame_rate(timestamps))
