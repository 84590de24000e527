"""Results on disk: one folder a scene, every file complete or absent, and the summary over scenes."""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reconx_pl.evaluation.baselines import METHODS
from reconx_pl.evaluation.coverage import HALVES, LEAST
from reconx_pl.evaluation.entry_views import EntryViews
from reconx_pl.evaluation.scene_result import PARTS, SceneResult, Scores
from reconx_pl.evaluation.settings import EvaluationConfig
from reconx_pl.evaluation.task import HeldOutViews
from reconx_pl.files.json_files import Record, read_json
from reconx_pl.types import AlignmentQuality, Clip
from reconx_pl.version import __version__

if TYPE_CHECKING:
    from reconx_pl.metrics.scene_means import SceneMetrics

LAYOUT = 2  # of a record; one of another layout is not taken for finished, and is read by the report alone
RESULT, ERROR, SUMMARY = "result.json", "error.json", "results.json"
GROUPS = {  # of a scene -> in the summary
    "scores": "mean",
    "held_out_scores": "mean_held_out",
    "covered_scores": "mean_covered",
    "uncovered_scores": "mean_uncovered",
}


def alignment_record(quality: AlignmentQuality | None) -> Record | None:
    """How well found poses agree with those of the data set, as JSON; None where no poses were found."""
    if quality is None:
        return None
    return {
        "rotation_degrees": list(quality.rotation_degrees),
        "translation_percent": list(quality.translation_percent),
        "suspicious": quality.suspicious,
        "text": str(quality),
    }


def scene_folder(out: Path, key: str) -> Path:
    """Folder of a scene; a key that is no good folder name gets a digest, so that no two share a folder."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", key).strip(".") or "scene"
    if name != key:
        name = f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return out / "scenes" / name


def clip_digest(clip: Clip, held_out: HeldOutViews | None = None) -> str:
    """SHA-256 of what a clip brings into its scores: a scene packed anew under its old name is another scene."""
    parts = [clip.frames, clip.cameras.world_to_camera, clip.cameras.intrinsics, clip.confidence]
    parts.append(torch.zeros(0) if clip.depth is None else clip.depth)  # has a place, as confidence may be absent
    parts += [clip.cloud.points, clip.cloud.colors] if clip.cloud is not None else []
    if held_out is not None:
        parts += [held_out.images, held_out.cameras.world_to_camera, held_out.cameras.intrinsics]
    return _digest(parts, repr((clip.fps, clip.caption)), clip.geometry)


def views_digest(views: EntryViews) -> str:
    """As ``clip_digest``, of an entry of a protocol."""
    parts = [views.context_images, views.context_cameras.world_to_camera, views.context_cameras.intrinsics]
    parts += [views.target_images, views.target_cameras.world_to_camera, views.target_cameras.intrinsics]
    # what is not there has a place nonetheless: depth must not be taken for masks
    cloud = None if views.cloud is None else torch.cat([views.cloud.points, views.cloud.colors], dim=1)
    for part in (views.target_masks, views.context_depth, views.context_confidence, cloud):
        parts.append(torch.zeros(0) if part is None else part)
    return _digest(parts, repr((views.fps, views.caption)), views.geometry)


def _digest(parts: Sequence[Tensor | None], *texts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if part is not None:
            digest.update(str(tuple(part.shape)).encode())
            digest.update(part.detach().cpu().contiguous().numpy().tobytes())
    for text in texts:
        digest.update(text.encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Provenance:
    """Where a result comes from, beside the scene itself: what it has to agree in with this run to count as done.

    Args:
        config: settings.
        model: who generated.
        protocol: of a protocol, with its name and hash; None for clips.
        estimator: who found points or poses in the evaluation; None where nobody did.
    """

    config: EvaluationConfig
    model: str
    protocol: Mapping[str, Any] | str | None = None
    estimator: str | None = None

    def as_record(self) -> Record:
        protocol = dict(self.protocol) if isinstance(self.protocol, Mapping) else self.protocol
        return {
            "layout": LAYOUT,
            "config_hash": self.config.hash,
            "model": self.model,
            "protocol": json.loads(json.dumps(protocol, default=str)),  # as it will be read back
            "estimator": self.estimator,
        }

    def of(self, record: Record) -> bool:
        """Whether a record comes from here."""
        return all(record.get(name) == value for name, value in self.as_record().items())


def _plain(scores: Scores) -> dict[str, Any]:
    """Per-target scores and their mean, as JSON; null where the part of a target is too small to be scored."""
    return {
        method: {
            "mean": {name: values.nanmean().item() for name, values in metrics.items()},
            "targets": {
                name: [None if math.isnan(value) else value for value in values.tolist()]
                for name, values in metrics.items()
            },
        }
        for method, metrics in scores.items()
    }


def _coverage_record(result: SceneResult) -> Record | None:
    """What of the targets the input views have seen, as JSON."""
    if result.coverage is None or not result.targets:
        return None
    masks = result.task.masks
    shares = result.coverage.shares(result.targets, None if masks is None else masks[result.targets])
    mean = sum(shares) / len(shares)
    return {"by": result.coverage.by, "share": mean, "targets": [round(share, 6) for share in shares]}


def scene_record(result: SceneResult, provenance: Provenance, digest: str, files: dict[str, str]) -> Record:
    """Everything that result.json says about a scene."""
    task = result.task
    return {
        "key": task.key,
        "dataset": task.inputs.dataset,
        "scene": task.inputs.scene,
        **provenance.as_record(),
        "clip_digest": digest,
        "version": __version__,
        "pose_policy": provenance.config.pose_policy,
        "geometry": task.inputs.geometry,
        "alignment": alignment_record(task.alignment),
        "frames": len(result.given.images),
        "size": list(result.given.images.shape[-2:]),
        "frame_indices": list(task.frame_indices),
        "frame_gap": max(task.inputs.indices) - min(task.inputs.indices),
        "contexts": list(task.inputs.indices),
        "targets": task.target_indices,
        "masked": task.masks is not None,
        "ceiling_targets": result.ceiling_targets,
        "scores": _plain(result.scores),
        "held_out_scores": _plain(result.held_out_scores),
        **{f"{part}_scores": _plain(result.part_scores.get(part, {})) for part in HALVES},
        "coverage": _coverage_record(result),
        "left_out": result.left_out,
        "warp_holes": [round(share, 6) for share in result.holes],
        "refined_by": [list(change) for change in result.moved],
        "absent": result.absent,
        "gaussians": len(result.gaussians),
        "final_loss": result.final_loss,
        "seconds": {stage: round(value, 3) for stage, value in result.seconds.items()},
        "files": files,
    }


def finished_record(folder: Path, provenance: Provenance, digest: str | None = None) -> Record | None:
    """The record of a scene that was done with the same settings, by the same model, on the same data; else None."""
    record = read_json(folder / RESULT)
    if record is None or not provenance.of(record):
        return None
    if digest is not None and record.get("clip_digest") != digest:
        return None
    if any(not (folder / name).is_file() for name in record.get("files", {}).values()):
        return None
    return record


def fill(metrics: Mapping[tuple[str, str], SceneMetrics], record: Record) -> None:
    """Add a scene's scores to the metric of each (group, method)."""
    for (group, method), metric in metrics.items():
        if method in record[group]:
            targets = record[group][method]["targets"]
            metric.update({name: [one for one in values if one is not None] for name, values in targets.items()})


def make_metrics(names: Sequence[str], **kwargs: Any) -> dict[tuple[str, str], SceneMetrics]:
    """One ``SceneMetrics`` for each group of targets and each method; the same ones on every rank."""
    from reconx_pl.metrics.scene_means import SceneMetrics  # torchmetrics takes longer to import than torch

    return {(group, method): SceneMetrics(names, **kwargs) for group in GROUPS for method in METHODS}


def means(metrics: Mapping[tuple[str, str], SceneMetrics]) -> dict[str, dict[str, dict[str, float]]]:
    """Name in the summary -> method -> metric -> mean over scenes. Gathers over ranks: every rank must call it."""
    table: dict[str, dict[str, dict[str, float]]] = {name: {} for name in GROUPS.values()}
    for (group, method), metric in metrics.items():
        with warnings.catch_warnings():  # a method that was not asked for, or a rank without scenes, has no update
            warnings.filterwarnings("ignore", message=".*``compute`` method of metric SceneMetrics was called before")
            values = {name: value.item() for name, value in metric.compute().items()}
        if values and all(math.isfinite(value) for value in values.values()):
            table[GROUPS[group]][method] = values
    return table


def coverage_summary(records: Sequence[Record]) -> Record | None:
    """What of the targets the input views have seen, over scenes, and how many scenes each mean of a part is of.

    Returns:
        None where no scene was split; else ``share``, the mean of the scenes, ``by``: way of telling -> scenes,
        ``least``, the share of pixels below which a scene does not count for a part, and ``scenes``: part -> method ->
        scenes that count.
    """
    split = [record for record in records if record["coverage"] is not None]
    if not split:
        return None
    scenes = {part: dict(Counter(method for record in split for method in record[f"{part}_scores"])) for part in HALVES}
    share = sum(record["coverage"]["share"] for record in split) / len(split)
    by = dict(Counter(record["coverage"]["by"] for record in split))
    return {"share": share, "by": by, "least": LEAST, "scenes": scenes}


def _left_out(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """Method -> reason -> scenes in which it was not scored although it was asked for."""
    found: dict[str, dict[str, int]] = {}
    for record in records:
        for method, why in record["left_out"].items():
            reasons = found.setdefault(method, {})
            reasons[why] = reasons.get(why, 0) + 1
    return found


def throughput(stages: Mapping[str, float], scenes: int) -> Record:
    """Scenes an hour that one process gets done, and the seconds of all scenes by what they went into.

    Args:
        stages: seconds of each stage, over all scenes.
        scenes: their number.
    """
    split: dict[str, float] = {}
    for stage, value in stages.items():
        part = PARTS.get(stage, "other")
        split[part] = round(split.get(part, 0.0) + value, 3)
    total = sum(split.values())
    return {"scenes_per_hour": round(3600 * scenes / total, 2) if total > 0 else None, "split": split}


def summary(
    records: Sequence[Record],
    table: Mapping[str, Any],
    expected: Sequence[str],
    failed: Mapping[str, str],
    provenance: Provenance,
    absent: Mapping[str, str],
) -> Record:
    """What results.json says: complete only if every expected scene has its scores."""
    config = provenance.config
    done = {record["key"] for record in records}
    missing = [key for key in expected if key not in done and key not in failed]
    stages: dict[str, float] = {}
    for record in records:
        for stage, value in record["seconds"].items():
            stages[stage] = round(stages.get(stage, 0.0) + value, 3)
    order = {key: index for index, key in enumerate(expected)}
    ordered = sorted(records, key=lambda record: order.get(record["key"], len(order)))
    return {
        "complete": bool(records) and not failed and not missing,
        "expected": len(expected),
        "finished": len(records),
        "failed": dict(failed),
        "missing": missing,
        **{name: dict(values) for name, values in table.items()},
        "coverage": coverage_summary(ordered),
        "left_out": _left_out(ordered),
        "methods": METHODS,
        "metrics": list(config.metrics),
        "absent": {**{name: why for record in records for name, why in record["absent"].items()}, **absent},
        "pose_policy": config.pose_policy,
        "geometry": dict(Counter(record["geometry"] for record in ordered)),
        "config": config.as_dict(),
        **provenance.as_record(),
        "version": __version__,
        "seconds": stages,
        **throughput(stages, len(records)),
        "scenes": ordered,
    }
