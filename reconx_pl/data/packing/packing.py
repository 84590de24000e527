"""From raw scenes to shards: read, check, cut, write; restartable, with an account of what was left out."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reconx_pl.data.formats.readers import UnreadableScene, read_scenes
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.data.packing.clip_sampling import PackOptions, choose_clips, clip_key, plain, scene_clip
from reconx_pl.data.packing.epipolar import draw_epipolar_check
from reconx_pl.data.packing.overlap import view_overlap
from reconx_pl.data.packing.scene_choice import SceneChoice, Split, listed_scenes
from reconx_pl.data.shards.writer import ShardWriter
from reconx_pl.errors import BadDataError, BadSceneError, ReconXError
from reconx_pl.types import Progress

logger = logging.getLogger(__name__)

# they came after the first shards were packed: left out of the settings at their defaults, so that folders go on
_LATER_OPTIONS = {"jitter": 0.0, "min_overlap": 0.0, "max_overlap": 1.0}
_CHECKED_SCENES = 8  # pictures that one run of --check draws; a wrong convention shows in the first


@dataclass
class PackReport:
    """What became of the scenes; nothing is left out without a word here.

    Attributes:
        folder: where the shards are.
        scenes: scenes that gave at least one clip, now or in an earlier run.
        packed: clips written by this run.
        resumed: clips that an earlier run had written.
        skipped: (scene or clip, reason) of everything that could not be packed.
        excluded: scenes left out because a list names them.
        unmatched: names of those lists that no scene has.
        other_splits: number of scenes left out because they belong to another part of the split.
        without_cloud: keys of the clips packed without a cloud in this run.
        smallest_cloud: points of the smallest cloud written by this run; None if there is none.
        checks: median epipolar distance, pixels, of each scene that was checked.
    """

    folder: Path
    scenes: int = 0
    packed: int = 0
    resumed: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    other_splits: int = 0
    without_cloud: list[str] = field(default_factory=list)
    smallest_cloud: int | None = None
    checks: dict[str, float] = field(default_factory=dict)


def pack_command(
    source: Path,
    out: Path,
    format: str = "auto",
    options: PackOptions | None = None,
    check: bool = False,
    *,
    dataset: str | None = None,
    images: str | None = None,
    undistort: bool | None = None,
    crop: Literal["auto", "none", "centre"] | None = None,
    missing: Literal["error", "skip"] | None = None,
    videos: str | None = None,
    light: int | None = None,
    rate: float | None = None,
    focal: float | None = None,
    exclude: Path | list[Path] | None = None,
    split: Split | None = None,
    val_share: float = 0.05,
    test_share: float = 0.05,
    split_seed: int = 0,
    progress: Progress | None = None,
) -> PackReport:
    """Pack everything in ``source`` into shards in ``out``; run it again to go on after an interruption.

    Args:
        source: a scene, a folder of scenes, or chunks.
        out: folder of the shards.
        format: ``auto``, posed, transforms, colmap, llff, realestate10k, pixelsplat, dtu, idr or video.
        options: how clips are cut.
        check: draw epipolar lines of the first scenes into ``out``/check, one picture a scene.
        dataset: name of the data set in the shards; by default what the reader says.
        images: folder of images where it is not the usual one (transforms, colmap, llff, realestate10k, idr).
        undistort: take lens distortion out of the images (transforms, colmap; on unless set to false).
        crop: how frames were cut out of the video (realestate10k) or out of DTU's photographs (idr).
        missing: whether images that a ``transforms.json`` lists and that are not there are an error.
        videos: video, or folder of videos, that the camera files count time in (realestate10k).
        light: illumination of DTU's photographs, 0 to 6 (dtu; 3 unless set).
        rate: frames a second that are taken of a video (video; 4 unless set).
        focal: focal length of a video's frames, pixels, where it is known (video).
        exclude: list, or lists, of scenes that are not packed, such as those that a protocol tests on: evaluation
            indices (JSON, pixelSplat's format) or text with one name a line.
        split: pack one part of the scenes only: train, val or test, by a hash of the scene's name; adding scenes
            moves no other. None packs all.
        val_share: share of the scenes in val.
        test_share: share of the scenes in test.
        split_seed: another seed is another split.
        progress: counts clips, after every scene.

    Raises:
        BadDataError: nothing to read there, or a list that cannot be read.
        BadSceneError: nothing could be packed; lists the reasons.
        ConfigurationError: options that contradict each other, or the folder's earlier settings.
    """
    options = options or PackOptions()
    given: dict[str, Any] = {"images": images, "undistort": undistort, "crop": crop, "missing": missing}
    given |= {"videos": videos, "light": light, "rate": rate, "focal": focal}
    reader = {key: value for key, value in given.items() if value is not None}
    excluded = listed_scenes([exclude] if isinstance(exclude, Path) else exclude or [])
    choice = SceneChoice(split, val_share, test_share, split_seed, excluded)
    scenes = choice.keep(read_scenes(source, format, **reader))
    if dataset is not None:
        scenes = (replace(scene, dataset=dataset) if isinstance(scene, RawScene) else scene for scene in scenes)
    medians: dict[str, float] = {}
    if check:
        scenes = _checked(scenes, out / "check", medians)
    settings = {"format": format, "dataset": dataset, **reader, **choice.settings}
    report = pack(scenes, out, options, progress, settings, choice)
    report.checks = medians
    return report


def pack(
    scenes: Iterable[RawScene | UnreadableScene],
    folder: Path,
    options: PackOptions,
    progress: Progress | None = None,
    settings: dict[str, Any] | None = None,
    choice: SceneChoice | None = None,
) -> PackReport:
    """Write clips of the scenes into shards. Clips that are in the folder already are neither read nor written again.

    Args:
        scenes: read one at a time.
        folder: of the shards.
        options: how clips are cut.
        progress: counts clips, after every scene.
        settings: what else shaped the clips, stored in the manifest beside the options.
        choice: what has been left out of ``scenes`` before, for the report.

    Raises:
        BadSceneError: nothing could be packed; lists the reasons.
        ConfigurationError: the folder was packed with other settings.
    """
    report = PackReport(folder)
    seen: set[str] = set()
    clip_settings = {
        key: value
        for key, value in asdict(options).items()
        if key not in ("quality", "clips_per_shard") and _LATER_OPTIONS.get(key) != value
    }
    with ShardWriter(
        folder, options.clips_per_shard, settings={**clip_settings, **(settings or {})}, quality=options.quality
    ) as writer:
        for scene in scenes:
            if isinstance(scene, UnreadableScene):
                _skip(report, scene.name, scene.reason)
            else:
                _pack_scene(scene, writer, options, report, seen)
            if progress is not None:
                progress(f"packing {scene.name}", report.packed + report.resumed, None)
    if choice is not None:
        _account(choice, report)
    if not report.packed and not report.resumed:
        reasons = "\n".join(f"  {name}: {reason}" for name, reason in report.skipped) or "  there was no scene"
        if report.excluded or report.other_splits:
            reasons += f"\n  {len(report.excluded)} scenes are excluded, {report.other_splits} are of other splits"
        raise BadSceneError(f"nothing was packed into {folder}:\n{reasons}")
    if report.without_cloud:
        logger.warning(
            "%s: %d of %d clips have no cloud, because their scenes came without depth and points: train on them "
            "with points=0, or add a cache of their geometry",
            folder, len(report.without_cloud), report.packed,
        )  # fmt: skip
    if report.smallest_cloud is not None and report.smallest_cloud < options.points:
        logger.warning(
            "%s: the smallest cloud has %d points, fewer than the %d asked for: stream with points=%d or less",
            folder, report.smallest_cloud, options.points, report.smallest_cloud,
        )  # fmt: skip
    return report


def _pack_scene(raw: RawScene, writer: ShardWriter, options: PackOptions, report: PackReport, seen: set[str]) -> None:
    identity = zlib.crc32(f"{raw.dataset}/{raw.name}".encode())
    try:
        clips = _clips(raw, options, np.random.default_rng([options.seed, identity]))
    except BadSceneError as error:
        _skip(report, raw.name, str(error))
        return
    if len(clips) < options.clips_per_scene:
        logger.info(
            "%s: %d of %d clips, there are no more that differ", raw.source, len(clips), options.clips_per_scene
        )
    written = 0
    for number, frames in enumerate(clips):
        key = clip_key(raw.dataset, raw.name, number)
        if key in seen:
            _skip(report, key, f"{raw.source}: another scene has this name; rename the folder, or pack it apart")
            continue
        seen.add(key)
        if key in writer.done:
            report.resumed += 1
            written += 1
            continue
        try:
            clip = scene_clip(
                raw,
                frames,
                options.height,
                options.width,
                key=key,
                points=options.points,
                min_points=options.min_points,
                default_fps=options.default_fps,
                seed=options.seed + identity,
            )
        except (BadDataError, BadSceneError) as error:
            _skip(report, key, str(error))
            continue
        writer.write(clip)
        written += 1
        report.packed += 1
        if clip.cloud is None:
            report.without_cloud.append(key)
        else:
            report.smallest_cloud = min(report.smallest_cloud or len(clip.cloud), len(clip.cloud))
    report.scenes += bool(written)


def _clips(raw: RawScene, options: PackOptions, generator: np.random.Generator) -> list[Sequence[int]]:
    """Frame indices of the clips of a scene; BadSceneError, with the reason, if there is none."""
    seen: list[float | None] = []

    def accept(first: int, last: int) -> bool:
        overlap = view_overlap(raw, first, last, options.height, options.width)
        seen.append(overlap)
        return overlap is not None and options.min_overlap <= overlap <= options.max_overlap

    bounded = options.min_overlap > 0 or options.max_overlap < 1
    clips = choose_clips(len(raw), options, generator, accept if bounded else None)
    if clips:
        return clips
    if not seen:
        gap = f", min_gap {options.min_gap}, max_gap {options.max_gap}" if options.min_gap or options.max_gap else ""
        raise BadSceneError(
            f"{raw.source}: {len(raw)} frames are too few for a clip of {options.frames} "
            f"(stride {options.min_stride} to {options.max_stride}{gap}); lower frames or the bounds"
        )
    known = [overlap for overlap in seen if overlap is not None]
    if not known:
        raise BadSceneError(
            f"{raw.source}: bounds of the overlap need depth or points, which this scene has not; pack it without "
            "them, or give it points (reconx geometry)"
        )
    raise BadSceneError(
        f"{raw.source}: first and last frame of {len(seen)} clips overlap by {min(known):.2f} to {max(known):.2f}, "
        f"never by {options.min_overlap:g} to {options.max_overlap:g}; change the bounds, or the strides"
    )


def _account(choice: SceneChoice, report: PackReport) -> None:
    """What was left out on purpose, into the report and the log."""
    report.excluded, report.other_splits = list(choice.left_out), choice.other_splits
    report.unmatched = choice.unmatched
    if choice.excluded:
        some = ", ".join(report.unmatched[:3])
        logger.info(
            "%s: %d scenes are excluded by name; %d of the %d names given match no scene here%s",
            report.folder, len(report.excluded), len(report.unmatched), len(choice.excluded),
            f" ({some}{', ...' if len(report.unmatched) > 3 else ''})" if some else "",
        )  # fmt: skip


def _skip(report: PackReport, name: str, reason: str) -> None:
    logger.warning("skipped %s: %s", name, reason)
    report.skipped.append((name, reason))


def _checked(
    scenes: Iterator[RawScene | UnreadableScene], folder: Path, medians: dict[str, float]
) -> Iterator[RawScene | UnreadableScene]:
    for number, scene in enumerate(scenes):
        if isinstance(scene, RawScene) and number < _CHECKED_SCENES:
            try:
                medians[scene.name] = draw_epipolar_check(scene, folder / f"{plain(scene.name)}.png")
            except ReconXError as error:
                logger.warning("no epipolar check of %s: %s", scene.name, error)
        yield scene


__all__ = ["PackOptions", "PackReport", "choose_clips", "clip_key", "pack", "pack_command", "scene_clip"]
