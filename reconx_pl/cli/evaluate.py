"""A trained model on a protocol: ``evaluate.py --protocol`` (docs/protocols.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from reconx_pl.data.photos.posed_clip import SceneWindow, posed_clip
from reconx_pl.data.photos.unposed import Views
from reconx_pl.data.shards.clouds import Poses
from reconx_pl.data.shards.stream import read_clips
from reconx_pl.devices import chosen_device
from reconx_pl.diffusion.pipeline import SamplingConfig
from reconx_pl.errors import ConfigurationError
from reconx_pl.evaluation.ablation import Ablation, write_ablation_table
from reconx_pl.evaluation.missing import missing_entries
from reconx_pl.evaluation.protocols.fetch import index_folder
from reconx_pl.evaluation.protocols.files import load_protocol
from reconx_pl.evaluation.protocols.run import ProtocolRun, process_of_run
from reconx_pl.evaluation.protocols.scenes import ProtocolScenes
from reconx_pl.evaluation.report import write_report
from reconx_pl.evaluation.runner import EvaluationConfig, LazyViews, evaluate_scenes, evaluate_views
from reconx_pl.files.identity import identity_of
from reconx_pl.geometry.default_estimator import default_estimator
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.reconstruction.view_generator import NoViewGenerator, ViewGenerator
from reconx_pl.training.models import find_model
from reconx_pl.types import Clip, Progress


def evaluate_protocol(
    protocol: str,
    data: Path,
    out: Path,
    model: str | None = None,
    indices: Path | None = None,
    scenes: str | None = None,
    generated: Literal["aligned", "interpolated"] | None = None,
    estimator: PointMapEstimator | None = None,
    sampling: SamplingConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    ablation: Ablation | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Evaluate a trained model on a protocol; write results, a table beside the published rows, and a report.

    Run it again to go on after an interruption. Under torchrun, in a Slurm array, or both, every process takes its
    share of the entries; whoever finishes last writes the whole table, and so does ``reconx protocols gather OUT``.

    Args:
        protocol: name of a protocol (``reconx protocols list``), or a protocol file.
        data: folder of the data sets.
        out: folder of the results; finished entries in it are kept.
        model: folder of a training run, a checkpoint in it, a converted folder, a release, or owner/name on the hub;
            an evaluation without video diffusion needs none.
        indices: folder of the index files; None takes $RECONX_INDICES, else the cache.
        scenes: names of scenes or entries, separated by commas, or a number of entries, evenly spaced; the table then
            says that it is of a part of the protocol.
        generated: poses of the generated frames in the place of those that the protocol says; this makes another
            protocol of it, with another hash.
        estimator: finds the points of the context views where the protocol allows no others, and aligns generated
            frames; None takes Depth-Anything-3 if its weights are at hand, else structure
            from motion.
        sampling: instead of the model's own sampling settings.
        evaluation: fit, baselines, frames of a generated clip. Metrics, masks and poses are the protocol's.
        ablation: what to leave out; its results go into a folder in ``out``, and a table of all rows into ``out``.
        device: "auto", "cpu", "cuda".
        progress: counts percent of a scene.

    Returns:
        What ``results.json`` holds, but "failed" and "missing" are only those entries that this process answers for.
    """
    rules = load_protocol(protocol)
    if generated is not None:
        rules = replace(rules, poses=replace(rules.poses, generated=generated))
    source = ProtocolScenes(rules, data, index_folder(indices))
    entries = source.choose([name.strip() for name in scenes.split(",")] if scenes else None)
    rank, world = process_of_run()
    chosen = chosen_device(device)
    if chosen == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    if estimator is None and (rules.geometry == "inputs" or rules.poses.generated == "aligned"):
        estimator = default_estimator(Path(data), f"points that {rules.name} allows")
    ablation = ablation or Ablation()
    wanted, folder = ablation.evaluation(evaluation or EvaluationConfig()), ablation.out(Path(out))
    config = replace(
        wanted,
        metrics=rules.metrics,
        masks=rules.masks,
        pose_policy=rules.poses.generated,
        refine_test_poses=wanted.refine_test_poses or rules.poses.test_pose_refinement,
    )
    view_generator, identity = chosen_model(model, sampling, ablation, chosen)
    plan = ProtocolRun(
        rules,
        tuple(entry.key for entry in entries),
        len(source.entries),
        model or identity,
        identity,
        config,
        identity_of(estimator),
    )
    plan.save(folder)
    results = evaluate_views(
        [LazyViews(entry.key, partial(source.views, entry)) for entry in entries],
        view_generator,
        config,
        folder,
        rank,
        world,
        progress,
        model=plan.model,
        protocol=plan.named,
        estimator=estimator,
        device=chosen,
    )
    plan.write_tables(folder, results)
    write_ablation_table(Path(out))
    return missing_entries(results, plan.entries[rank::world])


def evaluation_clips(
    shards: Path | None,
    scene: Path | None,
    window: SceneWindow,
    clips: int | None,
    estimator: PointMapEstimator | None = None,
    poses: Poses = "dataset",
    views: Views = "inputs",
) -> Iterator[Clip]:
    """Held-out clips of packed shards, or one clip of a folder of photographs."""
    if (shards is None) == (scene is None):
        raise ConfigurationError("name either shards (a packed folder) or scene (a folder of photographs)")
    if scene is not None:
        yield posed_clip(scene, window, estimator, poses, views)
        return
    if estimator is not None or poses != "dataset":
        raise ConfigurationError("clips of shards have their points: estimator and poses belong to a scene")
    assert shards is not None
    for number, clip in enumerate(read_clips(Path(shards))):
        if clips is not None and number >= clips:
            return
        yield clip


def chosen_model(
    name: str | None, sampling: SamplingConfig | None, ablation: Ablation, device: str
) -> tuple[ViewGenerator, str]:
    """The model of an evaluation on ``device``, and what identifies it in results.

    Raises:
        ConfigurationError: no model, and frames are to be generated.
        MissingWeightsError, BadWeightsError: as ``training.models.find_model`` and ``NamedModel.load``.
    """
    if ablation.no_diffusion:
        return NoViewGenerator(), NoViewGenerator.identity
    if name is None:
        raise ConfigurationError(
            "name the model that generates (--model: a run, a checkpoint, a converted folder, a release or a hub name),"
            " or leave generation out: --no-diffusion"
        )
    found = find_model(name)
    settings = ablation.sampling(found.settings(sampling))
    return found.load(settings, device), found.identity(settings)


def evaluate(
    *,
    out: Path,
    model: str | None = None,
    shards: Path | None = None,
    scene: Path | None = None,
    estimator: PointMapEstimator | None = None,
    poses: Poses = "dataset",
    views: Views = "inputs",
    clips: int | None = None,
    sampling: SamplingConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    window: SceneWindow | None = None,
    logs: list[Path] | None = None,
    ablation: Ablation | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Generate, fit and score held-out clips with a trained model, and write the report.

    Args:
        out: folder of the report; finished scenes in it are kept.
        model: folder of a training run, a checkpoint in it, a converted folder, a release, or owner/name on the hub;
            an evaluation without video diffusion needs none.
        shards: folder of packed clips.
        scene: folder of photographs, with poses or without, instead of shards.
        estimator: finds the points of ``scene``, in the place of depth or points that came with it; None takes those,
            and structure from motion where there are none. It aligns the generated frames, of clips too, if
            ``evaluation.pose_policy`` is "aligned".
        poses: "dataset" gives the poses of ``scene`` to the estimator; "estimated" lets it find its own and records how
            well they agree.
        views: photographs of a posed ``scene`` that the estimator sees: the two "inputs", or all of the "clip", which
            gives more points and shows it the targets.
        clips: how many clips of the shards; None takes all.
        sampling: instead of the model's own sampling settings.
        evaluation: fit, targets, metrics, baselines.
        window: which photographs of ``scene``.
        logs: TensorBoard folders whose loss curves go into the report.
        ablation: what to leave out; its results go into a folder in ``out``, and a table of all rows into ``out``.
        device: "auto", "cpu", "cuda".
        progress: counts percent of a scene.

    Returns:
        What ``results.json`` holds; ``complete`` is False where a scene failed.
    """
    ablation = ablation or Ablation()
    chosen = chosen_device(device)
    view_generator, identity = chosen_model(model, sampling, ablation, chosen)
    folder, config = ablation.out(Path(out)), ablation.evaluation(evaluation or EvaluationConfig())
    only_aligns = shards is not None and config.pose_policy == "aligned"
    finder = None if only_aligns else estimator
    results = evaluate_scenes(
        evaluation_clips(shards, scene, window or SceneWindow(), clips, finder, poses, views),
        view_generator,
        config,
        folder,
        model=identity,
        estimator=estimator,
        progress=progress,
        device=chosen,
    )
    write_report(folder, results, logs or [])
    write_ablation_table(Path(out))
    return results
