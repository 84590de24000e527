"""The shard stream beside the bare JPEG decode of the same bytes, and beside chunks of pickled frames.

Chunks are what pixelSplat and its family read: a torch file holds a list of clips, each a dict with a list of uint8
tensors, one JPEG file each, which PIL opens and torchvision's ``to_tensor`` makes float. The reader here is our own.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from benchmarks.timing import seconds_of, table
from reconx_pl.data.datamodule import ShardDataModule
from reconx_pl.data.procedural import write_procedural
from reconx_pl.types import ClipBatch

POINTS = 2048
SHARDS = 4


def jpegs(folder: Path) -> list[list[bytes]]:
    """The frames of every clip in the folder, still encoded."""
    clips: list[list[bytes]] = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = ((member.name, tar.extractfile(member)) for member in tar)
            members = {name: file.read() for name, file in files if file is not None}
        for name in [name for name in members if name.endswith(".json")]:
            blob, ends = members[name.removesuffix(".json") + ".jpgs"], json.loads(members[name])["jpeg_sizes"]
            ends = np.cumsum(ends).tolist()
            clips.append([blob[start:end] for start, end in zip([0, *ends], ends, strict=False)])
    return clips


def decode(clips: list[list[bytes]]) -> None:
    """Every frame, into memory that is used again."""
    for clip in clips:
        for image in clip:
            simplejpeg.decode_jpeg(image)


def write_chunks(folder: Path, clips: list[list[bytes]]) -> list[Path]:
    """As many torch files as there are shards."""
    paths = [folder / f"{number:06d}.torch" for number in range(SHARDS)]
    for number, path in enumerate(paths):
        own = clips[number::SHARDS]
        torch.save([{"images": [torch.tensor(list(image), dtype=torch.uint8) for image in clip]} for clip in own], path)
    return paths


def read_chunks(paths: list[Path]) -> None:
    """Every clip of every chunk as [T, 3, H, W] float32 in [0, 1]."""
    for path in paths:
        for clip in torch.load(path, weights_only=True):
            torch.stack([to_tensor(Image.open(io.BytesIO(image.numpy().tobytes()))) for image in clip["images"]])


def draw(batches: Iterator[ClipBatch], count: int) -> None:
    for batch in islice(batches, count):
        assert "frames" in batch


def processes() -> float:
    """Processor-seconds so far of this process and of the workers that it has started (Linux)."""
    clocks = [
        (~child.pid << 3) | 2 for child in multiprocessing.active_children() if child.pid
    ]  # as clock_getcpuclockid
    return time.process_time() + sum(time.clock_gettime(clock) for clock in clocks)


def batches(folder: Path, workers: int) -> Iterator[ClipBatch]:
    return iter(ShardDataModule(str(folder), num_workers=workers, points=POINTS).train_dataloader())


def compare(frames: int, height: int, width: int, clips: int, passes: int = 1, rounds: int = 9) -> None:
    """Print the ratios for clips of one size, each alternative going over all of them ``passes`` times a round."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_procedural(
            folder, clips, frames=frames, size=(height, width), points=POINTS, clips_per_shard=clips // SHARDS
        )
        images = jpegs(folder)
        chunks = write_chunks(folder, images)
        here, there = batches(folder, 0), batches(folder, 1)

        measured = seconds_of(
            {
                "bare decode": partial(decode, images * passes),
                "stream": partial(draw, here, passes * clips),
                "stream, through a worker process": partial(draw, there, passes * clips),
                "chunks of pickled JPEGs": partial(read_chunks, chunks * passes),
            },
            rounds,
            "cpu",
            processes,
        )
        megabytes = sum(len(image) for clip in images for image in clip) / clips / 1e6
        print(
            f"{clips} clips of {frames} x {height} x {width}, {megabytes:.2f} MB of JPEG each, {passes} passes a round"
        )
        for against in ("bare decode", "chunks of pickled JPEGs"):
            table(measured, against)
        for way, seconds in measured.items():
            rate = passes * clips / float(np.median(seconds))
            print(f"{rate:8.1f} clips, {rate * megabytes:6.1f} MB a processor-second   {way}")


def main() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core for all, workers included
    compare(8, 128, 128, clips=24, passes=2)
    compare(32, 256, 256, clips=16, passes=1)
    compare(32, 320, 512, clips=8, passes=1)
    compare(32, 512, 512, clips=8, passes=1)


if __name__ == "__main__":
    main()
