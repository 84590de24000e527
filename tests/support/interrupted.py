"""Runs of ``train.py`` as processes that are killed, preempted and started again, for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from golden_kits import REPOSITORY
from signal_at import order
from tiny_run import tiny_config

from reconx_pl.training.checkpointing.resume import newest_checkpoint
from reconx_pl.training.checkpointing.sharded_checkpoint import read_whole


def prepared(folder: Path, shards: Path, steps: int, checkpoint_every: int, **trainer: Any) -> Path:
    """The demo's base stage, tiny, with an average of the weights, that records clips and obeys ``signal.json``."""
    folder.mkdir()
    path = tiny_config(folder, shards, "base", steps=steps, checkpoint_every=checkpoint_every)
    config = yaml.safe_load(path.read_text())
    config["model"]["ema"] = {"decay": 0.9}
    config["data"]["batch_size"] = 1
    config["trainer"] |= {"limit_val_batches": 0, **trainer}
    for name in ("key_recorder.KeyRecorder", "signal_at.SignalAt"):
        config["trainer"]["callbacks"].append({"class_path": name, "init_args": {"folder": str(folder)}})
    # generated clips and the count of operations take time, and are not what these tests are about
    unwanted = ("MediaCallback", "RichProgressBar", "ObserveCallback")
    config["trainer"]["callbacks"] = [
        c for c in config["trainer"]["callbacks"] if not c["class_path"].endswith(unwanted)
    ]
    config["trainer"]["enable_progress_bar"] = False
    path.write_text(yaml.safe_dump(config))
    return path


def start(config: Path, *options: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """``train.py fit`` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "train.py"), "fit", "-c", str(config), *options],
        cwd=REPOSITORY,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": _path()}
        | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _path() -> str:
    return os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])


def finish(*processes: subprocess.Popen[str], timeout: float = 240) -> list[str]:
    """Wait for all, end what is left of their process groups, and give back what they printed."""
    try:
        return [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def complete(*processes: subprocess.Popen[str]) -> str:
    """Wait for processes that have to end well; what they printed."""
    printed = "\n".join(finish(*processes))
    assert all(process.returncode == 0 for process in processes), printed[-4000:]
    return printed


def kill_at(config: Path, rank: int, step: int, *options: str) -> None:
    """A run that ends by SIGKILL at a step, and takes its other ranks with it."""
    order(config.parent, rank, step, "SIGKILL")
    process = start(config, *options)
    process.wait(timeout=240)
    printed = finish(process)[0]
    assert not (config.parent / "signal.json").exists(), printed[-4000:]  # the signal was sent


def keys(folder: Path, rank: int = 0) -> dict[int, list[str]]:
    """Clips of each step; where a step was done again, the last time counts."""
    return dict(json.loads(line) for line in (folder / f"rank{rank}.jsonl").read_text().splitlines())


def curves(folder: Path, rank: int = 0) -> dict[int, list[float]]:
    """Loss and learning rate of each step; where a step was done again, the last time counts.

    TensorBoard's file would have gaps: what its writer had not yet written is lost with a killed process.
    """
    return dict(json.loads(line) for line in (folder / f"rank{rank}.curves.jsonl").read_text().splitlines())


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and averages of the newest checkpoint."""
    path = newest_checkpoint(folder / "base" / "checkpoints")
    assert path is not None
    if path.is_dir():
        return read_whole(path)["state_dict"]
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
