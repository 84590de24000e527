"""Runs of the command line from caches: the same clips and losses as from frames, and exact on resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from frozen_encoders import write_config, write_encoders
from safetensors.torch import load_file
from tiny_run import logged, tiny_config

from reconx_pl.cli.train import main
from reconx_pl.data.datamodule import ShardDataModule
from reconx_pl.data.procedural import write_procedural
from reconx_pl.errors import ConfigurationError
from reconx_pl.training.precompute import cache_shards


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shards of frames, the same with caches, and the frozen encoders."""
    root = tmp_path_factory.mktemp("cached")
    write_procedural(root / "frames", count=6, first_seed=0, frames=4, size=(32, 32), points=64, clips_per_shard=2)
    (root / "encoders").mkdir()
    cache_shards(root / "frames", root / "caches", write_config(root / "encoders"), device="cpu")
    return {name: root / name for name in ("frames", "caches", "encoders")}


def train(
    folder: Path, folders: dict[str, Path], shards: str, cached: bool, steps: int = 4, **edits: Any
) -> tuple[dict[int, list[str]], dict[int, float], dict[str, torch.Tensor]]:
    """Run (or go on with) a training of the frozen encoders' network; its clips, losses and weights."""
    folder.mkdir(exist_ok=True)
    path = tiny_config(folder, folders[shards], "base", steps=steps, checkpoint_every=2)
    config = yaml.safe_load(path.read_text())
    config["model"]["optimizer"] |= {"lr": 1e-3, "decay": "none"}
    config["model"]["network"]["init_args"] = write_encoders(folders["encoders"]) | edits
    config["data"]["cached"] = cached
    callbacks = [c for c in config["trainer"]["callbacks"] if not c["class_path"].endswith("MediaCallback")]
    callbacks.append({"class_path": "key_recorder.KeyRecorder", "init_args": {"folder": str(folder)}})
    config["trainer"]["callbacks"] = callbacks
    path.write_text(yaml.safe_dump(config))
    main(["fit", "-c", str(path)])
    clips = dict(json.loads(line) for line in (folder / "rank0.jsonl").read_text().splitlines())
    return clips, logged(folder / "base", "train/loss"), load_file(folder / "base" / "weights.safetensors")


def test_caches_train_the_same_model(folders: dict[str, Path], tmp_path: Path) -> None:
    clips, losses, _ = train(tmp_path / "from_frames", folders, "frames", cached=False)
    own_clips, own_losses, _ = train(tmp_path / "from_caches", folders, "caches", cached=True)
    assert own_clips == clips and len(clips) == 4
    assert own_losses.keys() == losses.keys() and own_losses != losses
    assert list(own_losses.values()) == pytest.approx(list(losses.values()), rel=2e-3)
    assert len(logged(tmp_path / "from_caches" / "base", "val/loss")) == 2


def test_a_resumed_run_from_caches_is_exact(folders: dict[str, Path], tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", folders, "caches", cached=True)
    train(tmp_path / "parts", folders, "caches", cached=True, steps=2)
    parts = train(tmp_path / "parts", folders, "caches", cached=True)
    assert parts[0] == whole[0] and {step: parts[1][step] for step in (2, 3)} == {s: whole[1][s] for s in (2, 3)}
    assert all(torch.equal(parts[2][name], whole[2][name]) for name in whole[2])


@pytest.mark.parametrize("plain", ["train", "val"])
def test_shards_without_the_caches_stop_the_run_before_it_starts(
    folders: dict[str, Path], tmp_path: Path, plain: str
) -> None:
    path = tiny_config(tmp_path, folders["caches"], "base", steps=1, checkpoint_every=1)
    config = yaml.safe_load(path.read_text())
    config["model"]["network"]["init_args"] = write_encoders(folders["encoders"])
    config["data"] |= {"cached": True, plain: str(folders["frames"])}
    config["trainer"]["callbacks"] = [
        {"class_path": "key_recorder.KeyRecorder", "init_args": {"folder": str(tmp_path)}}
    ]
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit, match=r"error: .*frames: has no caches, the network needs moments-.*reconx cache"):
        main(["fit", "-c", str(path)])
    assert not (tmp_path / "rank0.jsonl").exists()


def test_a_network_without_frozen_encoders_cannot_train_from_caches(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tiny_config(tmp_path, folders["caches"], "base", steps=1, checkpoint_every=1)
    with pytest.raises(SystemExit, match="error: .*nothing to cache"):
        main(["fit", "-c", str(path), "--data.cached", "true"])


def test_caches_need_a_module_that_names_them(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigurationError, match="cached_inputs"):
        ShardDataModule(str(folders["caches"]), cached=True).setup("fit")


def test_prediction_gets_frames(folders: dict[str, Path]) -> None:
    data = ShardDataModule(str(folders["caches"]), val=str(folders["caches"]), points=64, cached=True)
    assert next(iter(data.predict_dataloader()))["frames"].shape == (1, 4, 3, 32, 32)
