"""A training run at a few pixels, for tests: the classes of every run, other numbers."""

from __future__ import annotations

from pathlib import Path

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from reconx_pl.files.configs import read_config


def tiny_config(
    folder: Path,
    shards: Path,
    name: str,
    *,
    steps: int,
    checkpoint_every: int,
    init: Path | None = None,
    evaluates: bool = False,
) -> Path:
    """Write ``configs/<name>.yaml`` of this folder at 32 x 32 pixels and ``steps`` steps into ``folder``.

    Only with ``evaluates`` it keeps the ``EvaluationCallback``, whose fits take longer than such a run.
    """
    config = read_config(Path(__file__).parent / "configs" / f"{name}.yaml")
    config["model"]["init_from"] = str(init) if init else None
    config["model"]["optimizer"]["warmup_steps"] = 1
    config["model"]["sampling"]["num_inference_steps"] = 2
    network = config["model"]["network"]["init_args"]
    network["unet"] |= {
        "model_channels": 32,
        "channel_mult": [1, 2],
        "attention_strides": [1, 2],
        "num_head_channels": 8,
    }
    network["unet"]["context_dim"] = 32
    network["structure"] |= {"points": 64, "tokens": 8, "width": 32}
    network["image_tokens"]["init_args"]["config"] = {
        "frames": 4,
        "width": 32,
        "image_size": 32,
        "resampler_width": 32,
        "heads": 1,
    }
    network["text_tokens"]["init_args"]["width"] = 32
    config["data"] |= {"train": str(shards), "val": str(shards), "points": 64, "num_workers": 0}
    trainer = config["trainer"]
    trainer |= {
        "max_steps": steps,
        "val_check_interval": checkpoint_every,
        "limit_val_batches": 1,
        "log_every_n_steps": 1,
    }
    trainer["precision"] = "32-true"
    trainer["logger"]["init_args"]["save_dir"] = str(folder)
    if not evaluates:
        trainer["callbacks"] = [c for c in trainer["callbacks"] if not c["class_path"].endswith("EvaluationCallback")]
    for callback in trainer["callbacks"]:
        kind = callback["class_path"].rsplit(".", 1)[-1]
        if kind == "ThroughputCallback":
            callback["init_args"] = {"every_n_steps": 1}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def logged(run: Path, tag: str) -> dict[int, float]:
    """A scalar of a run's TensorBoard files, by step; where a step was run twice the last one counts."""
    values: dict[int, float] = {}
    for file in sorted(run.glob("events.out.tfevents*"), key=lambda path: path.stat().st_mtime_ns):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0, "images": 0}).Reload()
        if tag in events.Tags()["scalars"]:
            values |= {event.step: event.value for event in events.Scalars(tag)}
    return values
