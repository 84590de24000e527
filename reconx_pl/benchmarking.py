"""A trained model on a benchmark: ``evaluate.py --benchmark`` (docs/benchmarks.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from reconx_pl.diffusion.painter import SamplingConfig
from reconx_pl.errors import MissingWeightsError
from reconx_pl.evaluation.ablation import Ablation, write_ablation_table
from reconx_pl.evaluation.alignment import estimator_identity
from reconx_pl.evaluation.benchmark_fetch import index_folder
from reconx_pl.evaluation.benchmark_run import BenchmarkPlan, benchmark_place
from reconx_pl.evaluation.benchmark_scenes import BenchmarkScenes
from reconx_pl.evaluation.protocol_files import load_protocol
from reconx_pl.evaluation.runner import EvaluationConfig, LazyViews, evaluate_views
from reconx_pl.evaluation.shortfall import shortfall
from reconx_pl.geometry.default_estimator import default_estimator
from reconx_pl.geometry.estimator import PointMapEstimator
from reconx_pl.pipeline import chosen_painter
from reconx_pl.splatting.renderer import chosen_device


def run_of(checkpoint: Path | None) -> tuple[Path | None, Path | None]:
    """The run of a checkpoint, and the weights to take in the place of the run's own.

    Args:
        checkpoint: folder of a training run, or a checkpoint or a file of weights in it; None has neither.

    Raises:
        MissingWeightsError: nothing is there, or no run is around it.
    """
    if checkpoint is None:
        return None, None
    checkpoint = Path(checkpoint)
    if (checkpoint / "config.yaml").is_file() or not checkpoint.exists():
        return checkpoint, None  # where nothing is, load_run says how to train
    for folder in checkpoint.absolute().parents:
        if (folder / "config.yaml").is_file():
            return folder, checkpoint
    raise MissingWeightsError(f"{checkpoint}: no config.yaml here or above; name the folder of a training run")


def evaluate_benchmark(
    benchmark: str,
    data: Path,
    out: Path,
    ckpt: Path | None = None,
    indices: Path | None = None,
    scenes: str | None = None,
    painted: Literal["aligned", "interpolated"] | None = None,
    estimator: PointMapEstimator | None = None,
    sampling: SamplingConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    ablation: Ablation | None = None,
    device: str = "auto",
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a trained model on a benchmark; write results, a table beside the published rows, and a report.

    Run it again to go on after an interruption. Under torchrun, in a Slurm array, or both, every process takes its
    share of the entries; whoever finishes last writes the whole table, and so does ``reconx benchmarks gather OUT``.

    Args:
        benchmark: name of a benchmark (``reconx benchmarks list``), or a protocol file.
        data: folder of the data sets.
        out: folder of the results; finished entries in it are kept.
        ckpt: folder of a training run, or a checkpoint or file of weights in it; an evaluation without video diffusion
            needs none.
        indices: folder of the index files; None takes $RECONX_INDICES, else the cache.
        scenes: names of scenes or entries, separated by commas, or a number of entries, evenly spaced; the table then
            says that it is of a part of the benchmark.
        painted: poses of the painted frames in the place of those that the benchmark says; this makes another protocol
            of it, with another hash.
        estimator: finds the points of the context views where the benchmark allows no others, and aligns painted
            frames; None takes DUSt3R if its weights are at hand, else structure from motion.
        sampling: instead of the run's own sampling settings.
        evaluation: fit, baselines, frames of a painted clip. Metrics, masks and poses are the benchmark's.
        ablation: what to leave out; its results go into a folder in ``out``, and a table of all rows into ``out``.
        device: "auto", "cpu", "cuda".
        progress: called with what is done now and the share of it that is done.

    Returns:
        What ``results.json`` holds, but "failed" and "missing" are only those entries that this process answers for.
    """
    protocol = load_protocol(benchmark)
    if painted is not None:
        protocol = replace(protocol, poses=replace(protocol.poses, painted=painted))
    source = BenchmarkScenes(protocol, data, index_folder(indices))
    entries = source.choose([name.strip() for name in scenes.split(",")] if scenes else None)
    rank, world = benchmark_place()
    chosen = chosen_device(device)
    if chosen == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    if estimator is None and (protocol.geometry == "inputs" or protocol.poses.painted == "aligned"):
        estimator = default_estimator(Path(data), f"points that {protocol.name} allows")
    ablation = ablation or Ablation()
    wanted, folder = ablation.evaluation(evaluation or EvaluationConfig()), ablation.out(Path(out))
    config = replace(
        wanted,
        metrics=protocol.metrics,
        masks=protocol.masks,
        pose_policy=protocol.poses.painted,
        refine_test_poses=wanted.refine_test_poses or protocol.poses.test_pose_refinement,
    )
    painter, identity = chosen_painter(*run_of(ckpt), sampling, ablation, chosen)
    plan = BenchmarkPlan(
        protocol,
        tuple(entry.key for entry in entries),
        len(source.entries),
        str(ckpt) if ckpt else identity,
        identity,
        config,
        estimator_identity(estimator),
    )
    plan.save(folder)
    results = evaluate_views(
        [LazyViews(entry.key, partial(source.views, entry)) for entry in entries],
        painter,
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
    return shortfall(results, plan.entries[rank::world])
