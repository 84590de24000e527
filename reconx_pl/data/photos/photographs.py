"""Photographs as a user has them, of any size and from any device, as one tensor: upright, one shape, lenses known."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reconx_pl.data.formats.found_poses import MAX_SIDE
from reconx_pl.data.formats.images import read_upright
from reconx_pl.data.formats.video_frames import VIDEO_SUFFIXES
from reconx_pl.data.photos.headers import PhotographHeader, named_files, quiet_pillow, read_header
from reconx_pl.data.photos.keyframes import select_keyframes
from reconx_pl.errors import BadDataError, BadSceneError, ConfigurationError
from reconx_pl.types import Progress

MAX_VIEWS = 64
VIDEO_VIEWS = 16
LEAST_SIDE = 320  # (ours) pixels: below, features and networks find little, so that a smaller photograph is enlarged
_LEAST_BOUND = 64  # pixels that max_side may be
_SAME_SHAPE = 0.01  # relative difference of aspects that rounding to pixels explains
_NAMED = 4  # photographs in a note


@dataclass(frozen=True)
class Photographs:
    """Photographs that are ready for an estimator.

    Args:
        images: [V, 3, H, W] float32 in [0, 1], upright, one working size; every principal point that was in the centre
            is in the centre.
        names: unique file names, also without their endings; a frame of a video is ``stem_frame_000123.png``.
        sources: paths as they were given, with the number of the frame for a video: for messages.
        focals: from EXIF, pixels of ``images``; None where unknown.
        lenses: photographs of one number share one camera: the same device, lens, zoom and size, hence the same crop.
        notes: what a user should know, a sentence each.
        digest: SHA-256 of pixels, names, focals and lenses.
        cropped: names of those that were of another shape, and lost what stands over.
    """

    images: Tensor
    names: tuple[str, ...]
    sources: tuple[str, ...]
    focals: tuple[float | None, ...]
    lenses: tuple[int, ...]
    notes: tuple[str, ...]
    digest: str
    cropped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)


def load_photographs(
    sources: Sequence[Path], *, max_side: int = MAX_SIDE, views: int | None = None, progress: Progress | None = None
) -> Photographs:
    """Read photographs, or frames of a video, for a reconstruction.

    EXIF orientations are applied, and transparent pixels laid over white. The working shape is that of most
    photographs, among equals the one that cuts off least; the others are scaled until they cover it and lose what
    stands over on both sides. The size is that of the smallest photograph, so that none is enlarged, unless most have
    more and it has less than ``LEAST_SIDE``.

    Args:
        sources: 1 to 64 image files, folders of images (in natural order of name), both mixed, or one video.
        max_side: the longer side of the result, pixels, at most.
        views: how many to take, evenly from first to last; None takes all photographs, and 16 frames of a video (the
            sharpest of so many equal stretches). More than 64 is 64.
        progress: counts photographs that are decoded, or frames of a video that are looked at.

    Raises:
        BadSceneError: no photograph, more than 64, the same one twice, a video beside photographs, or one
            with too little to take.
        BadDataError: a path that does not exist or may not be read, or a file that is no photograph; says what to do.
        ConfigurationError: ``max_side`` or ``views`` out of range.
        MissingDependencyError: a video, and PyAV is not installed.
    """
    if max_side < _LEAST_BOUND or (views is not None and views < 2):
        raise ConfigurationError(
            f"max_side is at least {_LEAST_BOUND} pixels and views at least 2, not {max_side} and {views}"
        )
    sources = [Path(source) for source in sources]
    notes: list[str] = []
    if views is not None and views > MAX_VIEWS:
        notes.append(f"at most {MAX_VIEWS} views are taken, not {views}")
        views = MAX_VIEWS
    files = named_files(sources, notes)
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    if videos and len(files) > 1:
        raise BadSceneError(
            f"{videos[0]}: a video goes alone, and {len(files) - 1} more came with it; give one video, or photographs"
        )
    if videos:
        return _from_video(videos[0], max_side, views or VIDEO_VIEWS, notes, progress)
    return _from_files(_chosen(files, views, notes), max_side, notes, progress)


def _chosen(files: list[Path], views: int | None, notes: list[str]) -> list[Path]:
    if not files:
        raise BadSceneError("no photographs make no scene; name one or more")
    if views is not None and views < len(files):
        notes.append(f"{views} of {len(files)} photographs were taken, evenly")
        return [files[at] for at in np.linspace(0, len(files) - 1, views).round().astype(int)]
    if len(files) > MAX_VIEWS:
        raise BadSceneError(
            f"{files[0].parent}: {len(files)} photographs, at most {MAX_VIEWS} go into one scene; choose fewer, or say "
            f"how many to take with views (--views {MAX_VIEWS})"
        )
    return files


def _from_files(files: list[Path], max_side: int, notes: list[str], progress: Progress | None) -> Photographs:
    headers = [read_header(path) for path in files]
    sizes = [(header.width, header.height) for header in headers]
    width, height = working_size(sizes, max_side)
    pixels = []
    for done, header in enumerate(headers, start=1):
        pixels.append(_fitted(header, width, height))
        if progress is not None:
            progress("reading photographs", done, len(headers))
    _check_different(pixels, files)
    scales = [_cover(size, width, height) for size in sizes]
    focals = tuple(
        None if header.lens.focal is None else header.lens.focal * scale
        for header, scale in zip(headers, scales, strict=True)
    )
    cameras: dict[object, int] = {}
    lenses = tuple(cameras.setdefault((header.lens.identity, size), len(cameras))
                   for header, size in zip(headers, sizes, strict=True))  # fmt: skip
    names = _unique_names(files)
    notes += _notes_on_size(names, sizes, scales, (width, height), max_side)
    notes += _notes_on_lenses(names, headers, len(cameras))
    made = _photographs(np.stack(pixels), names, tuple(map(str, files)), focals, lenses, notes)
    shapes = zip(names, sizes, strict=True)
    return replace(made, cropped=tuple(name for name, (w, h) in shapes if not _same_shape(w / h, width / height)))


def _from_video(path: Path, max_side: int, views: int, notes: list[str], progress: Progress | None) -> Photographs:
    found = select_keyframes(path, views, max_side, progress)
    count, (height, width) = len(found.numbers), found.pixels.shape[1:3]
    if found.video != (width, height):
        notes.append(
            f"{path.name} has {found.video[0]} x {found.video[1]} pixels and was reduced to {width} x {height}"
        )
    if count + found.repeated < views:
        notes.append(f"{path.name} has {count + found.repeated} frames, fewer than the {views} views asked for")
    if found.repeated:
        notes.append(f"{found.repeated} frames of {path.name} repeat others and were left out")
    if found.damaged:
        notes.append(f"{found.damaged} frames of {path.name} are damaged and were passed over")
    notes.append("a video has no focal length in EXIF: it is found from the frames")
    names = tuple(f"{path.stem}_frame_{number:06d}.png" for number in found.numbers)
    where = tuple(f"{path}, frame {number}" for number in found.numbers)
    return _photographs(found.pixels, names, where, (None,) * count, (0,) * count, notes)


def _photographs(
    pixels: np.ndarray,  # [V, H, W, 3] uint8
    names: tuple[str, ...],
    sources: tuple[str, ...],
    focals: tuple[float | None, ...],
    lenses: tuple[int, ...],
    notes: list[str],
) -> Photographs:
    digest = hashlib.sha256(json.dumps([pixels.shape, names, focals, lenses]).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float().div_(255.0)
    return Photographs(images, names, sources, focals, lenses, tuple(notes), digest.hexdigest())


def working_size(sizes: Sequence[tuple[int, int]], max_side: int) -> tuple[int, int]:
    """(width, height) into which photographs of these sizes, (width, height) each, are brought.

    See ``load_photographs`` for the rule.
    """
    aspects = [width / height for width, height in sizes]

    def rank(at: int) -> tuple[int, float]:
        alike = sum(_same_shape(aspects[at], other) for other in aspects)
        return -alike, sum(1 - _kept(other, aspects[at]) for other in aspects)

    aspect = aspects[min(range(len(sizes)), key=rank)]
    covers = [min(width, height * aspect) * max(1.0, 1 / aspect) for width, height in sizes]  # longer side of the crop
    enough = min(LEAST_SIDE, statistics.median_low(covers))
    side = max(1, math.floor(min(max_side, max(min(covers), enough)) + 1e-6))
    return (side, max(1, round(side / aspect))) if aspect >= 1 else (max(1, round(side * aspect)), side)


def _same_shape(one: float, other: float) -> bool:
    return abs(one / other - 1) < _SAME_SHAPE


def _kept(aspect: float, target: float) -> float:
    """Share of a photograph that its largest crop of another aspect keeps."""
    return min(aspect / target, target / aspect)


def _cover(size: tuple[int, int], width: int, height: int) -> float:
    """The factor by which a photograph is scaled to cover the working size."""
    return max(width / size[0], height / size[1])


def _fitted(header: PhotographHeader, width: int, height: int) -> np.ndarray:  # [H, W, 3] uint8
    """Decode, scale and cut in one step, about the exact centre, so that a principal point there stays there."""
    try:
        with quiet_pillow():
            image = Image.fromarray(read_upright(header.path, str(header.path), least=2 * max(width, height)))
    except BadDataError as error:
        raise BadDataError(
            f"{header.path}: damaged, or it ends early ({error.__cause__}); copy it again, or leave it out"
        ) from error
    scale = _cover(image.size, width, height)
    left, top = (image.width - width / scale) / 2, (image.height - height / scale) / 2
    box = (max(0.0, left), max(0.0, top), min(image.width, image.width - left), min(image.height, image.height - top))
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS, box=box))


def _check_different(pixels: list[np.ndarray], files: list[Path]) -> None:
    first: dict[bytes, int] = {}
    for view, picture in enumerate(pixels):
        earlier = first.setdefault(hashlib.sha256(picture.tobytes()).digest(), view)
        if earlier != view:
            raise BadSceneError(f"{files[earlier]} and {files[view]} are the same photograph; leave one of them out")


def _unique_names(files: list[Path]) -> tuple[str, ...]:
    """File names; those that others share get their folder before them, and a number after them if that is not enough.

    Endings do not tell two names apart, nor do capitals: results are files of other endings, on any file system.
    """
    stems = [path.stem.lower() for path in files]
    names: list[str] = []
    taken: set[str] = set()
    for path, stem in zip(files, stems, strict=True):
        folder = path.resolve().parent.name
        base = f"{folder}_{path.stem}" if stems.count(stem) > 1 and folder else path.stem
        unique, number = base, 2
        while unique.lower() in taken:
            unique, number = f"{base}_{number}", number + 1
        taken.add(unique.lower())
        names.append(unique + path.suffix)
    return tuple(names)


def _notes_on_size(
    names: tuple[str, ...], sizes: list[tuple[int, int]], scales: list[float], working: tuple[int, int], max_side: int
) -> list[str]:
    shape, aspect = f"{working[0]} x {working[1]} pixels", working[0] / working[1]
    views = range(len(names))
    notes = []
    reduced = [view for view in views if scales[view] < 0.995]
    if reduced:
        largest = max(reduced, key=lambda view: sizes[view][0] * sizes[view][1])
        others = f", and {len(reduced) - 1} more with it" if len(reduced) > 1 else ""
        megapixels = sizes[largest][0] * sizes[largest][1] / 1e6
        notes.append(f"{names[largest]} has {megapixels:.1f} megapixels and was reduced to {shape}{others}")
    smallest = max(views, key=lambda view: scales[view])
    if max(working) < max_side and len(set(sizes)) > 1 and scales[smallest] <= 1.005:
        notes.append(
            f"{names[smallest]} has {sizes[smallest][0]} x {sizes[smallest][1]} pixels, and so all have {shape}; "
            "without it, or with a larger one, they would show more"
        )
    enlarged = [view for view in views if scales[view] > 1.005]
    if enlarged:
        notes.append(
            f"{_listed([names[view] for view in enlarged])} enlarged to {shape}, which adds nothing; "
            "larger photographs would show more"
        )
    cropped = [view for view in views if not _same_shape(sizes[view][0] / sizes[view][1], aspect)]
    if cropped:
        listed = [
            f"{names[view]} ({'portrait, ' if (sizes[view][0] < sizes[view][1]) != (aspect < 1) else ''}keeps "
            f"{100 * _kept(sizes[view][0] / sizes[view][1], aspect):.0f} %)"
            for view in cropped
        ]
        notes.append(
            f"{len(cropped)} of {len(names)} photographs have another shape: cropped to the middle: {_listed(listed)}"
        )
    return notes


def _notes_on_lenses(names: tuple[str, ...], headers: list[PhotographHeader], cameras: int) -> list[str]:
    notes = []
    unknown = [view for view, header in enumerate(headers) if header.lens.focal is None]
    if unknown:
        of_which = "" if len(unknown) == len(headers) else f" of {_listed([names[view] for view in unknown])}"
        found = "it is found from the photographs" if len(headers) > 1 else "it comes with the depth"
        notes.append(f"no focal length in EXIF{of_which}: {found}")
    doubted = [f"{names[view]}: {headers[view].lens.doubt}" for view in unknown if headers[view].lens.doubt]
    if doubted:
        notes.append(f"EXIF was not used for {_listed(doubted)}")
    if cameras > 1:
        notes.append(f"the photographs come from {cameras} cameras (devices, lenses, zooms or sizes)")
    return notes


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
