"""Protocols: which views of which scenes, at which size, scored how. Files of ``data/protocols``.

A protocol is data. Whatever in it can change a number goes into its hash, and the hash into every result.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from reconx_pl.data.formats.readers import READERS
from reconx_pl.errors import BadDataError, BadSceneError, ConfigurationError
from reconx_pl.evaluation.protocols.index import ProtocolEntry, parse_index, read_index
from reconx_pl.metrics.image import METRICS
from reconx_pl.renamed import first_key

#: Raise it when code changes what the same protocol gives.
REVISION = 1


@dataclass(frozen=True)
class IndexFile:
    """A published index file, and which of its entries count.

    Args:
        file: name under which it is kept.
        sha256: of its bytes.
        url: where its publisher has it.
        expected: entries that are left of it; other numbers are an error.
        use: "entries" takes scenes and views, "scenes" takes the names of the scenes alone; a rule then says the views.
        min_gap: least distance of the first and the last context frame.
        scene: regular expression for a whole key, whose first group is the scene; None takes the key.
    """

    file: str
    sha256: str
    url: str
    expected: int
    use: Literal["entries", "scenes"] = "entries"
    min_gap: int = 0
    scene: str | None = None


@dataclass(frozen=True)
class ViewRule:
    """Views of a scene of any number of frames.

    Args:
        contexts: views that a method sees, evenly spaced, ends included. A file may list several numbers; each is a
            protocol of its own.
        targets_every: n scores every n-th frame, from the first of those that are asked; 1 takes all.
        choose_first: "contexts" spaces the context views over all frames, and targets are every n-th of the rest;
            "targets" takes every n-th of all frames, and context views are spaced over the rest, so that all numbers of
            context views have the same targets.
    """

    contexts: int
    targets_every: int = 8
    choose_first: Literal["contexts", "targets"] = "contexts"

    def __post_init__(self) -> None:
        if self.contexts < 2 or self.targets_every < 1:
            raise ConfigurationError("a rule needs two contexts or more, and targets_every of 1 or more")

    def split(self, frames: int, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Context and target frames of a scene.

        Raises:
            BadSceneError: too few frames.
        """
        every = list(range(frames))
        if self.choose_first == "contexts":
            context = _evenly(every, self.contexts)
            target = [index for index in every if index not in context][:: self.targets_every]
        else:
            target = every[:: self.targets_every]
            context = _evenly([index for index in every if index not in target], self.contexts)
        if len(set(context)) < self.contexts or not target:
            raise BadSceneError(
                f"{name}: {frames} frames are too few for {self.contexts} context views and a target every "
                f"{self.targets_every}"
            )
        return tuple(context), tuple(target)


@dataclass(frozen=True)
class PosePolicy:
    """Which cameras are used where.

    Args:
        generated: of the frames between context views: "aligned" finds them by a global alignment of all frames with
            the context cameras held fixed, "interpolated" moves between the context cameras. Neither looks at a target.
        context: of the context views: those of the data set.
        target: of the scored views: those of the data set.
        test_pose_refinement: steps by which the cameras of targets are refined on the targets, for a row of its own;
            the other rows never see it. 0 = no such row.
    """

    generated: Literal["aligned", "interpolated"]
    context: Literal["dataset"] = "dataset"
    target: Literal["dataset"] = "dataset"
    test_pose_refinement: int = 0

    def __post_init__(self) -> None:
        if self.test_pose_refinement < 0:
            raise ConfigurationError("test_pose_refinement is a number of steps, 0 or more")

    def __str__(self) -> str:
        generated = {
            "aligned": "generated frames by global alignment with those held fixed",
            "interpolated": "generated frames interpolated between them",
        }[self.generated]
        steps = self.test_pose_refinement
        refined = f"; a row of its own after {steps} steps of refining the cameras of targets" if steps else ""
        return f"context views at data set poses, {generated}, targets at data set poses{refined}"


@dataclass(frozen=True)
class PublishedRow:
    """A row of somebody's table.

    Args:
        method: name.
        psnr: dB.
        ssim, lpips: where they were published.
        contexts: of a rule with several numbers of context views, the one that this row is for.
    """

    method: str
    psnr: float
    ssim: float | None = None
    lpips: float | None = None
    contexts: int | None = None


@dataclass(frozen=True)
class Protocol:
    """One protocol.

    Args:
        name: of the protocol, and of its file.
        title: for people.
        dataset: name of the data set.
        format: a raw format (a key of ``data.formats.READERS``), or "shards" for packed clips, whose first and last
            frame are the context views.
        path: below the root of the data: a scene's folder with ``{scene}`` in it, or a folder of chunks or of shards.
        height: rows of the images, pixels.
        width: columns of the images, pixels.
        poses: which cameras are used where.
        geometry: where a method's first points may come from. "inputs": images and poses of the context views, by an
            estimator. "depth": their depth maps too, where the data have them. "scene": the points of the scene's own
            reconstruction too, those that project into a context view.
        options: of the format's reader; of shards, settings that they have to have been packed with (those of their
            manifest) and the number of their ``clips``, since the hash has nothing else of their content.
        index: a published index.
        scenes: names, with a rule for their views.
        entries: key -> {scene, context, target}, views by hand; the key is the scene's name where none is given.
        views: rule for the views, of ``scenes``, of the scenes of an index, or of shards (``targets_every`` alone).
        resize: images are resized with Lanczos so that the short side fits.
        crop: then cut around the centre; intrinsics follow.
        metrics: of "psnr", "ssim", "lpips".
        masks: "none" scores targets whole, "targets" inside the data set's masks, "white" as RegNeRF does; see
            ``settings.EvaluationConfig``.
        fps: frames a second that a generated clip is said to have.
        source: where the published rows stand.
        published: rows to stand beside ours.
        notes: what the papers do not say, and what was decided.
    """

    name: str
    title: str
    dataset: str
    format: str
    path: str
    height: int
    width: int
    poses: PosePolicy
    geometry: Literal["inputs", "depth", "scene"] = "inputs"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    index: IndexFile | None = None
    scenes: tuple[str, ...] = ()
    entries: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    views: ViewRule | None = None
    resize: Literal["lanczos_short_side"] = "lanczos_short_side"
    crop: Literal["centre"] = "centre"
    metrics: tuple[str, ...] = METRICS
    masks: Literal["none", "targets", "white"] = "none"
    fps: float = 8.0
    source: str = ""
    published: tuple[PublishedRow, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.format not in (*READERS, "shards"):
            raise ConfigurationError(f"format is {self.format!r}; choose from {', '.join(READERS)}, shards")
        if min(self.height, self.width) < 8 or not self.fps > 0:
            raise ConfigurationError("height and width must be 8 pixels or more and fps positive")
        if not self.metrics or set(self.metrics) - set(METRICS):
            raise ConfigurationError(f"metrics are {list(self.metrics)}; choose from {', '.join(METRICS)}")
        listed = [name for name in ("index", "scenes", "entries") if getattr(self, name)]
        if len(listed) != (self.format != "shards"):
            raise ConfigurationError(
                f"name the scenes by exactly one of index, scenes, entries (there are: {', '.join(listed) or 'none'}); "
                "shards bring their own"
            )
        ruled = bool(self.scenes) or self.format == "shards" or (self.index is not None and self.index.use == "scenes")
        if ruled != (self.views is not None):
            raise ConfigurationError(
                "views is a rule for scenes, for an index with use: scenes, and for shards; the entries of an index, "
                "or those by hand, say their own"
            )
        if self.format == "shards" and self.views is not None and self.views.contexts != 2:
            raise ConfigurationError("a clip of shards has two context views")
        if self.format == "shards" and self.geometry != "scene":
            raise ConfigurationError("clips of shards bring their points: geometry has to be 'scene'")
        if self.format not in ("pixelsplat", "shards") and "{scene}" not in self.path:
            raise ConfigurationError(f"path is {self.path!r}; {{scene}} has to stand in it where the scene's name does")
        if len(set(self.scenes)) < len(self.scenes):
            raise ConfigurationError("a scene is listed twice")

    @property
    def hashed(self) -> dict[str, Any]:
        """What the hash covers: everything that can change a number; the index by its checksum.

        Keys have their first names: a hash outlives a renaming.
        """
        content = dataclasses.asdict(self)
        for name in ("name", "title", "path", "source", "published", "notes"):
            del content[name]
        if self.index is not None:
            for name in ("file", "url", "expected"):
                del content["index"][name]
        content["poses"][first_key("poses", "generated")] = content["poses"].pop("generated")
        return {"revision": REVISION, **content}

    @property
    def hash(self) -> str:
        """SHA-256 of ``hashed`` as JSON with sorted keys."""
        text = json.dumps(self.hashed, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def list_entries(self, indices: Path) -> list[ProtocolEntry]:
        """All entries, in the order of the index or of the file; those of a rule without their views.

        Args:
            indices: folder of the index files (``fetch.index_folder``).

        Raises:
            BadDataError: the index is missing, has another checksum or another number of entries.
            ConfigurationError: shards, whose entries are their clips (``scenes.ProtocolScenes``).
        """
        if self.format == "shards":
            raise ConfigurationError(f"{self.name}: the entries are the clips of its shards; read them there")
        if self.scenes:
            return [ProtocolEntry(scene, scene) for scene in self.scenes]
        if self.entries:
            found = parse_index(self.entries, self.name)
            return [
                replace(entry, scene=str(self.entries[entry.key].get("scene", entry.scene))) for entry in found.entries
            ]
        assert self.index is not None
        file = Path(indices) / self.index.file
        if not file.is_file():
            raise BadDataError(f"{file} does not exist; get it with `reconx protocols fetch {self.name}`")
        listed = read_index(file, self.index.sha256, self.index.scene)
        chosen = [entry for entry in listed.entries if entry.gap >= self.index.min_gap]
        if self.index.use == "scenes":
            chosen = [ProtocolEntry(scene, scene) for scene in dict.fromkeys(entry.scene for entry in chosen)]
        if len(chosen) != self.index.expected:
            raise BadDataError(
                f"{file}: {len(chosen)} of its entries belong to {self.name}, which expects {self.index.expected}"
            )
        return chosen

    def resolve(self, entry: ProtocolEntry, frames: int) -> ProtocolEntry:
        """The entry with its views, for a scene of ``frames`` frames.

        Raises:
            BadSceneError: the scene has too few frames; names it.
        """
        if not entry.context:
            assert self.views is not None
            context, target = self.views.split(frames, f"{self.name}, scene {entry.scene}")
            return replace(entry, context=context, target=target)
        last = max(*entry.context, *entry.target)
        if last >= frames:
            raise BadSceneError(
                f"{self.name}, {entry.key}: frame {last} is asked for and scene {entry.scene} has {frames} frames; "
                "it is not the scene that the index was made for"
            )
        return entry


def _evenly(indices: list[int], count: int) -> list[int]:
    """``count`` of the indices, evenly spaced, ends included; halves are rounded up."""
    return [indices[(2 * place * (len(indices) - 1) + count - 1) // (2 * (count - 1))] for place in range(count)]
