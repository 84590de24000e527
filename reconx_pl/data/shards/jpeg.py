"""Frames of a clip as JPEG files laid end to end in one blob: twice as fast to read as one shard member a frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from reconx_pl.errors import BadDataError, ConfigurationError


def encode_frames(frames: Tensor, quality: int = 95) -> tuple[bytes, list[int]]:
    """Compress frames, without chroma subsampling: thin coloured edges matter to a reconstruction.

    Args:
        frames: [T, 3, H, W] uint8.
        quality: JPEG quality, 1 to 100.

    Returns:
        The JPEG files end to end, and the size of each in bytes.

    Raises:
        ConfigurationError: frames of another type or shape, or a quality out of range.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
        raise ConfigurationError(f"frames must be uint8 [T, 3, H, W], got {frames.dtype} {tuple(frames.shape)}")
    if not 1 <= quality <= 100:
        raise ConfigurationError(f"JPEG quality must lie in 1..100, got {quality}")
    pixels = np.ascontiguousarray(frames.permute(0, 2, 3, 1).cpu().numpy())  # [T, H, W, 3]
    files = [simplejpeg.encode_jpeg(image, quality=quality, colorsubsampling="444") for image in pixels]
    return b"".join(files), [len(file) for file in files]


def decode_frames(
    blob: bytes, sizes: Sequence[int], height: int, width: int, where: str, indices: Sequence[int] | None = None
) -> Tensor:
    """Decompress frames from a blob of :func:`encode_frames`.

    Args:
        blob: JPEG files end to end.
        sizes: bytes of each file.
        height, width: pixels that every frame must have.
        where: the shard and the clip, for messages.
        indices: the frames wanted, in this order; all of them if None. The others are not decompressed.

    Returns:
        [T, 3, H, W] uint8. The memory is [T, H, W, 3] as the decoder writes it; transposing it would cost another
        tenth of the decoding time, and is cheap on the device (``.contiguous()``).

    Raises:
        BadDataError: sizes that do not add up, a corrupt JPEG, a frame of another size; names ``where`` and the frame.
    """
    if sum(sizes) != len(blob) or any(size <= 0 for size in sizes):
        raise BadDataError(
            f"{where}: jpeg_sizes add up to {sum(sizes)} bytes and the frames have {len(blob)}; "
            "delete the shard and run the same pack command again"
        )
    starts = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    wanted = range(len(sizes)) if indices is None else indices
    view = memoryview(blob)
    pixels = torch.empty(len(wanted), height, width, 3, dtype=torch.uint8)
    for image, frame in zip(pixels.numpy(), wanted, strict=True):
        try:
            decoded = simplejpeg.decode_jpeg(view[starts[frame] : starts[frame + 1]], buffer=image)
        except ValueError as error:
            raise BadDataError(
                f"{where}, frame {frame}: the JPEG is corrupt or larger than {height} x {width} ({error}); "
                "delete the shard and run the same pack command again"
            ) from error
        if decoded.shape != image.shape:
            raise BadDataError(
                f"{where}, frame {frame}: the image is {decoded.shape[0]} x {decoded.shape[1]}, the clip says "
                f"{height} x {width}; delete the shard and run the same pack command again"
            )
    return pixels.permute(0, 3, 1, 2)  # [T, 3, H, W]
