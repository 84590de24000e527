"""Two processes train one model: on different clips, to the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from golden_kits import REPOSITORY
from safetensors.torch import load_file
from tiny_run import logged, tiny_config

from reconx_pl.data.procedural import write_procedural
from reconx_pl.training.checkpointing.consolidate import checkpoint_weights
from reconx_pl.training.checkpointing.network_weights import own_weights
from reconx_pl.training.checkpointing.resume import newest_checkpoint
from reconx_pl.training.runs import load_run


def test_ranks_see_different_clips_and_end_with_the_same_weights(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    write_procedural(shards, count=16, frames=4, size=(32, 32), points=64, clips_per_shard=2)
    path = tiny_config(tmp_path, shards, "base", steps=2, checkpoint_every=2)
    config = yaml.safe_load(path.read_text())
    config["trainer"] |= {"devices": 2, "strategy": "ddp"}
    config["trainer"]["callbacks"].append(
        {"class_path": "key_recorder.KeyRecorder", "init_args": {"folder": str(tmp_path)}}
    )
    path.write_text(yaml.safe_dump(config))
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / "train.py"), "fit", "-c", str(path)],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "tests" / "support")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    seen = [
        [key for line in (tmp_path / f"rank{rank}.jsonl").read_text().splitlines() for key in json.loads(line)[1]]
        for rank in (0, 1)
    ]
    assert [len(keys) for keys in seen] == [8, 8]  # 2 steps of 4 clips on each rank
    assert len(set(seen[0]) | set(seen[1])) == 16  # one epoch of 16 clips, none twice
    weights = [(tmp_path / f"rank{rank}.weights").read_text() for rank in (0, 1)]
    assert weights[0] == weights[1]


def test_sharded_ranks_train_generate_and_score_and_one_process_goes_on(tmp_path: Path) -> None:
    """``-c configs/trainer/fsdp.yaml`` over the files that run on one device; then without it, from the folder."""
    shards = tmp_path / "shards"
    write_procedural(shards, count=4, frames=4, size=(32, 32), points=64, clips_per_shard=1)
    path = tiny_config(tmp_path, shards, "base", steps=2, checkpoint_every=1)
    config = yaml.safe_load(path.read_text())
    config["model"]["ema"] = {"decay": 0.5}
    evaluation = {"fit": {"steps": 2, "loss": {"lpips": 0.0}}, "metrics": ["psnr"], "media": False}
    config["trainer"]["callbacks"].append(
        {
            "class_path": "reconx_pl.training.callbacks.callbacks.EvaluationCallback",
            "init_args": {"clips": 3, "during_fit": True, "config": evaluation},
        }
    )
    path.write_text(yaml.safe_dump(config))
    sharded = ["-c", "configs/trainer/fsdp.yaml", "--trainer.devices", "2", "--data.batch_size", "1"]
    train(path, *sharded, "--trainer.accelerator", "cpu")
    run = tmp_path / "base"
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None and newest.is_dir() and newest.resolve().name == "epoch=0-step=2.ckpt"
    exported = load_file(run / "weights.safetensors")
    averaged = checkpoint_weights(newest, average=True)
    assert exported.keys() == averaged.keys()
    assert all(torch.equal(exported[name], averaged[name]) for name in exported)
    results = json.loads((run / "evaluation" / "val-step0000002" / "results.json").read_text())
    assert results["complete"] and results["finished"] == 3
    assert logged(run, "val/reconx/psnr") and logged(run, "train/loss")
    with pytest.raises(AssertionError, match="ranks 2 -> 1. Start with the settings"):
        train(path, "--data.batch_size", "1", "--trainer.max_steps", "3")
    train(path, "--data.batch_size", "1", "--trainer.max_steps", "3", "--data.on_change", "next_epoch")
    assert sorted(logged(run, "train/loss")) == [0, 1, 2]
    after = newest_checkpoint(run / "checkpoints")
    assert after is not None and after.is_file() and after.resolve().name == "epoch=0-step=3.ckpt"
    (run / "weights.safetensors").unlink()
    rebuilt, averaged = own_weights(load_run(run).network), checkpoint_weights(after, average=True)
    assert all(torch.equal(rebuilt[name], averaged[name]) for name in rebuilt)  # as in validation


def train(config: Path, *options: str) -> None:
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / "train.py"), "fit", "-c", str(config), *options],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
