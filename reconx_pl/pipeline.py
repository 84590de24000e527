"""Photographs to points to frames to Gaussians: the one place that knows the whole chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from reconx_pl.data.cutting import MIN_POINTS, scene_clip
from reconx_pl.data.estimating import (
    EstimatedScene,
    Poses,
    Views,
    has_geometry,
    photograph_files,
    scene_of_photographs,
    with_estimated_points,
    with_points_of,
    without_poses,
)
from reconx_pl.data.formats import only_scene
from reconx_pl.data.formats.posed import write_posed
from reconx_pl.data.stream import read_clips
from reconx_pl.diffusion.painter import SamplingConfig
from reconx_pl.errors import BadSceneError, ConfigurationError, MissingWeightsError
from reconx_pl.evaluation.ablation import Ablation, write_ablation_table
from reconx_pl.evaluation.painter import NoPainter, Painter
from reconx_pl.evaluation.report import write_report
from reconx_pl.evaluation.runner import EvaluationConfig, evaluate_scenes
from reconx_pl.geometry.default_estimator import default_estimator
from reconx_pl.geometry.estimator import PointMapEstimator
from reconx_pl.splatting.renderer import chosen_device
from reconx_pl.training.checkpoints import load_weights, painter_identity
from reconx_pl.training.module import ReconXModule
from reconx_pl.training.resume import newest_checkpoint
from reconx_pl.types import Clip


def weights_of(run: Path, weights: Path | None = None) -> Path:
    """The weights that stand for a run: those given, else what the run exported, else its newest checkpoint.

    Raises:
        MissingWeightsError: none of them is there.
    """
    exported = Path(weights) if weights else run / "weights.safetensors"
    if exported.exists():
        return exported
    found = None if weights else newest_checkpoint(run / "checkpoints")
    if found is None:
        where = exported if weights else f"{exported} or in {run / 'checkpoints'}"
        raise MissingWeightsError(f"no weights at {where}; let the run in {run} write a checkpoint first")
    return found


def load_run(run: Path, weights: Path | None = None) -> ReconXModule:
    """Rebuild the module of a training run from its ``config.yaml`` and load its weights.

    Args:
        run: folder that ``train.py`` wrote: ``config.yaml`` and ``weights.safetensors`` or ``checkpoints``. Of a
            checkpoint with an average of the weights (``model.ema``) the average is taken, as in validation.
        weights: a checkpoint (file or folder), a ``.safetensors`` file or a converted folder to take instead of the
            run's own.

    Raises:
        MissingWeightsError: no such run, or it has no weights yet.
        BadWeightsError: weights that do not fit the run's model.
    """
    run = Path(run)
    config = run / "config.yaml"
    if not config.is_file():
        raise MissingWeightsError(
            f"{config} does not exist; train first, for instance: python train.py fit -c configs/stage2.yaml"
        )
    found = weights_of(run, weights)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ReconXModule, "model")
    parsed = parser.parse_object({"model": yaml.safe_load(config.read_text())["model"]})
    module: ReconXModule = parser.instantiate_classes(parsed).model
    load_weights(module.network, found, average=module.ema_config is not None and ".ckpt" in found.name)
    return module.eval()


@dataclass(frozen=True)
class SceneWindow:
    """Which photographs of a posed scene become a clip for evaluation.

    Args:
        frames: frames of the clip; the first and the last are the inputs, those between are the truth.
        start: index of the first photograph; None centres the window.
        stride: photographs from one frame of the clip to the next.
        height: rows of the packed frames, pixels.
        width: columns of the packed frames, pixels.
        points: cloud points asked of the scene's geometry.
        fps: frame rate that photographs without time stamps are said to have; one that the model was trained with.
    """

    frames: int = 8
    start: int | None = None
    stride: int = 1
    height: int = 128
    width: int = 128
    points: int = 16384
    fps: float = 8.0

    def indices(self, views: int, name: str) -> list[int]:
        """Indices of the photographs.

        Raises:
            BadSceneError: the scene has too few photographs.
        """
        span = (self.frames - 1) * self.stride + 1
        start = (views - span) // 2 if self.start is None else self.start
        if start < 0 or start + span > views:
            raise BadSceneError(
                f"scene {name} has {views} photographs; {self.frames} frames with stride {self.stride} from "
                f"{max(start, 0)} need {max(start, 0) + span}. Ask for fewer frames"
            )
        return list(range(start, start + span, self.stride))


def posed_clip(
    folder: Path,
    window: SceneWindow,
    estimator: PointMapEstimator | None = None,
    poses: Poses = "dataset",
    views: Views = "inputs",
) -> Clip:
    """A clip out of a folder of photographs, posed in any of the supported formats or without poses.

    Where the folder has no poses, poses and points are found from the photographs of the clip. Where it has poses but
    neither depth nor points, points are found from the two input views. Without an ``estimator``, ``default_estimator``
    does both, and the log says so.

    Args:
        folder: a posed scene, or photographs, or ``images`` with photographs.
        window: which of them.
        estimator: takes the place of depth and points that came with the scene, too.
        poses: "dataset" hands the poses of the scene to the estimator; "estimated" lets it find its own, aligns both,
            and records the residual in the clip. Needs an ``estimator``.
        views: of a posed scene, those that the estimator sees: the two input views, or all of the clip, which gives
            more points and lets it see the targets.

    Raises:
        BadSceneError: too few photographs, or they cannot be reconstructed.
        BadDataError: nothing readable in the folder.
        ConfigurationError: poses "estimated" without an estimator.
    """
    if poses == "estimated" and estimator is None:
        raise ConfigurationError("poses 'estimated' needs an estimator: name one with --estimator")
    folder = Path(folder)
    found: EstimatedScene | None = None
    if without_poses(folder):
        files = photograph_files(folder)
        chosen = estimator or default_estimator(folder, "poses")
        found = scene_of_photographs([files[index] for index in window.indices(len(files), folder.name)], chosen)
        raw, indices = found.scene, list(range(window.frames))
    else:
        raw = only_scene(folder)
        indices = window.indices(len(raw), raw.name)
        if estimator is None and not has_geometry(raw, indices):
            estimator = default_estimator(folder, "points and no depth")
        if estimator is not None:
            found = with_points_of(raw, indices if views == "clip" else [indices[0], indices[-1]], estimator, poses)
            raw = found.scene
    clip = scene_clip(raw, indices, window.height, window.width, points=window.points, default_fps=window.fps)
    if clip.cloud is None:
        raise BadSceneError(
            f"{folder}: fewer than {MIN_POINTS} points fall into the two input views, too few to fit to; choose other "
            "photographs (window.start, window.stride), take the points of all photographs of the clip (views: clip), "
            "or add those of a reconstruction"
        )
    return clip if found is None else replace(clip, geometry=found.geometry, alignment=found.alignment)


@dataclass(frozen=True)
class FoundGeometry:
    """What ``find_geometry`` wrote."""

    views: int
    points: int


def find_geometry(source: Path, out: Path, estimator: PointMapEstimator | None = None) -> FoundGeometry:
    """Photographs to a scene in the package's own layout (``data/posed.md``), which every other command reads.

    Args:
        source: photographs, or ``images`` with photographs, or a posed scene, whose poses are kept and whose points
            are made anew from all its photographs.
        out: folder of the scene; must not hold one yet.
        estimator: None takes ``default_estimator``.

    Raises:
        BadSceneError: the photographs cannot be reconstructed; names them.
        BadDataError: nothing readable in ``source``.
        ConfigurationError: ``out`` holds a scene.
    """
    source, out = Path(source), Path(out)
    if (out / "cameras.json").exists():
        raise ConfigurationError(f"{out / 'cameras.json'} is there already; name another folder, or remove it")
    if without_poses(source):
        found = scene_of_photographs(photograph_files(source), estimator or default_estimator(source, "poses"))
    else:
        raw = only_scene(source)
        found = with_estimated_points(raw, estimator or default_estimator(source, "points"))
    write_posed(found.scene, out)
    assert found.scene.cloud is not None
    return FoundGeometry(len(found.scene), len(found.scene.cloud))


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


def chosen_painter(
    run: Path | None, weights: Path | None, sampling: SamplingConfig | None, ablation: Ablation, device: str
) -> tuple[Painter, str]:
    """The painter of an evaluation on ``device``, and what identifies it in results.

    Raises:
        ConfigurationError: no run, and frames are to be painted.
        MissingWeightsError, BadWeightsError: as ``load_run``.
    """
    if ablation.no_diffusion:
        return NoPainter(), NoPainter.identity
    if run is None:
        raise ConfigurationError("name the training run whose model paints, or leave painting out: --no-diffusion")
    module = load_run(run, weights)
    settings = ablation.sampling(sampling or module.sampling)
    if not settings.offload:
        module.to(device)
    painter = module.painter(settings, device)
    return painter, painter_identity(painter)


def evaluate(
    *,
    out: Path,
    run: Path | None = None,
    shards: Path | None = None,
    scene: Path | None = None,
    estimator: PointMapEstimator | None = None,
    poses: Poses = "dataset",
    views: Views = "inputs",
    clips: int | None = None,
    weights: Path | None = None,
    sampling: SamplingConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    window: SceneWindow | None = None,
    logs: list[Path] | None = None,
    ablation: Ablation | None = None,
    device: str = "auto",
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Paint, fit and score held-out clips with a trained model, and write the report.

    Args:
        out: folder of the report; finished scenes in it are kept.
        run: folder of the training run whose model is evaluated; an evaluation without video diffusion needs none.
        shards: folder of packed clips.
        scene: folder of photographs, with poses or without, instead of shards.
        estimator: finds the points of ``scene``, in the place of depth or points that came with it; None takes those,
            and structure from motion where there are none. It aligns the painted frames, of clips too, if
            ``evaluation.pose_policy`` is "aligned".
        poses: "dataset" gives the poses of ``scene`` to the estimator; "estimated" lets it find its own and records how
            well they agree.
        views: photographs of a posed ``scene`` that the estimator sees: the two "inputs", or all of the "clip", which
            gives more points and shows it the targets.
        clips: how many clips of the shards; None takes all.
        weights: file to take instead of the run's own weights.
        sampling: instead of the run's own sampling settings.
        evaluation: fit, targets, metrics, baselines.
        window: which photographs of ``scene``.
        logs: TensorBoard folders whose loss curves go into the report.
        ablation: what to leave out; its results go into a folder in ``out``, and a table of all rows into ``out``.
        device: "auto", "cpu", "cuda".
        progress: called with what is done now and the share of it that is done.

    Returns:
        What ``results.json`` holds; ``complete`` is False where a scene failed.
    """
    ablation = ablation or Ablation()
    chosen = chosen_device(device)
    painter, identity = chosen_painter(run, weights, sampling, ablation, chosen)
    folder, config = ablation.out(Path(out)), ablation.evaluation(evaluation or EvaluationConfig())
    only_aligns = shards is not None and config.pose_policy == "aligned"
    finder = None if only_aligns else estimator
    results = evaluate_scenes(
        evaluation_clips(shards, scene, window or SceneWindow(), clips, finder, poses, views),
        painter,
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
