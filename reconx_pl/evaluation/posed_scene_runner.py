"""Fits many posed scenes one after the other: restartable, spread over processes, honest about what failed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from reconx_pl.devices import chosen_device
from reconx_pl.errors import ConfigurationError, ReconXError
from reconx_pl.evaluation.posed_scenes import (
    PosedScene,
    PosedSceneConfig,
    PosedSceneResult,
    fit_posed_scene,
    load_posed_scene,
)
from reconx_pl.evaluation.records import ERROR, RESULT, SUMMARY, Record, scene_folder
from reconx_pl.evaluation.scene import Progress
from reconx_pl.files.atomic import atomic_write
from reconx_pl.files.identity import plain_settings
from reconx_pl.files.json_files import read_json, write_json
from reconx_pl.files.ranks import process_place
from reconx_pl.geometry.default_estimator import default_estimator
from reconx_pl.geometry.estimators.base import PointMapEstimator
from reconx_pl.metrics.image import MetricSuite
from reconx_pl.metrics.lpips import LpipsDistance
from reconx_pl.splatting.io.ply import save_ply
from reconx_pl.splatting.renderers.base import Renderer
from reconx_pl.splatting.renderers.choose import default_renderer
from reconx_pl.visualization.contact_sheet import SheetRow, contact_sheet, error_image, spread

log = logging.getLogger(__name__)

COLUMNS, GAIN = 6, 4.0  # of the comparison sheet: views, factor of the error


@dataclass(frozen=True)
class LazyPosedScene:
    """A posed scene that is loaded when its turn comes; one that cannot be loaded is then a failed scene with a name.

    Args:
        key: names its folder; unique in a run.
        load: gives the posed scene.
    """

    key: str
    load: Callable[[], PosedScene]


def fit_posed_scenes(
    posed_scenes: Sequence[LazyPosedScene],
    config: PosedSceneConfig,
    out: Path,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Record:
    """Fit scenes: ``out/scenes/<key>/`` gets result.json, scene.ply and comparison.png as soon as a scene is done.

    Renderer (with its compiled kernels) and LPIPS networks are made once and serve all scenes. A scene that is there
    already, of the same settings, photographs and cameras, is not done again. A scene that fails is logged and named,
    and the others go on. Scene i belongs to process i mod ``world``; ``out`` is a folder that all of them see, and the
    last one to finish finds the results of all.

    Args:
        posed_scenes: the same in every process, in the same order.
        config: settings; their hash goes into every result.
        out: folder of the results.
        rank, world: this process and their number; each has a device of its own.
        device: where the fits run.
        progress: called with what is done now and the share of this scene that is done.

    Returns:
        the content of ``out/results.json``.

    Raises:
        ConfigurationError: two scenes of one key, a rank outside the world.
        MissingWeightsError: the fit's loss uses LPIPS and its weights are not there.
        BackendUnavailableError: no renderer for the device.
    """
    keys = [capture.key for capture in posed_scenes]
    if repeated := sorted({key for key in keys if keys.count(key) > 1}):
        raise ConfigurationError(f"several scenes are called {', '.join(repeated)}; rename their folders")
    if not 0 <= rank < world:
        raise ConfigurationError(f"process {rank} is not one of {world}")
    renderer = default_renderer(device)
    suite = MetricSuite(config.metrics, device)
    perceptual = LpipsDistance(config.fit.lpips_net).to(device) if config.fit.loss.lpips > 0 else None
    for capture in posed_scenes[rank::world]:
        folder = scene_folder(out, capture.key)
        try:
            _one(capture, folder, config, suite, renderer, perceptual, device, progress)
            (folder / ERROR).unlink(missing_ok=True)
        except Exception as error:
            log.error("scene %s failed: %s", capture.key, error, exc_info=not isinstance(error, ReconXError))
            (folder / RESULT).unlink(missing_ok=True)
            why = f"{type(error).__name__}: {error}"
            write_json(folder / ERROR, {"key": capture.key, "error": why, "config_hash": config.hash})
        write_json(out / SUMMARY, _summary(keys, config, out, suite))
    return _summary(keys, config, out, suite)


def fit_photographs(
    scenes: list[Path],
    out: Path,
    capture: PosedSceneConfig | None = None,
    estimator: PointMapEstimator | None = None,
    device: str = "auto",
    rank: int | None = None,
    world_size: int | None = None,
    progress: Progress | None = None,
) -> Record:
    """Fit 3D Gaussians to photographs of each scene and score them on held-out ones; run it again to go on.

    Args:
        scenes: folders: posed scenes of any supported format, or photographs, whose poses are then found.
        out: folder of the results: scenes/NAME with scene.ply, comparison.png and result.json, and results.json.
        posed scene: size, held-out views, points, fit.
        estimator: finds the points, in the place of those that came with a scene.
        device: "auto", "cpu", "cuda".
        rank: number of this process, which does scenes rank, rank + world_size, ...; None takes that of a Slurm array
            or of torchrun.
        world_size: number of processes; each uses one GPU.
        progress: called with what is done now and the share of the scene that is done.

    Returns:
        what ``results.json`` holds; ``complete`` is False where a scene failed or another process is not done.
    """
    config = capture or PosedSceneConfig()
    place, places = process_place(rank, world_size)
    chosen = chosen_device(device)
    if chosen == "cuda":
        torch.cuda.set_device(place % torch.cuda.device_count())
    lazy = [
        LazyPosedScene(
            Path(scene).resolve().name, partial(load_posed_scene, Path(scene), config, estimator, default_estimator)
        )
        for scene in scenes
    ]
    return fit_posed_scenes(lazy, config, Path(out), place, places, chosen, progress)


def _one(
    lazy: LazyPosedScene,
    folder: Path,
    config: PosedSceneConfig,
    suite: MetricSuite,
    renderer: Renderer,
    perceptual: LpipsDistance | None,
    device: torch.device | str,
    progress: Progress | None,
) -> None:
    """Fit a scene and write it, or find it done."""
    if progress is not None:
        progress(f"{lazy.key}: reading", 0.0)
    capture = lazy.load()
    found = read_json(folder / RESULT)
    wanted = {"config_hash": config.hash, "digest": capture.digest, "metrics": list(suite.names)}
    if found is not None and all(found.get(name) == value for name, value in wanted.items()):
        log.info("scene %s is done already", lazy.key)
        return

    def step(done: int, steps: int, loss: float) -> None:
        if progress is not None:
            progress(f"{lazy.key}: fit, loss {loss:.3f}", done / steps)

    result = fit_posed_scene(capture, config, suite, renderer, perceptual, device, step)
    (folder / RESULT).unlink(missing_ok=True)  # never a result beside the files of another
    save_ply(result.fit.gaussians, folder / "scene.ply")
    save_comparison(capture, result, folder)
    write_json(
        folder / RESULT,
        {
            "key": lazy.key,
            **wanted,
            "geometry": capture.geometry,
            "points": result.points,
            "fitted": [capture.names[view] for view in capture.fitted],
            "held_out": [capture.names[view] for view in capture.held_out],
            "size": list(capture.images.shape[-2:]),
            "scores": {name: values.tolist() for name, values in result.scores.items()},
            "fitted_scores": {name: values.tolist() for name, values in result.fitted_scores.items()},
            "final_loss": result.fit.final_loss,
            "seconds": result.fit.seconds,
            "absent": suite.absent,
            "settings": plain_settings(config),
        },
    )


def save_comparison(capture: PosedScene, result: PosedSceneResult, folder: Path) -> None:
    """comparison.png: photographs that were held out (or else fitted), their renders, and the error."""
    views = capture.held_out or capture.fitted
    shown = [views[place] for place in spread(len(views), COLUMNS)]
    pairs = [(capture.images[view], result.rendered[view].clamp(0, 1)) for view in shown]
    kind = "held out" if capture.held_out else "fitted"
    rows = [
        SheetRow(f"photograph\n{kind}", [truth for truth, _ in pairs]),
        SheetRow("splat render", [render for _, render in pairs]),
        SheetRow(f"error × {GAIN:g}", [error_image(render, truth, GAIN) for truth, render in pairs]),
    ]
    with atomic_write(folder / "comparison.png") as unfinished:
        contact_sheet(rows, [f"view {view}" for view in shown], gain=GAIN, cell=256).save(unfinished)


def _summary(keys: Sequence[str], config: PosedSceneConfig, out: Path, suite: MetricSuite) -> Record:
    """What all processes have finished so far with these settings."""
    scenes: Record = {}
    failed: Record = {}
    for key in keys:
        folder = scene_folder(out, key)
        record, error = read_json(folder / RESULT), read_json(folder / ERROR)
        if record is not None and record.get("config_hash") == config.hash:
            scores = {name: sum(values) / len(values) for name, values in record["scores"].items()}
            scenes[key] = {**scores, "points": record["points"], "seconds": record["seconds"]}
        elif error is not None and error.get("config_hash") == config.hash:
            failed[key] = error["error"]
    missing = [key for key in keys if key not in scenes and key not in failed]
    names = [name for name in suite.names if scenes and all(name in scene for scene in scenes.values())]
    return {
        "scenes": scenes,
        "mean": {name: sum(scene[name] for scene in scenes.values()) / len(scenes) for name in names},
        "failed": failed,
        "missing": missing,
        "expected": len(keys),
        "complete": not failed and not missing,
        "config_hash": config.hash,
        "settings": plain_settings(config),
        "absent": suite.absent,
    }
