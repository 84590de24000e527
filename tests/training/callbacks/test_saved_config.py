"""The configuration in a run's folder: once, whole, and with its history."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml
from tiny_run import tiny_config

from reconx_pl.cli.train import main
from reconx_pl.data.procedural import write_procedural
from reconx_pl.diffusion.weights.generation import ClipDefaults
from reconx_pl.training.callbacks.saved_config import differences
from reconx_pl.training.models import find_model


def test_differences_are_named_by_their_place() -> None:
    old = {"a": {"b": 1, "c": [1, {"d": 2}]}, "gone": None, "same": "x"}
    new = {"a": {"b": 2, "c": [1, {"d": 3}]}, "new": 5, "same": "x"}
    assert list(differences(old, new)) == ["a.b: 1 -> 2", "a.c[1].d: 2 -> 3", "new: None -> 5"]
    assert list(differences({"c": [1]}, {"c": [1, 2]})) == ["c: [1] -> [1, 2]"]


def test_it_is_written_once_and_never_replaced_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = tmp_path / "shards"
    write_procedural(shards, count=2, frames=4, size=(32, 48), points=64, clips_per_shard=1)
    config = tiny_config(tmp_path, shards, "base", steps=2, checkpoint_every=1)
    arguments = ["fit", "-c", str(config), "--trainer.limit_val_batches", "0"]
    saved = tmp_path / "base" / "config.yaml"
    main([*arguments, "--trainer.max_steps", "1"])
    assert find_model(saved.parent).clip == ClipDefaults(4, 32, 48, 8.0), "the size of its clips is beside it"
    first = saved.read_text()
    written = saved.stat().st_mtime_ns
    main([*arguments, "--trainer.max_steps", "1"])  # started again
    assert saved.stat().st_mtime_ns == written and len(list(saved.parent.glob("config*.yaml"))) == 1
    main(["validate", "-c", str(config), "--trainer.limit_val_batches", "1"])  # another configuration, not a run's
    assert saved.stat().st_mtime_ns == written
    with caplog.at_level(logging.WARNING):
        main([*arguments, "--trainer.max_steps", "2"])
    assert "is now" in caplog.text and "trainer.max_steps: 1 -> 2" in caplog.text
    assert (saved.parent / "config.1.yaml").read_text() == first
    assert yaml.safe_load(saved.read_text())["trainer"]["max_steps"] == 2
