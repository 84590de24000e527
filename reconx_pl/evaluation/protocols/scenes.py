"""The scenes of a protocol: where they lie below the root of the data, and the views of an entry, loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reconx_pl.data.formats.pixelsplat import chunk_files
from reconx_pl.data.formats.readers import UnreadableScene, read_scenes
from reconx_pl.data.formats.scene import RawScene
from reconx_pl.data.packing.clip_sampling import MIN_POINTS, crop_depth, crop_images, cut_geometry
from reconx_pl.data.shards.manifest import Manifest
from reconx_pl.data.shards.stream import read_clips
from reconx_pl.errors import BadDataError, BadSceneError, ConfigurationError, ReconXError
from reconx_pl.evaluation.entry_views import EntryViews
from reconx_pl.evaluation.protocols.index import ProtocolEntry
from reconx_pl.evaluation.protocols.protocol import Protocol
from reconx_pl.evaluation.task import FROM_CONTEXT_DEPTH, FROM_POINTS
from reconx_pl.geometry.cameras import resize_and_crop
from reconx_pl.reconstruction.pair_clips import CLOUD_POINTS
from reconx_pl.types import Cameras, Clip


def views_of(raw: RawScene, entry: ProtocolEntry, protocol: Protocol) -> EntryViews:
    """The views of an entry: images and cameras at the size of the protocol, and the geometry that it allows.

    Args:
        raw: the scene.
        entry: of the protocol; the rule gives the views that it does not say.
        protocol: size, rule, and where points may come from; what an estimator finds is no part of the views.

    Raises:
        BadSceneError: too few frames, images of different sizes, a target without the mask that the protocol asks for.
        BadDataError: an image that cannot be decoded; names it.
    """
    entry = protocol.resolve(entry, len(raw))
    size = protocol.height, protocol.width
    context_images, context_cameras = crop_images(raw, entry.context, *size)
    target_images, target_cameras = crop_images(raw, entry.target, *size)
    seen = _allowed(replace(raw, frames=tuple(raw.frames[index] for index in entry.context)), protocol)
    depth, confidence, cloud = cut_geometry(seen, context_images, context_cameras, CLOUD_POINTS)
    if cloud is not None and len(cloud) < MIN_POINTS:
        cloud = None
    return EntryViews(
        key=entry.key,
        dataset=protocol.dataset,
        scene=entry.scene,
        context_images=context_images.float() / 255.0,
        context_cameras=context_cameras.to(dtype=torch.float32),
        context_indices=entry.context,
        target_images=target_images.float() / 255.0,
        target_cameras=target_cameras.to(dtype=torch.float32),
        target_indices=entry.target,
        target_masks=None if protocol.masks == "none" else _masks(raw, entry.target, target_cameras),
        context_depth=depth,
        context_confidence=confidence,
        cloud=cloud,
        geometry="" if cloud is None else FROM_POINTS if depth is None else FROM_CONTEXT_DEPTH,
        fps=protocol.fps,
        caption=raw.caption,
    )


def views_of_clip(clip: Clip, protocol: Protocol) -> EntryViews:
    """The views of a packed clip: its first and last frame, and targets among the others.

    Raises:
        BadSceneError: too few frames, or packed at another size.
    """
    if clip.frames.shape[-2:] != (protocol.height, protocol.width):
        height, width = clip.frames.shape[-2:]
        raise BadSceneError(
            f"{protocol.name}, {clip.key}: packed at {height} x {width}, the protocol is of {protocol.height} x "
            f"{protocol.width} pixels; pack it again"
        )
    entry = protocol.resolve(ProtocolEntry(clip.key, clip.scene), len(clip.cameras))
    context, target = list(entry.context), list(entry.target)
    return EntryViews(
        key=clip.key,
        dataset=clip.dataset,
        scene=clip.scene,
        context_images=clip.images[context],
        context_cameras=clip.cameras[context],
        context_indices=tuple(clip.frame_indices[index] for index in context),
        target_images=clip.images[target],
        target_cameras=clip.cameras[target],
        target_indices=tuple(clip.frame_indices[index] for index in target),
        context_depth=clip.depth,
        context_confidence=clip.confidence,
        cloud=clip.cloud,
        geometry=clip.geometry or (FROM_POINTS if clip.depth is None else FROM_CONTEXT_DEPTH),
        fps=clip.fps,
        caption=clip.caption,
    )


class ProtocolScenes:
    """The entries of a protocol and their scenes on disk.

    Args:
        protocol: the protocol.
        root: folder of the data sets; the protocol says where in it.
        indices: folder of the index files.
    """

    def __init__(self, protocol: Protocol, root: Path, indices: Path) -> None:
        self.protocol, self.root, self.indices = protocol, Path(root), Path(indices)
        self._chunk: tuple[Path, dict[str, RawScene]] | None = None  # the one that was read last

    @cached_property
    def entries(self) -> list[ProtocolEntry]:
        """All entries of the protocol, in its order; see ``Protocol.list_entries``.

        Raises:
            BadDataError: as there, and shards that are not there or were packed in another way.
        """
        if self.protocol.format == "shards":
            return [ProtocolEntry(key, key) for key in self._manifest().keys]
        return self.protocol.list_entries(self.indices)

    def choose(self, wanted: Sequence[str] | None) -> list[ProtocolEntry]:
        """Some of the entries, in the protocol's order.

        Args:
            wanted: keys of entries, or names of scenes, which take all their entries; or one number, which takes so
                many entries, evenly spaced; None takes all.

        Raises:
            ConfigurationError: a name that is not in the protocol, or more entries than it has.
        """
        if not wanted:
            return self.entries
        names = {name for entry in self.entries for name in (entry.key, entry.scene)}
        if len(wanted) == 1 and wanted[0].isdigit() and wanted[0] not in names:
            count = int(wanted[0])
            if not 1 <= count <= len(self.entries):
                raise ConfigurationError(f"{self.protocol.name} has {len(self.entries)} entries, not {count}")
            return [self.entries[place * len(self.entries) // count] for place in range(count)]
        if unknown := sorted(set(wanted) - names):
            raise ConfigurationError(
                f"{self.protocol.name} has no scene or entry {', '.join(unknown)}; `reconx protocols show "
                f"{self.protocol.name}` lists some"
            )
        return [entry for entry in self.entries if {entry.key, entry.scene} & set(wanted)]

    def views(self, entry: ProtocolEntry) -> EntryViews:
        """Read the scene of an entry; see ``views_of`` and ``views_of_clip``."""
        if self.protocol.format == "shards":
            return views_of_clip(next(read_clips(self._place(), [entry.key])), self.protocol)
        return views_of(self.read(entry.scene), entry, self.protocol)

    def read(self, scene: str) -> RawScene:
        """A scene by name; images are read when they are asked for.

        Raises:
            BadDataError: it is not there or cannot be read; names the place.
        """
        if self.protocol.format == "pixelsplat":
            return self._from_chunk(scene)
        place = self._place(scene)
        if not place.exists():
            raise BadDataError(f"{place} does not exist; {self._expected()}")
        found = list(read_scenes(place, self.protocol.format, **self.protocol.options))
        if len(found) != 1:
            raise BadDataError(f"{place}: holds {len(found)} scenes, expected {scene} alone")
        (raw,) = found
        if isinstance(raw, UnreadableScene):
            raise BadDataError(f"{place}: {raw.reason}")
        return raw

    def missing(self, read: bool = False) -> Iterator[tuple[ProtocolEntry, str]]:
        """For each entry why it could not be evaluated, "" where nothing is known against it.

        Args:
            read: read every scene and count its frames; otherwise only see whether it is there.
        """
        for entry in self.entries:
            try:
                if self.protocol.format == "shards":
                    why = ""  # the manifest lists it, and that is where the entries are from
                elif read:
                    self.protocol.resolve(entry, len(self.read(entry.scene)))
                    why = ""
                elif self.protocol.format == "pixelsplat":
                    self._chunk_of(entry.scene)
                    why = ""
                else:
                    place = self._place(entry.scene)
                    why = "" if place.exists() else f"{place} does not exist"
            except ReconXError as error:
                why = str(error)
            yield entry, why

    def _manifest(self) -> Manifest:
        manifest = Manifest.load(self._place())
        packed = {**manifest.settings, "clips": manifest.clips}
        wrong = [
            f"{name} {packed.get(name)!r} instead of {value!r}"
            for name, value in self.protocol.options.items()
            if packed.get(name) != value
        ]
        if wrong:
            raise BadDataError(f"{manifest.folder}: not the shards of {self.protocol.name}: {', '.join(wrong)}")
        return manifest

    def _place(self, scene: str = "") -> Path:
        return self.root / self.protocol.path.replace("{scene}", scene)

    def _expected(self) -> str:
        return f"{self.protocol.name} looks for {self.protocol.path} below {self.root} (docs/protocols.md)"

    @cached_property
    def _chunks(self) -> dict[str, Path]:
        """The chunk of each scene, by ``index.json`` where there is one, else by reading all chunks."""
        folder = self._place()
        if not folder.exists():
            raise BadDataError(f"{folder} does not exist; {self._expected()}")
        chunks, places = chunk_files(folder), {}
        for parent in dict.fromkeys(chunk.parent for chunk in chunks):
            index = parent / "index.json"
            if index.is_file():  # chunk_files has checked it
                listed = json.loads(index.read_text(encoding="utf-8"))
                places.update({scene: parent / name for scene, name in listed.items()})
            else:
                for chunk in (chunk for chunk in chunks if chunk.parent == parent):
                    places.update(dict.fromkeys(self._read_chunk(chunk), chunk))
        return places

    def _chunk_of(self, scene: str) -> Path:
        if scene not in self._chunks:
            raise BadDataError(f"{self._place()}: no chunk has the scene {scene}; {self._expected()}")
        return self._chunks[scene]

    def _from_chunk(self, scene: str) -> RawScene:
        chunk = self._chunk_of(scene)
        if self._chunk is None or self._chunk[0] != chunk:
            self._chunk = None  # one chunk in memory, not two
            self._chunk = chunk, self._read_chunk(chunk)
        found = self._chunk[1].get(scene)
        if found is None:
            raise BadDataError(f"{chunk}: index.json says that {scene} is in it, and it is not; fetch both again")
        return found

    def _read_chunk(self, chunk: Path) -> dict[str, RawScene]:
        scenes = read_scenes(chunk, "pixelsplat", **self.protocol.options)
        return {raw.name: raw for raw in scenes if isinstance(raw, RawScene)}


def _allowed(raw: RawScene, protocol: Protocol) -> RawScene:
    """The scene without the geometry that the protocol does not allow."""
    if protocol.geometry != "scene":
        raw = replace(raw, cloud=None, frames=tuple(replace(frame, observed=None) for frame in raw.frames))
    if protocol.geometry == "inputs":
        raw = replace(raw, frames=tuple(replace(frame, load_depth=None) for frame in raw.frames))
    return raw


def _masks(raw: RawScene, targets: Sequence[int], cameras: Cameras) -> Tensor:  # [V, H, W] bool
    """Masks at the size of the images; the nearest value, as for depth."""
    frames = [raw.frames[index] for index in targets]
    _, resized, offset = resize_and_crop(replace(raw, frames=tuple(frames)).cameras, cameras.height, cameras.width)
    masks = []
    for frame in frames:
        if frame.load_mask is None:
            raise BadSceneError(f"{frame.name}: the protocol scores inside masks, and this view has none")
        masks.append(crop_depth(frame.load_mask().astype(np.float32), cameras, resized, offset) > 0.5)
    return torch.stack(masks)
