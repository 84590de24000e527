"""Names of earlier versions and what they are called now: one table, and what finds its way through it.

Configuration keys, options, commands, class paths and names of tensors that version 0.1 had before its vocabulary
became that of the field (docs/conventions.md). What comes in from outside (command lines, YAML and JSON files, files of
weights) passes through here; inside the package the old names do not exist. Each old name is told once in a process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reconx_pl.errors import ConfigurationError

log = logging.getLogger(__name__)
PACKAGE = "reconx_pl."

#: (room, room now): modules, as ``name`` or ``name:name now``.
_MOVED = {
    ("", ""): "processor:devices",
    ("", "cli"): "benchmark_commands:protocols benchmarking:evaluate cli:main console doctor machine_commands:weights "
    "reconstruct_commands:reconstruct scene_commands:scenes",
    ("", "data.photos"): "pipeline:posed_clip",
    ("", "files"): "checksums weights_file:weights whole_file:atomic",
    ("", "training"): "painters:runs",
    ("", "visualization"): "viewer",
    ("conditioning", "diffusion.conditioning"): "conditions dropout frozen image_tokens resampler structure "
    "text_tokens",
    ("data", "data.packing"): "cutting:clip_sampling epipolar overlap packing scene_choice",
    ("data", "data.photos"): "estimating:unposed lens_exif photograph_headers:headers photographs "
    "sharp_frames:keyframes",
    ("data", "data.shards"): "annotating:precompute caches clouds jpeg manifest position reader schema shard_file "
    "stream tolerant_loader writer",
    ("diffusion", "diffusion"): "painter:pipeline",
    ("diffusion", "diffusion.sampling"): "extrapolation guidance noise objective sampler:ddim schedule solvers",
    ("diffusion", "training"): "caching:precompute",
    ("diffusion.weights", "pretrained"): "fetch inventory push",
    ("doctor", "cli.doctor"): "command examination findings machine packages pretrained storage",
    ("evaluation", "evaluation"): "benchmark_views:entry_views captures:posed_scenes shortfall:missing tally:summary",
    ("evaluation", "evaluation.protocols"): "benchmark_fetch:fetch benchmark_index:index benchmark_run:run "
    "benchmark_scenes:scenes benchmark_table:table protocol_files:files protocols:protocol",
    ("evaluation", "files"): "ranks",
    ("evaluation", "metrics"): "metrics:image",
    ("evaluation", "reconstruction"): "alignment all_around:orbit_windows frame_confidence painter:view_generator "
    "windows",
    ("evaluation", "visualization"): "color_maps contact_sheet curves flight:flythrough report_parts:html "
    "report_style:style video",
    ("geometry", "geometry.estimators"): "colmap_estimator:colmap colmap_focals colmap_matches "
    "estimator:base lenses pair_predictions pairs plane_sweep plane_sweep_estimator "
    "plane_sweep_matching sparse_cloud",
    ("reconstruction", "files"): "tensors",
    ("reconstruction", "reconstruction"): "painting:generation",
    ("reconstruction", "visualization"): "report_plan:camera_map",
    ("splatting", "metrics"): "perceptual:lpips perceptual_weights:lpips_weights",
    ("splatting", "splatting"): "agreement:robust_weights drawing:frame_sampling random_points:points",
    ("splatting", "splatting.io"): "ply scene_files splat",
    ("splatting", "splatting.renderers"): "cpu cpu_kernels_project cpu_kernels_raster gsplat_backend:gsplat "
    "gsplat_build renderer:base",
    ("training", "cli"): "cli:train",
    ("training", "training.callbacks"): "callbacks guards observe preemption profile safe_logger saved_config "
    "tolerance",
    (
        "training",
        "training.checkpointing",
    ): "checkpoint_writing:checkpoint_places checkpoints:network_weights consolidate resume "
    "safe_checkpoint sharded_checkpoint",
    ("training", "training.plan"): "peaks plan plan_text step_flops step_memory twin:meta_model",
}

#: Classes with another name than before, or in another module than the rest of theirs.
CLASSES = {
    "conditioning.image_tokens.ClipVisionTower": "diffusion.conditioning.image_tokens.ClipVisionEncoder",
    "data.annotating.AnnotationReport": "data.shards.precompute.PrecomputeReport",
    "data.annotating.Annotator": "data.shards.precompute.Precomputer",
    "data.clouds.CloudAnnotator": "data.shards.clouds.CloudPrecomputer",
    "data.estimating.EstimatedScene": "data.formats.found_poses.EstimatedScene",
    "data.formats.UnreadableScene": "data.formats.readers.UnreadableScene",
    "data.sharp_frames.SharpFrames": "data.photos.keyframes.Keyframes",
    "diffusion.caching.FirstFrameAnnotator": "training.precompute.FirstFramePrecomputer",
    "diffusion.caching.MomentsAnnotator": "training.precompute.MomentsPrecomputer",
    "diffusion.model.RecordedDraws": "diffusion.batch_loss.RecordedDraws",
    "diffusion.painter.DiffusionPainter": "diffusion.pipeline.SamplingPipeline",
    "diffusion.painter.SamplingConfig": "diffusion.sampling.config.SamplingConfig",
    "diffusion.pipeline.SamplingConfig": "diffusion.sampling.config.SamplingConfig",
    "evaluation.all_around.AroundConfig": "reconstruction.orbit_windows.OrbitConfig",
    "evaluation.all_around.WindowPainter": "reconstruction.orbit_windows.WindowGenerator",
    "evaluation.benchmark_index.BenchmarkEntry": "evaluation.protocols.index.ProtocolEntry",
    "evaluation.benchmark_run.BenchmarkPlan": "evaluation.protocols.run.ProtocolRun",
    "evaluation.benchmark_scenes.BenchmarkScenes": "evaluation.protocols.scenes.ProtocolScenes",
    "evaluation.benchmark_views.BenchmarkViews": "evaluation.entry_views.EntryViews",
    "evaluation.captures.CaptureConfig": "evaluation.posed_scenes.PosedSceneConfig",
    "evaluation.flight.Flight": "visualization.flythrough.Flythrough",
    "evaluation.metrics.SceneMetrics": "metrics.scene_means.SceneMetrics",
    "evaluation.painter.HeldOutViews": "evaluation.task.HeldOutViews",
    "evaluation.painter.LazyScene": "evaluation.task.LazyScene",
    "evaluation.painter.NoPainter": "reconstruction.view_generator.NoViewGenerator",
    "evaluation.painter.Painter": "reconstruction.view_generator.ViewGenerator",
    "evaluation.tally.Tally": "evaluation.summary.RunSummary",
    "geometry.alignment.options.KnownViews": "geometry.alignment.options.FixedViews",
    "geometry.point_maps.CloudView": "geometry.rendering.cloud_view.CloudView",
    "metrics.image.SceneMetrics": "metrics.scene_means.SceneMetrics",
    "reconstruction.frames.FitInput": "reconstruction.scene_builder.FitInput",
    "reconstruction.painting.PainterSource": "reconstruction.view_generator.ViewGeneratorSource",
    "reconstruction.settings.PaintingConfig": "reconstruction.settings.GenerationConfig",
    "splatting.agreement.Agreement": "splatting.robust_weights.RobustWeights",
    "training.callbacks.PaintedClips": "training.callbacks.callbacks.GeneratedClips",
    "training.module.OptimizerConfig": "training.optimizer.OptimizerConfig",
}

#: Keys and options by the name (of today) that they stand under; "" is the top of a file or a command line.
KEYS = {
    "": {
        "benchmark": "protocol",
        "capture": "scene",
        "ckpt": "model",
        "flight": "flythrough",
        "flight_fps": "flythrough_fps",
        "flight_frames": "flythrough_frames",
        "painted": "generated",
        "painting": "generation",
        "run": "model",
        "weights": "model",
    },
    "fit": {"agreement": "robust_weights", "known_view_weight": "input_view_weight"},
    "generation": {"around": "orbit_frames", "second": "end_condition_frame"},
    "model": {"towers": "frozen_encoder_precision"},
    "poses": {"painted": "generated"},
    "sampling": {
        "rescale": "guidance_rescale",
        "steps": "num_inference_steps",
        "structure_scale": "structure_guidance_scale",
        "view_scale": "guidance_scale",
    },
}
#: Values by their option.
VALUES = {"stages": {"painting": "generation"}}
#: Files that come with the package.
CONFIGS = {
    f"configs/demo_{name}.yaml": f"configs/demo/{name}.yaml" for name in ("stage1", "stage2", "evaluate", "reconstruct")
}
#: Of ``reconx``.
COMMANDS = {"benchmarks": "protocols"}
#: Parts of names of tensors.
TENSORS = {"image_tokens.tower.": "image_tokens.encoder."}


def _modules() -> dict[str, str]:
    found = {}
    for rooms, names in _MOVED.items():
        for name in names.split():
            old, _, new = name.partition(":")
            found[f"{rooms[0]}.{old}".lstrip(".")] = f"{rooms[1]}.{new or old}".lstrip(".")
    return found


MODULES = _modules()
_told: set[str] = set()


def tell(old: str, new: str) -> None:
    """Say, once in a process, what an old name is called now."""
    if old not in _told:
        _told.add(old)
        log.warning("`%s` is now `%s`", old, new)


def new_class_path(path: str) -> str:
    """``reconx_pl.module.Class`` of any version as that of this one; every other string as it is."""
    inner = path.removeprefix(PACKAGE)
    if inner == path:
        return path
    module, _, name = inner.rpartition(".")
    return PACKAGE + (CLASSES.get(inner) or f"{MODULES.get(module, module)}.{name}")


def first_class_name(kind: type) -> str:
    """The name under which a class came into this package: hashes that hold it outlive a renaming."""
    path = f"{kind.__module__}.{kind.__qualname__}".removeprefix(PACKAGE)
    first = next((old for old, new in CLASSES.items() if new == path), kind.__name__)
    return first.rpartition(".")[2]


def first_key(parent: str, key: str) -> str:
    """The first name of the key ``key`` of ``parent``, as ``first_class_name``."""
    return next((old for old, new in KEYS[parent].items() if new == key), key)


def renamed_tensor(name: str) -> str:
    """The name of a tensor of a file of weights, as this version has it."""
    for old, new in TENSORS.items():
        if old in name:
            tell(f"{old}*", f"{new}*")
            return name.replace(old, new)
    return name


def renamed_value(value: str, option: str) -> str:
    """A string below the key or option ``option``: a class path, or one of a set of names."""
    new = VALUES.get(option, {}).get(value) or new_class_path(value)
    if new != value:
        tell(value, new)
    return new


def renamed_path(path: Sequence[str]) -> list[str]:
    """A nested option, ``--painting.frames`` as ["painting", "frames"], with the names of this version."""
    new: list[str] = []
    parent = ""
    for key in path:
        new.append(KEYS.get(parent, {}).get(key, key))
        if key != "init_args":
            parent = new[-1]
    return new


def renamed(content: Any, path: Sequence[str] = ()) -> Any:
    """The content of a YAML or JSON file with the names of this version.

    Args:
        content: mappings, lists and plain values.
        path: keys, of this version, under which it stands; none is the top.

    Raises:
        ConfigurationError: a mapping has both the old and the new name of something.
    """
    if isinstance(content, str):
        return renamed_value(content, path[-1] if path else "")
    if isinstance(content, list):
        return [renamed(item, path) for item in content]
    if not isinstance(content, Mapping):
        return content
    result: dict[Any, Any] = {}
    given: dict[Any, str] = {}  # what the file calls the keys of the result
    for key, value in content.items():
        *_, new = renamed_path([*path, key])
        if new != key:
            tell(".".join([*path, key]), ".".join([*path, new]))
        inner = renamed(value, [*path, str(new)])
        if new in given:
            inner = one_of(given[new], result[new], key, inner, new)
        given[new], result[new] = key, inner
    return result


def one_of(first: str, first_value: Any, second: str, second_value: Any, new: str) -> Any:
    """The value of what was given under two names, of which at least one is old.

    Raises:
        ConfigurationError: both have a value; names them. ``run`` and ``weights``, two halves of what is now ``model``,
            go together if the weights lie in the run.
    """
    if first_value is None or second_value is None:
        return second_value if first_value is None else first_value
    values = {first.lstrip("-"): str(first_value), second.lstrip("-"): str(second_value)}
    if values.keys() != {"run", "weights"}:
        raise ConfigurationError(f"`{first}` and `{second}` are names of one thing, now `{new}`: give one of them")
    if not Path(os.path.abspath(values["weights"])).is_relative_to(os.path.abspath(values["run"])):
        raise ConfigurationError(
            f"run {values['run']} and weights {values['weights']}: both are now `{new}`, which takes a run, or a "
            "checkpoint or file of weights in a run; these weights are not in that run: name one of the two"
        )
    return values["weights"]
