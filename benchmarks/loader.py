"""The shard stream beside the bare JPEG decode of the same bytes."""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import simplejpeg

from benchmarks.timing import processor_seconds, table
from reconx_pl.data.procedural import write_procedural
from reconx_pl.data.stream import ClipStream
from reconx_pl.types import ClipBatch


def jpegs(folder: Path) -> list[bytes]:
    """Every frame of every clip in the folder, still encoded."""
    images: list[bytes] = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = ((member.name, tar.extractfile(member)) for member in tar)
            members = {name: file.read() for name, file in files if file is not None}
        for name in [name for name in members if name.endswith(".json")]:
            blob, start = members[name.removesuffix(".json") + ".jpgs"], 0
            for size in json.loads(members[name])["jpeg_sizes"]:
                images.append(blob[start : start + size])
                start += size
    return images


def decode(images: list[bytes]) -> None:
    for image in images:
        simplejpeg.decode_jpeg(image)


def draw(batches: Iterator[ClipBatch], count: int) -> None:
    for _ in range(count):
        next(batches)


def main() -> None:
    for frames, side, clips in ((8, 128, 24), (32, 256, 4)):
        with tempfile.TemporaryDirectory() as folder:
            write_procedural(folder, clips, frames=frames, size=(side, side), points=2048, clips_per_shard=clips)
            images = jpegs(Path(folder))
            stream = iter(ClipStream(folder, seed=0, batch_size=1, points=2048))
            measured = processor_seconds(
                {
                    "bare decode": partial(decode, images),
                    "stream": partial(draw, stream, clips),
                },
                rounds=15,
            )
            print(f"{clips} clips of {frames} x {side} x {side}")
            table(measured, "bare decode")


if __name__ == "__main__":
    main()
