"""Photographs to points to frames to Gaussians: the one place that knows the whole chain."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

from reconx_pl.data.formats import UnreadableScene, read_scenes
from reconx_pl.data.packing import scene_clip
from reconx_pl.data.stream import read_clips
from reconx_pl.diffusion.painter import SamplingConfig
from reconx_pl.errors import BadSceneError, ConfigurationError, MissingWeightsError
from reconx_pl.evaluation.report import write_report
from reconx_pl.evaluation.runner import EvaluationConfig, evaluate_scenes
from reconx_pl.training.checkpoints import load_weights, painter_identity
from reconx_pl.training.module import ReconXModule
from reconx_pl.training.resume import newest_checkpoint
from reconx_pl.types import Clip

log = logging.getLogger(__name__)


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


def posed_clip(folder: Path, window: SceneWindow) -> Clip:
    """A clip out of a folder of posed photographs in any of the supported formats.

    Raises:
        BadSceneError: no geometry came with the photographs, or too few of them.
        BadDataError: nothing readable in the folder.
    """
    scenes = read_scenes(Path(folder))
    raw = next(scenes)
    if next(scenes, None) is not None:
        raise BadSceneError(f"{folder} holds several scenes; name the folder of one of them")
    if isinstance(raw, UnreadableScene):
        raise BadSceneError(f"{folder}: {raw.name} cannot be read: {raw.reason}")
    indices = window.indices(len(raw), raw.name)
    clip = scene_clip(raw, indices, window.height, window.width, points=window.points, default_fps=window.fps)
    if clip.cloud is None:
        raise BadSceneError(
            f"{folder} has poses but no geometry (no 3D points, no depth); fit and structure condition need it. "
            "Add the points of its reconstruction (COLMAP's points3D, or points.npz)"
        )
    return clip


def evaluation_clips(shards: Path | None, scene: Path | None, window: SceneWindow, clips: int | None) -> Iterator[Clip]:
    """Held-out clips of packed shards, or one clip of a folder of posed photographs."""
    if (shards is None) == (scene is None):
        raise ConfigurationError("name either shards (a packed folder) or scene (a folder of posed photographs)")
    if scene is not None:
        yield posed_clip(scene, window)
        return
    assert shards is not None
    for number, clip in enumerate(read_clips(Path(shards))):
        if clips is not None and number >= clips:
            return
        yield clip


def evaluate(
    run: Path,
    out: Path,
    shards: Path | None = None,
    scene: Path | None = None,
    clips: int | None = None,
    weights: Path | None = None,
    sampling: SamplingConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    window: SceneWindow | None = None,
    logs: list[Path] | None = None,
    device: str = "auto",
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Paint, fit and score held-out clips with a trained model, and write the report.

    Args:
        run: folder of the training run whose model is evaluated.
        out: folder of the report; finished scenes in it are kept.
        shards: folder of packed clips.
        scene: folder of posed photographs, instead of shards.
        clips: how many clips of the shards; None takes all.
        weights: file to take instead of the run's own weights.
        sampling: instead of the run's own sampling settings.
        evaluation: fit, targets, metrics, baselines.
        window: which photographs of ``scene``.
        logs: TensorBoard folders whose loss curves go into the report.
        device: "auto", "cpu", "cuda".
        progress: called with what is done now and the share of it that is done.

    Returns:
        What ``results.json`` holds; ``complete`` is False where a scene failed.
    """
    module = load_run(run, weights)
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if not (sampling or module.sampling).offload:
        module.to(chosen)
    painter = module.painter(sampling, chosen)
    results = evaluate_scenes(
        evaluation_clips(shards, scene, window or SceneWindow(), clips),
        painter,
        evaluation or EvaluationConfig(),
        Path(out),
        model=painter_identity(painter),
        progress=progress,
        device=chosen,
    )
    write_report(Path(out), results, logs or [])
    return results
